package main

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// atOnce is how many ADDs are started together.
	atOnce = 30
	// patience is how long the calls of one plugin may take at one size, one by one
	// and at once; who has used it up is measured less often.
	patience         = 12 * time.Second
	patienceTogether = 6 * time.Second
	leastRounds      = 3
	// growthFrom and growthTo are the numbers of endpoints between which an ADD should
	// not grow much.
	growthFrom, growthTo = 100, 4000
)

// mostOfNoop is how many times as long as the plugin that does nothing an ADD may take on
// nftables, to one decimal, by endpoints already there: as long as it did before senders were
// proven.
var mostOfNoop = map[int]float64{0: 2.0, 100: 1.8, 1000: 1.6, 4000: 1.6}

// benchAdd measures an ADD and a DEL beside other plugins.
func benchAdd(o options) error {
	fmt.Printf(`
## ADD and DEL, whole processes

From start to end of the process, as a container runtime waits for it. Every endpoint has an IPv4 and an
IPv6 address; podmark's are isolated in both directions by a policy in force, portmap's have one port
mapping. Every plugin has a node of its own, and all are called in turn. What is there already, podmark has
added; for portmap and firewall that would take hours, so what three real ADDs left was written for the
others in bulk, after which the plugin's own CHECK accepted it and its DEL removed exactly that. At 0
endpoints podmark writes and removes the rules of the policy too. %d at once is the time until the last of
%d calls that are started together has ended. State is on a tmpfs. Processes were counted in calls of their
own. Growth is an ADD in proportion to no-op, compared with that at %d endpoints. Medians; fewer rounds
where calls are slow: %d at least of one by one, 1 to %d of those at once.
`, atOnce, atOnce, growthFrom, leastRounds, leastRounds)
	all, err := plugins(o)
	if err != nil {
		return err
	}
	t := table{
		"endpoints", "plugin", "ADD, ms", "× no-op", "growth", "DEL, ms", "× no-op",
		fmt.Sprintf("%d ADDs at once, ms", atOnce), "× no-op", "processes of an ADD", "of a DEL", "rounds",
	}
	t.head()
	results := map[int][]*addResult{}
	sizes := o.sizesOr(0, growthFrom, 1000, growthTo)
	for _, size := range sizes {
		for _, p := range all {
			begin := time.Now()
			if err := p.reach(size); err != nil {
				return err
			}
			progress("%s has %d endpoints after %v", p.name, size, time.Since(begin).Round(time.Millisecond))
		}
		if results[size], err = measureAdds(o, all, o.roundsOr(30)); err != nil {
			return err
		}
		for i, r := range results[size] {
			growth := ""
			if from := results[growthFrom]; from != nil {
				growth = fmt.Sprintf("%.1f", r.growth(results[size][0], from[i], from[0]))
			}
			t.row(append([]string{count(size), r.name}, r.cells(results[size][0], growth)...)...)
		}
	}
	addGoals(results, sizes).print()
	return nil
}

// addResult is what was measured of one plugin at one size.
type addResult struct {
	*plugin
	adds, dels, together []time.Duration
	spawnedAdd           int
	spawnedDel           int
	spent                time.Duration
}

// growth is how many times as long an ADD takes as at another size, each in
// proportion to the plugin that does nothing: sizes are measured one after the
// other, and the machine may have become slower.
func (r *addResult) growth(noop, from, fromNoop *addResult) float64 {
	return ratio(median(r.adds), median(noop.adds)) / ratio(median(from.adds), median(fromNoop.adds))
}

// cells are the figures beside those of the plugin that does nothing.
func (r *addResult) cells(noop *addResult, growth string) []string {
	var cells []string
	for _, pair := range [][2][]time.Duration{{r.adds, noop.adds}, {r.dels, noop.dels}, {r.together, noop.together}} {
		a, b := median(pair[0]), median(pair[1])
		cells = append(cells, millis(a), fmt.Sprintf("%.1f", ratio(a, b)))
	}
	cells = slices.Insert(cells, 2, growth)
	return append(cells, fmt.Sprint(r.spawnedAdd), fmt.Sprint(r.spawnedDel), fmt.Sprint(len(r.adds)))
}

// measureAdds measures all plugins in turn at the size they are at.
func measureAdds(o options, all []*plugin, rounds int) ([]*addResult, error) {
	var results []*addResult
	for _, p := range all {
		results = append(results, &addResult{plugin: p})
	}
	progress("calls, %d rounds", rounds)
	for round := range rounds {
		err := inTurn(round, results, func(_ int, r *addResult) error {
			if r.spent > patience && round >= leastRounds {
				return nil
			}
			return r.measureOne()
		})
		if err != nil {
			return nil, err
		}
	}
	progress("calls at once")
	for _, r := range results {
		r.spent = 0
	}
	for round := range leastRounds {
		err := inTurn(round, results, func(_ int, r *addResult) error {
			if r.spent > patienceTogether {
				return nil
			}
			return r.measureTogether()
		})
		if err != nil {
			return nil, err
		}
	}
	return results, countSpawned(o, results)
}

func (r *addResult) measureOne() error {
	a, err := r.attach()
	if err != nil {
		return err
	}
	add, err := r.call("ADD", a)
	if err != nil {
		return err
	}
	del, err := r.call("DEL", a)
	r.adds, r.dels, r.spent = append(r.adds, add), append(r.dels, del), r.spent+add+del
	return err
}

func (r *addResult) measureTogether() error {
	var list []attached
	for range atOnce {
		a, err := r.attach()
		if err != nil {
			return err
		}
		list = append(list, a)
	}
	add, err := r.callAtOnce("ADD", list)
	if err != nil {
		return err
	}
	r.together = append(r.together, add)
	r.spent += add
	if r.there > 10*atOnce {
		r.there += atOnce // they may stay: removing them can take minutes
		return nil
	}
	del, err := r.callAtOnce("DEL", list)
	r.spent += del
	return err
}

// countSpawned counts the processes of one ADD and one DEL of each plugin.
func countSpawned(o options, results []*addResult) error {
	for _, r := range results {
		c, err := newCounter(filepath.Join(o.dir, "count-"+strings.ReplaceAll(r.name, " ", "-")), r.path)
		if err != nil {
			return err
		}
		a, err := r.attach()
		if err != nil {
			return err
		}
		if r.spawnedAdd, err = c.count(r.plugin, "ADD", a); err != nil {
			return err
		}
		if r.spawnedDel, err = c.count(r.plugin, "DEL", a); err != nil {
			return err
		}
	}
	return nil
}

// addGoals compares the figures with what is wanted.
func addGoals(results map[int][]*addResult, sizes []int) goals {
	var g goals
	find := func(size int, name string) *addResult {
		i := slices.IndexFunc(results[size], func(r *addResult) bool { return r.name == name })
		return results[size][i]
	}
	for _, size := range sizes {
		if most, ok := mostOfNoop[size]; ok {
			by := ratio(median(find(size, withNFTables).adds), median(find(size, "no-op").adds))
			g.add(fmt.Sprintf("an ADD of podmark nftables takes at most %.1f × no-op at %s endpoints", most, count(size)), math.Round(10*by) <= 10*most, "%.2f ×", by)
		}
	}
	if slices.Contains(sizes, growthFrom) && slices.Contains(sizes, growthTo) {
		growth := find(growthTo, withNFTables).growth(find(growthTo, "no-op"), find(growthFrom, withNFTables), find(growthFrom, "no-op"))
		g.add(fmt.Sprintf("it grows at most 1.5 × from %s to %s endpoints", count(growthFrom), count(growthTo)), growth <= 1.5, "%.2f ×", growth)
	}
	for _, verb := range []struct {
		name  string
		times func(*addResult) []time.Duration
	}{
		{"ADD", func(r *addResult) []time.Duration { return r.adds }},
		{"DEL", func(r *addResult) []time.Duration { return r.dels }},
	} {
		least, closest := math.Inf(1), ""
		for _, size := range sizes {
			ours := median(verb.times(find(size, withNFTables)))
			for _, r := range results[size] {
				if r.writes == nil {
					continue
				}
				if by := ratio(median(verb.times(r)), ours); by < least {
					least, closest = by, fmt.Sprintf("%s takes %.1f × as long at %s endpoints", r.name, by, count(size))
				}
			}
		}
		g.add("its "+verb.name+" is ahead of every other plugin that writes rules, at any size", least > 1, "closest: %s", closest)
	}
	return g
}
