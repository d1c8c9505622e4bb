package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/podmark/podmark/pkg/agent/kube/view"
)

// What is wrong with a policy is told when it has been for a while, and again after half an
// hour. However many there are, events stay few, and each gets its turn.
func TestNotices(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	one := view.Trouble{Namespace: "shop", Policy: "web", UID: "1", Reason: view.ReasonForbidden, Since: start}
	var n notices
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{0, 0}, {9 * time.Second, 0}, {10 * time.Second, 1}, {20 * time.Second, 0}, {30 * time.Minute, 0}, {30*time.Minute + 10*time.Second, 1}, {31 * time.Minute, 0}} {
		if got := n.next([]view.Trouble{one}, start.Add(tt.after)); len(got) != tt.want {
			t.Errorf("after %s: %d are told, want %d", tt.after, len(got), tt.want)
		}
	}
	other := one
	other.Reason = view.ReasonTooLarge
	if got := n.next([]view.Trouble{one, other}, start.Add(32*time.Minute)); len(got) != 1 || got[0] != other {
		t.Errorf("of another reason: %v", got)
	}
	var many []view.Trouble
	for i := range 60 {
		many = append(many, view.Trouble{Namespace: "shop", Policy: fmt.Sprint(i), Reason: view.ReasonRefused, Since: start})
	}
	n = notices{}
	told := 0
	for s := time.Duration(10); s <= 600; s += 10 {
		told += len(n.next(many, start.Add(s*time.Second)))
		if most := policyEventBurst + int(s/10); told > most {
			t.Fatalf("after %d s %d are told, want %d at most", s, told, most)
		}
	}
	if told != len(many) {
		t.Errorf("%d of %d are told", told, len(many))
	}
	for i := range 1000 {
		n.next([]view.Trouble{{Policy: fmt.Sprint(i), Since: start}}, start.Add(time.Duration(i)*time.Hour))
	}
	if len(n.told) > 1 {
		t.Errorf("%d are remembered", len(n.told))
	}
}

// All nodes make one event of a trouble, which the API server accepts.
func TestPolicyEvent(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, tt := range []struct {
		t    view.Trouble
		kind string
		of   string
	}{
		{view.Trouble{Namespace: "shop", Policy: strings.Repeat("w", 253), UID: "1", Reason: view.ReasonForbidden, Text: strings.Repeat("x\n", 5000)}, "NetworkPolicy", strings.Repeat("w", 253)},
		{view.Trouble{Namespace: "shop", Reason: view.ReasonNoAnswer}, "Namespace", "shop"},
	} {
		e := policyEvent(tt.t, "node", now)
		if again := policyEvent(tt.t, "another", now.Add(time.Hour)); again.Name != e.Name {
			t.Errorf("another node calls it %s, and not %s", again.Name, e.Name)
		}
		if wrong := validation.IsDNS1123Subdomain(e.Name); len(wrong) > 0 {
			t.Errorf("name %q: %v", e.Name, wrong)
		}
		if o := e.InvolvedObject; e.Namespace != "shop" || o.Namespace != "shop" || o.Kind != tt.kind || o.Name != tt.of || string(o.UID) != tt.t.UID || e.Reason != "Policy"+string(tt.t.Reason) || len(e.Message) > 1024 || strings.Contains(e.Message, "\n") {
			t.Errorf("event %+v", e)
		}
	}
}

// What finds no room while the API server is slow is told at the next reconciliation.
func TestPolicyEventsWait(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	list := []view.Trouble{
		{Namespace: "shop", Policy: "web", UID: "1", Reason: view.ReasonForbidden, Since: start},
		{Namespace: "shop", Policy: "db", UID: "2", Reason: view.ReasonForbidden, Since: start},
	}
	e := &policyEvents{node: "node", queue: make(chan corev1.Event, 1)}
	for i, want := range []string{"web", "db"} {
		e.tell(list, start.Add(policyEventAfter+time.Duration(i)*time.Second))
		if event := <-e.queue; event.InvolvedObject.Name != want {
			t.Errorf("event %d is about %s, want %s", i, event.InvolvedObject.Name, want)
		}
	}
}
