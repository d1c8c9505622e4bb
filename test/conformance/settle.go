package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/podapi"
	"github.com/podmark/podmark/pkg/policy"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/wait"
)

// settleLimit is how long podmarkd may take to enforce what the API says: far more than it takes
// where it is slow, since only a test that fails waits for it.
const settleLimit = wait.Still

// changed notes that what is enforced may be behind the API.
func (c *Cluster) changed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsettled = true
}

// settle waits until what the API says is enforced. The interpreter would wait for a
// fixed time instead.
func (c *Cluster) settle() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unsettled {
		return c.problem
	}
	c.unsettled = false
	ctx, stop := context.WithTimeout(context.Background(), settleLimit)
	defer stop()
	c.problem = c.wait(ctx)
	return c.problem
}

// wait asks podmarkd as the plugin does. It answers after a round of changes that began
// after the question: a round with what it knows is in the kernel then. So it is asked
// until it knows everything, and once more.
func (c *Cluster) wait(ctx context.Context) error {
	pods, err := c.ClientSet.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	policies, err := c.ClientSet.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	namespaces, err := c.ClientSet.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	want, err := effective(policies.Items, pods.Items, namespaces.Items)
	if err != nil {
		return err
	}
	for known := false; !known; {
		said, kept, err := c.compare(want, namespaces.Items)
		if err == nil && said == kept {
			known, err = c.ask(ctx, pods.Items)
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("podmarkd does not enforce in %v what the API says (-API +podmarkd): %s", settleLimit, cmp.Diff(said, kept))
		}
		if !known {
			time.Sleep(5 * time.Millisecond) //nolint:forbidigo // asks again, until settleLimit
		}
	}
	_, err = c.ask(ctx, pods.Items)
	return err
}

// effective are the policies that select a pod, as podmarkd keeps them: each as one of its
// namespace's UID.
func effective(policies []networkingv1.NetworkPolicy, pods []corev1.Pod, namespaces []corev1.Namespace) ([]desired.Policy, error) {
	uids := map[string]string{}
	for _, n := range namespaces {
		uids[n.Name] = string(n.UID)
	}
	var out []desired.Policy
	for i := range policies {
		p, err := policy.Object(&policies[i])
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(pods, func(pod corev1.Pod) bool { return pod.Namespace == p.Namespace && p.Pods.Matches(pod.Labels) }) {
			out = append(out, p.Of(uids[p.Namespace]))
		}
	}
	return out, nil
}

// compare writes out the policies, and the labels and UIDs of namespaces, that there are, and
// those that podmarkd keeps.
func (c *Cluster) compare(want []desired.Policy, namespaces []corev1.Namespace) (said, kept string, err error) {
	var got desired.Policies
	err = state.ReadJSON(filepath.Join(c.node.StateDir, state.PoliciesFile), &got)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	wanted := desired.Policies{Policies: want, Listed: got.Listed}
	// It knows only the labels of namespaces that some policy asks for.
	if got.Namespaces != nil {
		wanted.Namespaces = map[string]map[string]string{}
		for _, n := range namespaces {
			if _, known := got.Namespaces[n.Name]; known {
				wanted.Namespaces[n.Name] = n.Labels
			}
		}
	}
	if got.NamespaceUIDs != nil { // those of pods that it has
		wanted.NamespaceUIDs = map[string]string{}
		for _, n := range namespaces {
			if _, known := got.NamespaceUIDs[n.Name]; known {
				wanted.NamespaceUIDs[n.Name] = string(n.UID)
			}
		}
	}
	w, errWanted := json.Marshal(wanted)
	g, errGot := json.Marshal(got)
	return string(w), string(g), errors.Join(errWanted, errGot)
}

// ask asks about every pod, and reports whether the labels are those that it has.
func (c *Cluster) ask(ctx context.Context, pods []corev1.Pod) (bool, error) {
	var asking sync.WaitGroup
	known, errs := make([]bool, len(pods)), make([]error, len(pods))
	for i, p := range pods {
		asking.Go(func() {
			var a podapi.Response
			a, errs[i] = podapi.Get(ctx, filepath.Join(c.node.StateDir, "podmarkd.sock"), podapi.Request{
				Namespace: p.Namespace, Pod: p.Name, UID: string(p.UID),
				Mask: 0xffff0000, Backend: config.Backend(c.Backend.Key),
			})
			known[i] = maps.Equal(a.Labels, p.Labels)
		})
	}
	asking.Wait()
	return !slices.Contains(known, false), errors.Join(errs...)
}
