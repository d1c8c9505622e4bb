package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// table prints rows of Markdown under a head.
type table []string

func (t table) head() {
	fmt.Printf("\n| %s |\n|%s\n", strings.Join(t, " | "), strings.Repeat("---|", len(t)))
}

func (t table) row(cells ...string) {
	if len(cells) != len(t) {
		panic(fmt.Sprintf("bench: %d cells in a row of %d: %v", len(cells), len(t), cells))
	}
	fmt.Printf("| %s |\n", strings.Join(cells, " | "))
}

// goal is something podmark wants to reach, and what was measured.
type goal struct {
	text    string
	reached bool
	figures string
}

// goals are printed behind the figures. A goal that was not measured in this run
// is not among them.
type goals []goal

func (g *goals) add(text string, reached bool, format string, args ...any) {
	*g = append(*g, goal{text, reached, fmt.Sprintf(format, args...)})
}

func (g goals) print() {
	if len(g) == 0 {
		return
	}
	t := table{"target", "reached", "measured"}
	t.head()
	for _, one := range g {
		answer := "**no**"
		if one.reached {
			answer = "yes"
		}
		t.row(one.text, answer, one.figures)
	}
}

type number interface{ ~int | ~int64 | ~float64 }

// quantile is the value below which the part q of the values is.
func quantile[T number](values []T, q float64) T {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func median[T number](values []T) T { return quantile(values, 0.5) }

// paired are the values of a round less those of the same round of another, or
// whatever else joins the two: what disturbed both is gone from it.
func paired[T, R number](values, others []T, join func(T, T) R) []R {
	out := make([]R, min(len(values), len(others)))
	for i := range out {
		out[i] = join(values[i], others[i])
	}
	return out
}

// spread is a median and, between brackets, where the middle half of the values is.
func spread[T number](values []T, format string) string {
	f := func(q float64) string { return fmt.Sprintf(format, quantile(values, q)) }
	return fmt.Sprintf("%s (%s to %s)", f(0.5), f(0.25), f(0.75))
}

func ratio[T number](a, b T) float64 { return float64(a) / float64(b) }

func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms >= 100 {
		return fmt.Sprintf("%.0f", ms)
	}
	return fmt.Sprintf("%.1f", ms)
}

// count writes a number for people.
func count(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", count(n/1000), n%1000)
}

// sortedKeys lists the keys of a map in order.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
