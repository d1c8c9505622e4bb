package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/podmark/podmark/pkg/runtimes"
	"github.com/podmark/podmark/pkg/runtimes/cri"
)

// auto is the value of flags for what is to be found.
const auto = "auto"

// locate finds where the runtime looks. What it said last holds while it does not answer,
// and what was found on the node while nothing is there: runtimes restart, and agents write
// their conflists anew.
func (o *installOptions) locate(ctx context.Context) (runtimes.Place, error) {
	given := runtimes.Folders{}
	for _, f := range []struct {
		flag, value string
		to          *string
	}{{"cni-conf-dir", o.confDir, &given.Conf}, {"cni-bin-dir", o.binDir, &given.Bin}} {
		if f.value == auto {
			continue
		}
		if !filepath.IsAbs(f.value) {
			return runtimes.Place{}, fmt.Errorf("--%s %q: want an absolute path or %s", f.flag, f.value, auto)
		}
		*f.to = f.value
	}
	last := o.found.Load()
	said, err := o.ask(ctx)
	if err != nil {
		if last != nil && last.From == runtimes.Said && ctx.Err() == nil {
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

// ask lists what the runtimes say. Of the usual sockets those count that somebody
// listens at; one that was named must answer.
func (o *installOptions) ask(ctx context.Context) ([]runtimes.Place, error) {
	if o.endpoint == "" {
		return nil, nil
	}
	if o.endpoint != auto {
		socket := strings.TrimPrefix(o.endpoint, "unix://")
		place, err := cri.Ask(ctx, socket)
		if errors.Is(err, cri.ErrSilent) {
			err = fmt.Errorf("%w: leave --runtime-endpoint empty, and give --cni-conf-dir and --cni-bin-dir", err)
		}
		return []runtimes.Place{place}, err
	}
	var said []runtimes.Place
	for _, socket := range runtimes.Sockets {
		place, err := cri.Ask(ctx, socket)
		switch {
		case errors.Is(err, cri.ErrSilent), errors.Is(err, syscall.ECONNREFUSED):
		case err != nil:
			return nil, fmt.Errorf("%w; --runtime-endpoint names another runtime, or none", err)
		default:
			said = append(said, place)
		}
	}
	return said, nil
}

// configurations is the folder of network configurations, empty where none was given. It is
// looked for until it is found.
func (o *installOptions) configurations(ctx context.Context) string {
	if o.confDir == "" {
		return ""
	}
	if o.confDir != auto {
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
