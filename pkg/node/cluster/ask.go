package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/podmark/podmark/pkg/node/cluster/view"
	"github.com/podmark/podmark/pkg/whois"
)

// comes is how long after it was asked for a pod may take to have an attachment.
const comes = time.Minute

// fetchEvery is how often the API is asked for a pod that the watch does not show.
const fetchEvery = time.Second

// askAgain is how long after the API has not answered a question it is asked again.
const askAgain = time.Second

// Answer tells who a pod is, once all that its policies mean is known and in the kernel.
// The pod's own rules come with its ADD.
func (c *Cluster) Answer(ctx context.Context, r whois.Request) (whois.Answer, error) {
	if r.Locate {
		p, err := c.fetch(ctx, view.Name{Namespace: r.Namespace, Name: r.Pod})
		if err != nil {
			return whois.Answer{}, err
		}
		return whois.Answer{Addresses: p.Addresses}, nil
	}
	settings, err := r.Settings()
	if err != nil {
		return whois.Answer{}, fmt.Errorf("the plugin's iptablesMarkMask: %w", err)
	}
	n := view.Name{Namespace: r.Namespace, Name: r.Pod}
	c.mu.Lock()
	c.settings = settings
	c.active = true
	c.view.Expect(n, time.Now().Add(comes))
	c.poke()
	c.mu.Unlock()
	var fetched time.Time
	var unknown error
	var target uint64
	for {
		c.mu.Lock()
		p := c.view.Pod(n, r.UID)
		fits := p != nil
		why := c.view.Prepared(n, time.Now())
		if fits && why == nil && target == 0 {
			target = c.round + 1
			c.view.Stir()
			c.poke()
		}
		if fits && target != 0 && c.done >= target {
			c.mu.Unlock()
			return whois.Answer{Labels: p.Labels, Ports: p.Ports, Sources: p.Own.Sources}, nil
		}
		news := c.news
		why = errors.Join(why, c.failed)
		c.mu.Unlock()
		if !fits && time.Since(fetched) >= fetchEvery {
			fetched = time.Now()
			if unknown = c.look(ctx, n, r.UID); errors.Is(unknown, errOther) {
				return whois.Answer{}, unknown
			}
			continue
		}
		select {
		case <-ctx.Done():
			if fits {
				unknown = nil
			}
			return whois.Answer{}, fmt.Errorf("pod %s/%s: %w", n.Namespace, n.Name, errors.Join(unknown, why, context.Cause(ctx)))
		case <-news:
		case <-time.After(fetchEvery):
		}
	}
}

// errOther: the API has no such pod, which no waiting changes.
var errOther = errors.New("not the pod that the runtime starts")

// look asks the API for a pod that the watch does not show yet, or shows a former one of.
func (c *Cluster) look(ctx context.Context, n view.Name, uid string) error {
	p, err := c.fetch(ctx, n)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", errOther, err)
	case err != nil:
		return err
	case p.Own == nil:
		return fmt.Errorf("%w: pod %s/%s is not bound to node %q in the API; is --node-name right?", errOther, n.Namespace, n.Name, c.Name)
	case !p.Is(uid):
		return fmt.Errorf("%w: pod %s/%s has UID %s in the API, and %s on the node: it was deleted meanwhile", errOther, n.Namespace, n.Name, p.Own.UID, uid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view.Seen(view.Watch{Kind: view.Pods, Node: c.Name}, p, time.Now())
	c.announce()
	return nil
}

// questions is how many are asked at once.
const questions = 8

// inquire finds out for the view whether a namespace is going.
func (c *Cluster) inquire(ctx context.Context, namespace string) {
	select {
	case c.asking <- struct{}{}:
	case <-ctx.Done():
		return
	}
	ending, err := c.ending(ctx, namespace)
	<-c.asking
	if err != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(askAgain):
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view.Told(namespace, ending, err)
	c.poke()
}
