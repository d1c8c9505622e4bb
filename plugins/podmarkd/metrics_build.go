package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/podmark/podmark/pkg/version"
)

// buildInfo is always 1: its labels say which podmarkd a node runs.
func buildInfo() prometheus.Collector {
	b := version.Read()
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "podmark_build_info", Help: "1, with the version, revision and release of Go of this podmarkd.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "goversion": b.Go},
	}, func() float64 { return 1 })
}
