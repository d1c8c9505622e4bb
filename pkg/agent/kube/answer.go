package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/podmark/podmark/pkg/agent/kube/view"
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
	ask := view.Ask{Attachment: r.Attachment, Namespace: r.Namespace, Pod: r.Pod, UID: r.UID}
	c.mu.Lock()
	c.settings = settings
	c.active = true
	c.view.Expect(ask, time.Now())
	c.poke()
	c.mu.Unlock()
	var fetched time.Time
	var unknown error
	var target uint64
	for {
		// Where the runtime tells no UID, the watch may show a former pod of the name.
		if ask.UID == "" && fetched.IsZero() {
			fetched = time.Now()
			if unknown = c.look(ctx, ask); errors.Is(unknown, errOther) {
				return podapi.Response{}, unknown
			}
		}
		c.mu.Lock()
		p, why := c.view.Answer(ask, time.Now())
		if errors.Is(why, view.ErrRefused) { // the kubelet tries again
			c.mu.Unlock()
			return podapi.Response{}, fmt.Errorf("pod %s/%s: %w", ask.Namespace, ask.Pod, why)
		}
		// What is answered is what the last round has decided for, and it is in the kernel.
		decided := p != nil && c.view.Decided(p)
		if target == 0 && why == nil || target != 0 && c.done >= target && !decided {
			target = c.sync + 1
			c.view.Stir()
			c.poke()
		}
		if target != 0 && c.done >= target && c.done == c.sync && decided {
			profiles := c.view.Profiles(p)
			c.mu.Unlock()
			return podapi.Response{Labels: p.Own.Labels, Ports: p.Ports, Sources: p.Own.Sources, UID: p.Own.ID(), NamespaceUID: p.NamespaceUID(), Profiles: &profiles}, nil
		}
		news := c.news
		why = errors.Join(why, c.failed)
		c.mu.Unlock()
		if p == nil && time.Since(fetched) >= fetchEvery {
			fetched = time.Now()
			if unknown = c.look(ctx, ask); errors.Is(unknown, errOther) {
				return podapi.Response{}, unknown
			}
			continue
		}
		select {
		case <-ctx.Done():
			if p != nil {
				unknown = nil
			}
			return podapi.Response{}, fmt.Errorf("pod %s/%s: %w", ask.Namespace, ask.Pod, errors.Join(unknown, why, context.Cause(ctx)))
		case <-news:
		case <-time.After(fetchEvery):
		}
	}
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
	c.poke()
	c.announce()
}
