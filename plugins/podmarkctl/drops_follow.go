//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/droplog"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
)

// event is one line of 'drops --follow -o json': a packet, or how many were not told of.
type event struct {
	Time time.Time `json:"time"`
	judge
	*flow
	// Suppressed is how many packets were counted and not logged; absent for a packet.
	Suppressed uint64 `json:"suppressed,omitempty"`
	// Packets is how many of the judge's have been counted by now.
	Packets uint64 `json:"packets"`
}

func (e event) String() string {
	at := e.Time.Format("15:04:05.000")
	if e.flow == nil {
		return fmt.Sprintf("%s %s %s %d more by %s, which the kernel did not tell of (%d)", at, e.direction(), e.Verdict, e.Suppressed, e.by(), e.Packets)
	}
	return fmt.Sprintf("%s %s %s %s %s -> %s by %s (%d)", at, e.direction(), e.Verdict, e.Protocol, e.Source,
		e.Destination, e.by(), e.Packets)
}

const (
	// lookEvery is how often counters are read while packets come: with iptables that
	// takes two processes.
	lookEvery = time.Second
	// knownFor is how long what is known of the node's pods and policies is not read again.
	knownFor = time.Second
)

// follower shows packets.
type follower struct {
	node      node.Node
	out, side io.Writer // lines, and what goes wrong
	json      bool

	tally droplog.Tally
	// state was read at, and names are the pods of its addresses.
	state desired.State
	names map[string]string
	read  time.Time
}

func followDrops(cmd *cobra.Command, o *options) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	f := &follower{node: o.node(), out: cmd.OutOrStdout(), side: cmd.ErrOrStderr(), json: o.output == "json"}
	if err := f.know(nil); err != nil {
		return err
	}
	if f.state.Unlogged {
		lacks, err := f.node.Unlogged()
		if err == nil && lacks == "" {
			lacks = "its rules are of an earlier podmark; 'podmarkctl gc' writes them again"
		}
		return errors.Join(err, fmt.Errorf("this node does not log what it drops: %s", lacks))
	}
	// What is counted from here on is told of, by a line or by a number.
	if err := f.refresh(ctx); err != nil {
		return err
	}
	l, err := droplog.Listen()
	if errors.Is(err, droplog.ErrTaken) {
		return fmt.Errorf("%w; packets can be followed by one at a time", err)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	if !f.json {
		fmt.Fprintln(f.out, "TIME DIRECTION VERDICT PROTOCOL SOURCE -> DESTINATION BY (PACKETS)")
	}
	return f.run(ctx, l)
}

// heard is what came of one Receive.
type heard struct {
	messages []droplog.Message
	lost     bool
	err      error
}

func (f *follower) run(ctx context.Context, l *droplog.Listener) error {
	come := make(chan heard)
	go func() {
		for {
			var h heard
			h.messages, h.lost, h.err = l.Receive()
			select {
			case come <- h:
			case <-ctx.Done():
				return
			}
			if h.err != nil {
				return
			}
		}
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for quiet := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case h := <-come:
			if h.err != nil {
				return h.err
			}
			if err := f.show(h); err != nil {
				return err
			}
			quiet = 0
		case <-tick.C:
			// One look sees the packets of the last messages, another compares.
			if quiet++; quiet > 2 && f.tally.Settled() {
				continue
			}
			if err := f.refresh(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// know reads what the packets are named by, if that was not read just now. Which
// profiles there are a packet says itself.
func (f *follower) know(packets []droplog.Message) error {
	unknown := slices.ContainsFunc(packets, func(m droplog.Message) bool {
		_, there := f.state.Profiles[m.Key.Profile]
		return m.Key.Profile != "" && !there
	})
	if time.Since(f.read) < knownFor && !unknown {
		return nil
	}
	state, err := f.node.State()
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // podmark may run here later
		return err
	}
	f.state, f.names, f.read = state, map[string]string{}, time.Now()
	for _, e := range state.Endpoints {
		name := e.ContainerID
		if e.Pod != "" {
			name = e.Namespace + "/" + e.Pod
		}
		for _, a := range e.Addresses {
			f.names[a.String()] = name
		}
	}
	return nil
}

// show prints packets.
func (f *follower) show(h heard) error {
	if h.lost {
		fmt.Fprintln(f.side, "podmarkctl: messages were lost, because the kernel had more than there was room for")
	}
	if len(h.messages) == 0 {
		return nil
	}
	if err := f.know(h.messages); err != nil {
		return err
	}
	now := time.Now()
	for _, m := range h.messages {
		flow := flowOf(m)
		flow.Source.Pod, flow.Destination.Pod = f.names[flow.Source.Address], f.names[flow.Destination.Address]
		if err := f.print(event{
			Time: now, judge: judgeOf(m.Key, f.state), flow: &flow,
			Packets: f.tally.Logged(m.Key),
		}); err != nil {
			return err
		}
	}
	return nil
}

// refresh reads the counters, and prints how many packets were not told of.
func (f *follower) refresh(ctx context.Context) error {
	rules, err := f.node.Counters(ctx)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now := time.Now()
	for _, s := range f.tally.Counted(rules) {
		if err := f.print(event{
			Time: now, judge: judgeOf(s.Key, f.state), Suppressed: s.More,
			Packets: s.Packets,
		}); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) print(e event) error {
	if f.json {
		return json.NewEncoder(f.out).Encode(e)
	}
	_, err := fmt.Fprintln(f.out, e)
	return err
}
