package cluster_test

import (
	"testing"

	"github.com/podmark/podmark/test/scale/cluster"
)

// BenchmarkEvent is what an event costs whoever makes it up.
func BenchmarkEvent(b *testing.B) {
	o := options(cluster.SameNamespace)
	c, err := cluster.New(o)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c.Next()
	}
}
