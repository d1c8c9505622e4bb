// Package share picks what 'make test' runs of tests that come in variants: a share that leaves
// out no test, and is another one with the next commit. Where PODMARK_SHARE is not a number,
// everything is run.
package share

import (
	"hash/fnv"
	"os"
	"strconv"
	"testing"
)

// OneOf is one of all, another one for the next test and for the next share; or all of them.
// They must be in the same order each time.
func OneOf[T any](t testing.TB, all []T) []T {
	n, err := strconv.ParseUint(os.Getenv("PODMARK_SHARE"), 10, 64)
	if err != nil || len(all) == 0 {
		return all
	}
	h := fnv.New32a()
	h.Write([]byte(t.Name()))
	i := (uint64(h.Sum32()) + n) % uint64(len(all))
	return all[i : i+1 : i+1]
}
