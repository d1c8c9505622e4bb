package main

import (
	"math"
	"runtime"
	"runtime/debug"
	rtmetrics "runtime/metrics"
	"testing"
	"time"
)

func TestGarbageShare(t *testing.T) {
	for inUse, want := range map[uint64]int{0: 50, 1: 50, 24 << 20: 50, 48 << 20: 25, 60 << 20: 20, 1 << 40: 20, math.MaxUint64: 20} {
		if got := garbageShare(inUse); got != want {
			t.Errorf("beside %d bytes: %d %%, want %d", inUse, got, want)
		}
	}
}

// The share follows what is in use, both ways.
func TestGarbageFollows(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	collect()
	share := func() uint64 {
		s := []rtmetrics.Sample{{Name: "/gc/gogc:percent"}}
		rtmetrics.Read(s)
		return s[0].Value.Uint64()
	}
	becomes := func(want uint64) {
		t.Helper()
		for range 10000 {
			if runtime.GC(); share() == want {
				return
			}
			time.Sleep(time.Millisecond) //nolint:forbidigo // the cleanup runs beside, and tells nobody
		}
		t.Errorf("it is %d %%, want %d", share(), want)
	}
	becomes(mostGarbage)
	much := make([]byte, 100<<20)
	becomes(leastGarbage)
	runtime.KeepAlive(much)
	becomes(mostGarbage)
}
