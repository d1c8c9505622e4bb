// Package share picks what 'make test' runs of tests that come in variants: a share, which is another
// one with the next commit. Where PODMARK_SHARE is not a number, everything is run.
// scripts/turn.sh picks the tests.
package share

import (
	"hash/fnv"
	"os"
	"strconv"
	"testing"
)

// number is that of the share; no ok where everything is run.
func number() (n uint64, ok bool) {
	n, err := strconv.ParseUint(os.Getenv("PODMARK_SHARE"), 10, 64)
	return n, err == nil
}

// Everything reports whether no share is run but all, as 'make lab' does.
func Everything() bool {
	_, ok := number()
	return !ok
}

// OneOf is one of all, another one for the next test and for the next share; or all of them.
// They must be in the same order each time.
func OneOf[T any](t testing.TB, all []T) []T {
	n, ok := number()
	if !ok || len(all) == 0 {
		return all
	}
	h := fnv.New32a()
	h.Write([]byte(t.Name()))
	i := (uint64(h.Sum32()) + n) % uint64(len(all))
	return all[i : i+1 : i+1]
}
