package main

import (
	"context"

	"github.com/podmark/podmark/pkg/runtimes"
	"github.com/podmark/podmark/pkg/runtimes/cri"
)

// locate finds where the runtime looks. What it said last holds while it does not answer,
// and what was found on the node while nothing is there: runtimes restart, and agents write
// their conflists again.
func (o *installOptions) locate(ctx context.Context) (runtimes.Place, error) {
	given, err := runtimes.GivenBy(o.confDir, o.binDir)
	if err != nil {
		return runtimes.Place{}, err
	}
	last := o.found.Load()
	said, err := cri.Places(ctx, o.endpoint)
	if err != nil {
		if last != nil && last.From == runtimes.Reported && ctx.Err() == nil {
			return *last, nil
		}
		return runtimes.Place{}, err
	}
	place, err := runtimes.Decide(given, said, runtimes.OnNode("/"))
	if err != nil {
		return runtimes.Place{}, err
	}
	if last != nil && place.From < last.From {
		return *last, nil
	}
	if given.Bin == "" {
		place = place.Sorted()
	}
	o.found.Store(&place)
	return place, nil
}

// configurations is the directory of network configurations, empty where none was given. It is
// looked for until it is found.
func (o *installOptions) configurations(ctx context.Context) string {
	if o.confDir == "" {
		return ""
	}
	if o.confDir != runtimes.Auto {
		return o.confDir
	}
	if place := o.found.Load(); place != nil && place.From > runtimes.Assumed {
		return place.Conf
	}
	place, err := o.locate(ctx)
	if err != nil {
		place = runtimes.Default()
	}
	return place.Conf
}
