package cluster

import (
	"errors"
	"maps"
	"slices"
	"strings"
)

// Sight is how much of the cluster is known, and in force.
type Sight struct {
	// Policies are in force. Watches, and the Pods that these show, are how many there are.
	Policies, Watches, Pods int
	// Err is why what is in force may not be what the API says.
	Err error
}

// Sight tells it as it is now.
func (c *Cluster) Sight() Sight {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Sight{Policies: len(c.applied.Policies), Watches: len(c.watches), Pods: len(c.pods), Err: c.failed}
	// The first that is not as it should be: of a server that is away, all say the same.
	for _, w := range slices.SortedFunc(maps.Keys(c.wanted), func(a, b Watch) int { return strings.Compare(a.String(), b.String()) }) {
		if watching := c.watches[w]; watching.err != nil || !watching.synced {
			s.Err = errors.Join(c.failed, c.blame(w))
			break
		}
	}
	return s
}
