package main

import (
	"runtime"
	"runtime/debug"
	rtmetrics "runtime/metrics"
)

// The collector runs often: a reconciliation of thousands of endpoints leaves much behind, and they are few,
// and the memory of a node is its pods'. It runs when garbage takes so much room, within these
// shares of what is in use, in percent: while podmarkd gets to know a large cluster, a small
// share alone has it run three times as often.
const (
	garbage      = 12 << 20
	leastGarbage = 20
	mostGarbage  = 50
)

// collect sets when the collector runs next, now and whenever it has run.
func collect() {
	inUse := []rtmetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	rtmetrics.Read(inUse)
	debug.SetGCPercent(garbageShare(inUse[0].Value.Uint64()))
	runtime.AddCleanup(&struct{ _ *int }{}, func(struct{}) { collect() }, struct{}{})
}

// garbageShare is, in percent, how much garbage there may be beside so many bytes.
func garbageShare(inUse uint64) int {
	return int(min(mostGarbage, max(leastGarbage, 100*garbage/max(1, inUse))))
}
