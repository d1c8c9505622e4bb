package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/podmark/podmark/pkg/whois"
)

// comes is how long after it was asked for a pod may take to have an attachment.
const comes = time.Minute

// fetchEvery is how often the API is asked for a pod that the watch does not show.
const fetchEvery = time.Second

// outliveEvery is how often the API is asked about a namespace until it answers.
const outliveEvery = time.Second

// Answer tells who a pod is, once all that its policies mean is known and in the kernel.
// The pod's own rules come with its ADD.
func (c *Cluster) Answer(ctx context.Context, r whois.Request) (whois.Answer, error) {
	if r.Locate {
		p, err := c.fetch(ctx, name{r.Namespace, r.Pod})
		if err != nil {
			return whois.Answer{}, err
		}
		return whois.Answer{Addresses: p.Addresses}, nil
	}
	settings, err := r.Settings()
	if err != nil {
		return whois.Answer{}, fmt.Errorf("the plugin's iptablesMarkMask: %w", err)
	}
	n := name{r.Namespace, r.Pod}
	c.mu.Lock()
	c.settings = settings
	c.active = true
	c.coming[n] = &coming{time.Now().Add(comes), r.UID}
	c.dirty = true
	c.poke()
	c.mu.Unlock()
	var fetched time.Time
	var unknown error
	var target uint64
	for {
		c.mu.Lock()
		p := c.pods[n]
		fits := p.known(r.UID)
		ready, why := c.prepared(n)
		if fits && ready && target == 0 {
			target = c.round + 1
			c.dirty = true
			c.poke()
		}
		if fits && target != 0 && c.done >= target {
			c.mu.Unlock()
			return whois.Answer{Labels: p.Labels, Ports: p.Ports, Sources: p.own.sources}, nil
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
			return whois.Answer{}, fmt.Errorf("pod %s/%s: %w", n.namespace, n.name, errors.Join(unknown, why, context.Cause(ctx)))
		case <-news:
		case <-time.After(fetchEvery):
		}
	}
}

// prepared reports whether the policies of a pod are known, and all that they mean, or why
// not.
func (c *Cluster) prepared(n name) (bool, error) {
	p := c.pods[n]
	if p == nil {
		return false, nil
	}
	for _, w := range []Watch{{Kind: Pods, Node: c.Name}, {Kind: Policies, Namespace: n.namespace}} {
		if !c.synced(w) {
			return false, c.blame(w)
		}
	}
	world := c.world()
	for _, k := range c.policies[n.namespace] {
		if !k.Pods.Matches(p.Labels) || time.Since(k.since) > hold {
			continue
		}
		for _, w := range k.needs.in(world) {
			if !c.synced(w) {
				return false, c.blame(w)
			}
		}
	}
	return true, nil
}

// blame is why a watch is not there yet.
func (c *Cluster) blame(w Watch) error {
	for _, s := range c.watches {
		if s.covers(w) && s.err != nil {
			return s.err
		}
	}
	return fmt.Errorf("%s are not known yet", w)
}

// errOther: the API has no such pod, which no waiting changes.
var errOther = errors.New("not the pod that the runtime starts")

// look asks the API for a pod that the watch does not show yet, or shows a former one of.
func (c *Cluster) look(ctx context.Context, n name, uid string) error {
	p, err := c.fetch(ctx, n)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", errOther, err)
	case err != nil:
		return err
	case p.own == nil:
		return fmt.Errorf("%w: pod %s/%s is not bound to node %q in the API; is --node-name right?", errOther, n.namespace, n.name, c.Name)
	case !p.known(uid):
		return fmt.Errorf("%w: pod %s/%s has UID %s in the API, and %s on the node: it was deleted meanwhile", errOther, n.namespace, n.name, p.own.uid, uid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.watches[Watch{Kind: Pods, Node: c.Name}]; s != nil && !s.ended {
		c.takePod(s, p)
		c.announce()
	}
	return nil
}

// outlive finds out why a policy is gone. One that was deleted with its namespace holds on
// as long as the node has pods of that (CVE-2024-7598).
func (c *Cluster) outlive(n name) {
	ctx := c.ctx
	go func() {
		for {
			ending, err := c.ending(ctx, n.namespace)
			c.mu.Lock()
			p := c.policies[n.namespace][n.name]
			if p == nil || !p.gone {
				c.mu.Unlock()
				return // it is back, or nobody's any more
			}
			if err == nil {
				if ending {
					c.Log.Info("a policy outlives its deletion: its namespace is going, and its pods are not gone yet", "policy", n.namespace+"/"+n.name)
				} else {
					delete(c.policies[n.namespace], n.name)
				}
				c.dirty = true
				c.poke()
				c.mu.Unlock()
				return
			}
			c.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-time.After(outliveEvery):
			}
		}
	}()
}
