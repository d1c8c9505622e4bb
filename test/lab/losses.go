package lab

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// firstLimit is how long the first of two questions waits for its answer: the kernel forgets a flow
// without one after 30 s, and what it knows of a lost one is looked at then.
const firstLimit = 25 * time.Second

// told are the lost questions with what the kernel knew of them: a test that passes keeps its log to
// itself.
var told struct {
	sync.Mutex
	questions []string
}

// lose counts a question that was lost.
func lose(question string) {
	losses.lost.Add(1)
	told.Lock()
	defer told.Unlock()
	told.questions = append(told.questions, question)
}

// losses counts the questions of all tables that had to be answered, and those that were not at
// first.
var losses struct{ asked, lost atomic.Int64 }

// Losses prints how many questions had to be asked once more, and turns the result of a package's
// tests into a failure where there were more than one in 10,000. Of fewer questions one may be lost:
// it says nothing of a rate.
//
//	func TestMain(m *testing.M) { os.Exit(lab.Losses(m.Run())) }
func Losses(code int) int {
	asked, lost := losses.asked.Load(), losses.lost.Load()
	if asked == 0 {
		return code
	}
	fmt.Printf("asked once more: %d of %d questions\n", lost, asked)
	if tooMany(asked, lost) {
		fmt.Fprintf(os.Stderr, "more than one question in 10,000 was lost; what connection tracking and IPVS knew of each:\n%s\n", strings.Join(told.questions, "\n"))
		return max(code, 1)
	}
	return code
}

func tooMany(asked, lost int64) bool { return lost > max(1, asked/10_000) }

// flow is what the node's connection tracking and IPVS know of a request: what mentions its
// destination, or the address that it comes from.
func (r Row) flow() string {
	node := r.From.site.node
	if node == nil {
		return ""
	}
	addresses := []string{r.To.Addr().String()}
	for _, a := range r.From.Addresses {
		if familyOf(a) == familyOf(r.To.Addr()) {
			addresses = append(addresses, a.String())
		}
	}
	var about strings.Builder
	for _, command := range [][]string{
		{"conntrack", "-L", "-f", map[Family]string{V4: "ipv4", V6: "ipv6"}[familyOf(r.To.Addr())], "-p", r.Protocol.String()},
		{"ipvsadm", "-Lnc"},
	} {
		fmt.Fprintf(&about, "%s:\n", strings.Join(command, " "))
		out, err := node.Try(command[0], command[1:]...)
		if err != nil {
			fmt.Fprintf(&about, "  %v: %s\n", err, out)
			continue
		}
		for line := range strings.Lines(out) {
			for _, a := range addresses {
				if strings.Contains(line, a) {
					about.WriteString("  " + line)
					break
				}
			}
		}
	}
	return about.String()
}
