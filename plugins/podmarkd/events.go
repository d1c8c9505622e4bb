package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/node"
)

// The reasons of events.
const (
	reasonPorts = "NodePortOutsideRange"
	reasonMask  = "FelixMaskDiffers"
	reasonDrift = "EndpointDrifted"
	reasonBits  = "MarkBitsShared"
)

const (
	// eventAgain is when an event is sent again for what still is so: the API server
	// forgets events after an hour.
	eventAgain = 30 * time.Minute
	// Of what comes and goes all the time, eventBurst events are sent, and then one in
	// five minutes.
	eventBurst = 10
	eventQPS   = 1. / 300
)

// events tells the API server what an operator of the cluster should know of this
// node, as events on its Node. They are sent in the background, and may be forbidden.
type events struct {
	client   *rest.RESTClient
	recorder record.EventRecorder
	node     *corev1.ObjectReference
	stop     func()
	pending  reminders
}

// newEvents sends events on the Node of that name.
func newEvents(api *rest.Config, nodeName string) (*events, error) {
	client, err := nodeports.CoreClient(api)
	if err != nil {
		return nil, err
	}
	b := record.NewBroadcaster(record.WithCorrelatorOptions(record.CorrelatorOptions{
		BurstSize: eventBurst,
		QPS:       eventQPS,
	}))
	b.StartRecordingToSink(eventSink{client})
	return &events{
		client:   client,
		recorder: b.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: "podmarkd", Host: nodeName}),
		// The kubelet's own events have the name for a UID, and kubectl describe finds them by it.
		node:    &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: nodeName, UID: types.UID(nodeName)},
		stop:    b.Shutdown,
		pending: reminders{},
	}, nil
}

// reconciled sends what follows from a reconciliation.
func (e *events) reconciled(l agent.Reconciliation) {
	for _, w := range warnings(l) {
		if e.pending.due(w, time.Now()) {
			e.recorder.Event(e.node, corev1.EventTypeWarning, w.reason, w.text)
		}
	}
}

// warning is an event that is to be; without a text it is not.
type warning struct{ reason, text string }

// warnings are what a reconciliation says of each reason.
func warnings(l agent.Reconciliation) []warning {
	ports, mask := warning{reason: reasonPorts}, warning{reason: reasonMask}
	if len(l.Ports.Outside) > 0 {
		ports.text = fmt.Sprintf("NodePorts %s are in use and in no range of %v, which is by %s. Where podmark enforces with iptables, pods are judged for them as for a process of the node. Give podmarkd the ranges of the API server.",
			someOf(l.Ports.Outside), l.Ports.Configured, l.Ports.Source)
	}
	if l.FelixMask != nil {
		mask.text = fmt.Sprintf("The mask of FelixConfiguration is %#x, and podmark's on this node is %#x.", *l.FelixMask, l.Mask)
	}
	drift := warning{reason: reasonDrift}
	if n := len(l.Repaired.EndpointDrift); n > 0 {
		drift.text = fmt.Sprintf("Links of pods are not as they were added: %s. These pods may have no network, and 'podmarkctl doctor' on the node says how to fix it.", firstOf(l.Repaired.EndpointDrift, n))
	}
	bits := warning{reason: reasonBits}
	for _, c := range l.Collisions {
		bits.text += c.String() + ". "
	}
	if bits.text = cut(bits.text); bits.text != "" {
		bits.text += "Give podmark a free iptablesMarkMask, or \"auto\"; podmarkctl doctor on the node has one."
	}
	return []warning{ports, mask, drift, bits}
}

// firstOf lists the first three of n drifts: an event has room for 1024 bytes, and a pod's
// name may have 316.
func firstOf(list []node.EndpointDrift, n int) string {
	const most = 3
	var texts []string
	for i, d := range list {
		if i == most || i > 0 && len(strings.Join(texts, "; ")) > 300 {
			texts = append(texts, fmt.Sprintf("and %d more", n-i))
			break
		}
		texts = append(texts, d.String())
	}
	return strings.Join(texts, "; ")
}

// cut shortens a text: an event has room for 1024 bytes.
func cut(text string) string {
	const most = 800
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "... "
}

// someOf lists ports, the first ten of them: an event has room for 1024 bytes.
func someOf(ports []uint16) string {
	const most = 10
	names := make([]string, 0, most+1)
	for i, p := range ports {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(ports)-most))
			break
		}
		names = append(names, fmt.Sprint(p))
	}
	return strings.Join(names, ", ")
}

// reminders are what was sent last, by reason, and when.
type reminders map[string]struct {
	text string
	at   time.Time
}

// due tells whether to send w now: when it is new, says something else, or was sent
// long ago.
func (r reminders) due(w warning, now time.Time) bool {
	last, sent := r[w.reason]
	switch {
	case w.text == "":
		delete(r, w.reason)
		return false
	case sent && last.text == w.text && now.Sub(last.at) < eventAgain:
		return false
	}
	last.text, last.at = w.text, now
	r[w.reason] = last
	return true
}

// eventSink writes events as client-go's own client does, without the types of every
// group.
type eventSink struct{ client *rest.RESTClient }

func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.do(s.client.Post().Namespace(e.Namespace).Body(e))
}

func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	return s.do(s.client.Put().Namespace(e.Namespace).Name(e.Name).Body(e))
}

func (s eventSink) Patch(e *corev1.Event, patch []byte) (*corev1.Event, error) {
	return s.do(s.client.Patch(types.StrategicMergePatchType).Namespace(e.Namespace).Name(e.Name).Body(patch))
}

func (s eventSink) do(request *rest.Request) (*corev1.Event, error) {
	var written corev1.Event
	return &written, request.Resource("events").Do(context.Background()).Into(&written)
}
