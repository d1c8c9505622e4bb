package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/podmark/podmark/pkg/agent/kube/view"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/podapi"
)

// fetchEvery is how often the API is asked for a pod that the watch does not show.
const fetchEvery = time.Second

// After the API has not answered a question it is asked again: after askAgain, then twice as
// long each time, up to askSeldom.
const (
	askAgain  = time.Second
	askSeldom = time.Minute
)

// pauseAfter is how long to wait after so many failures, 1 or more: of the longest pause
// between half and all, by a number from 0 to 1, so that nodes do not ask at once.
func pauseAfter(failures int, random float64) time.Duration {
	longest := askAgain
	for range failures - 1 {
		if longest = min(2*longest, askSeldom); longest == askSeldom {
			break
		}
	}
	return longest/2 + time.Duration(random*float64(longest/2))
}

// Answer tells who a pod is, once all that its policies mean is known and in the kernel.
// The pod's own rules come with its ADD.
func (c *Cluster) Answer(ctx context.Context, r podapi.Request) (podapi.Response, error) {
	if r.Locate {
		p, err := c.fetch(ctx, view.Name{Namespace: r.Namespace, Name: r.Pod})
		if err != nil {
			return podapi.Response{}, err
		}
		return podapi.Response{Addresses: p.Addresses.List()}, nil
	}
	settings, err := r.Settings()
	if err != nil {
		return podapi.Response{}, fmt.Errorf("the plugin's iptablesMarkMask: %w", err)
	}
	q := question{c: c, ask: view.Ask{Attachment: r.Attachment, Namespace: r.Namespace, Pod: r.Pod, UID: r.UID}}
	q.begin(settings)
	// Where the runtime tells no UID, the watch may show a former pod of the name.
	if q.ask.UID == "" && q.fetch(ctx) {
		return podapi.Response{}, q.unknown
	}
	for {
		s, err := q.state()
		if err != nil || s.answer != nil {
			return s.response(), err
		}
		if !s.known && time.Since(q.fetched) >= fetchEvery {
			if q.fetch(ctx) {
				return podapi.Response{}, q.unknown
			}
			continue
		}
		select {
		case <-ctx.Done():
			return podapi.Response{}, q.unanswered(s, context.Cause(ctx))
		case <-s.news:
		case <-time.After(fetchEvery):
		}
	}
}

// question is one that the plugin waits for.
type question struct {
	c   *Cluster
	ask view.Ask
	// fetched is when the API was last asked for the pod, and unknown why it did not show it.
	fetched time.Time
	unknown error
	// target is the round that has to be in the kernel for an answer; 0 until it is known what
	// the pod's policies mean.
	target uint64
}

// progress is how far a question is.
type progress struct {
	answer *podapi.Response // nil for none yet
	known  bool             // the pod is
	waits  error            // why there is no answer yet
	news   <-chan struct{}  // closed when that may have changed
}

func (p progress) response() podapi.Response {
	if p.answer == nil {
		return podapi.Response{}
	}
	return *p.answer
}

// begin has the cluster followed as far as the answer needs it.
func (q *question) begin(settings node.Settings) {
	q.c.mu.Lock()
	defer q.c.mu.Unlock()
	q.c.settings = settings
	q.c.active = true
	q.c.view.Expect(q.ask, time.Now())
	q.c.rounds.Notify()
}

// fetch asks the API for the pod. It is final where the API has no such pod.
func (q *question) fetch(ctx context.Context) (final bool) {
	q.fetched = time.Now()
	q.unknown = q.c.look(ctx, q.ask)
	return errors.Is(q.unknown, errOther)
}

// state is how far the question is, and has a round due where the answer needs one. It fails where
// waiting would take too long: the kubelet tries again.
func (q *question) state() (progress, error) {
	q.c.mu.Lock()
	defer q.c.mu.Unlock()
	p, why := q.c.view.Answer(q.ask, time.Now())
	if errors.Is(why, view.ErrRefused) {
		return progress{}, q.of(why)
	}
	// What is answered is what the last round has decided for, and it is in the kernel.
	decided := p != nil && q.c.view.Decided(p)
	if q.target == 0 && why == nil || q.target != 0 && q.c.done >= q.target && !decided {
		q.target = q.c.sync + 1
		q.c.view.Stir()
		q.c.rounds.Notify()
	}
	s := progress{known: p != nil, waits: errors.Join(why, q.c.failed), news: q.c.news}
	if q.target != 0 && q.c.done >= q.target && q.c.done == q.c.sync && decided {
		profiles := q.c.view.Profiles(p)
		s.answer = &podapi.Response{
			Labels: p.Own.Labels, Ports: p.Ports, Sources: p.Own.Sources,
			UID: p.Own.ID(), NamespaceUID: p.NamespaceUID(), Profiles: &profiles,
		}
	}
	return s, nil
}

// unanswered is why there is no answer when the plugin waits no longer.
func (q *question) unanswered(s progress, cause error) error {
	unknown := q.unknown
	if s.known {
		unknown = nil
	}
	return q.of(errors.Join(unknown, s.waits, cause))
}

// of says of which pod an error is.
func (q *question) of(err error) error {
	return fmt.Errorf("pod %s/%s: %w", q.ask.Namespace, q.ask.Pod, err)
}

// errOther: the API has no such pod, which no waiting changes.
var errOther = errors.New("not the pod that the runtime starts")

// look asks the API for a pod that the watch does not show yet, or shows a former one of.
func (c *Cluster) look(ctx context.Context, ask view.Ask) error {
	p, err := c.fetch(ctx, view.Name{Namespace: ask.Namespace, Name: ask.Pod})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", errOther, err)
	case err != nil:
		return err
	case p.Own == nil:
		return fmt.Errorf("%w: pod %s/%s is not bound to node %q in the API; is --node-name right?", errOther, ask.Namespace, ask.Pod, c.Name)
	case !p.Is(ask.UID):
		return fmt.Errorf("%w: pod %s/%s has UID %s in the API, and %s on the node: it was deleted meanwhile", errOther, ask.Namespace, ask.Pod, p.Own.UID, ask.UID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view.Fetched(view.Watch{Kind: view.Pods, Node: c.Name}, p)
	c.announce()
	return nil
}

// questions is how many are asked at once.
const questions = 8

// fetchUnknown finds out for the view what a namespace is.
func (c *Cluster) fetchUnknown(ctx context.Context, namespace string) {
	select {
	case c.asking <- struct{}{}:
	case <-ctx.Done():
		return
	}
	is, err := c.spaceOf(ctx, namespace)
	<-c.asking
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.unanswered[namespace]++
		pause := pauseAfter(c.unanswered[namespace], rand.Float64())
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		c.mu.Lock()
	} else {
		delete(c.unanswered, namespace)
	}
	c.view.Told(namespace, is, err)
	c.rounds.Notify()
	c.announce()
}
