package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/agent/kube"
	"github.com/podmark/podmark/pkg/agent/kube/view"
)

const (
	// policyEventAfter is how long a policy must be in trouble for an event.
	policyEventAfter = 10 * time.Second
	// Of all namespaces, policyEventBurst events are sent at once, and then one in
	// policyEventEvery.
	policyEventBurst = 10
	policyEventEvery = 10 * time.Second
	// policyEventLimit is how long the API server may take for one.
	policyEventLimit = 10 * time.Second
)

// policyEvents tells whoever made a policy why it is not in force, as an event in its
// namespace. All nodes give it the same name, so that there is one, whoever comes first.
// Events are sent in the background, and may be forbidden.
type policyEvents struct {
	node  string
	due   notices
	queue chan corev1.Event
	stop  func()
}

func newPolicyEvents(client *rest.RESTClient, node string, log *slog.Logger) *policyEvents {
	ctx, stop := context.WithCancel(context.Background())
	e := &policyEvents{node: node, queue: make(chan corev1.Event, policyEventBurst), stop: stop}
	go func() {
		forbidden := false
		for {
			select {
			case <-ctx.Done():
				return
			case event := <-e.queue:
				err := create(ctx, client, &event)
				if apierrors.IsForbidden(err) && !forbidden {
					forbidden = true
					log.Warn("Cannot create events about policies that are not in force: grant podmarkd the right to create events", "error", kube.Line(err.Error()))
				}
			}
		}
	}()
	return e
}

func create(ctx context.Context, client *rest.RESTClient, event *corev1.Event) error {
	ctx, stop := context.WithTimeout(ctx, policyEventLimit)
	defer stop()
	return client.Post().Namespace(event.Namespace).Resource("events").Body(event).Do(ctx).Error()
}

// tell sends what is due of troubles by namespace. It waits for nobody.
func (e *policyEvents) tell(list []view.Trouble, now time.Time) {
	for _, t := range e.due.next(view.Foremost(list), now) {
		select {
		case e.queue <- policyEvent(t, e.node, now):
		default: // the API server is slow: it is due again at the next reconciliation
			delete(e.due.told, policyEventName(t))
		}
	}
}

// policyEvent is what is sent of a trouble.
func policyEvent(t view.Trouble, node string, now time.Time) corev1.Event {
	of := corev1.ObjectReference{
		APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy",
		Namespace: t.Namespace, Name: t.Policy, UID: types.UID(t.UID),
	}
	text := "This policy is not in force as it is here, and what is not known of it allows nothing: "
	if t.Policy == "" {
		of = corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Namespace: t.Namespace, Name: t.Namespace}
		text = "The policies of this namespace are not known. Those that were in force still are, and no pod starts: "
	}
	when := metav1.NewTime(now)
	return corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: t.Namespace, Name: policyEventName(t)},
		InvolvedObject: of, Type: corev1.EventTypeWarning, Reason: "Policy" + string(t.Reason),
		Message: text + kube.Line(t.Text),
		Source:  corev1.EventSource{Component: "podmarkd", Host: node}, FirstTimestamp: when, LastTimestamp: when, Count: 1,
	}
}

// policyEventName tells a trouble from others: by the UID of the policy, and the reason.
func policyEventName(t view.Trouble) string {
	sum := sha256.Sum256([]byte(t.Namespace + "/" + t.Policy + "/" + t.UID))
	return fmt.Sprintf("podmark-policy-%x-%s", sum[:8], strings.ToLower(string(t.Reason)))
}

// notices are when each was told last, by the name of its event, and how many may be told
// now.
type notices struct {
	told   map[string]time.Time
	tokens float64
	at     time.Time
}

// next are those that are to be told now: long enough true, not told for half an hour, and
// no more than may be at once. What is left waits for its turn.
func (n *notices) next(list []view.Trouble, now time.Time) (due []view.Trouble) {
	if n.told == nil {
		n.told, n.tokens = map[string]time.Time{}, policyEventBurst
	} else {
		n.tokens = min(policyEventBurst, n.tokens+now.Sub(n.at).Seconds()/policyEventEvery.Seconds())
	}
	n.at = now
	maps.DeleteFunc(n.told, func(_ string, at time.Time) bool { return now.Sub(at) >= eventAgain })
	for _, t := range list {
		name := policyEventName(t)
		if _, told := n.told[name]; told || now.Sub(t.Since) < policyEventAfter || n.tokens < 1 {
			continue
		}
		n.tokens--
		n.told[name] = now
		due = append(due, t)
	}
	return due
}
