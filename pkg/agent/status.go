package agent

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
)

// Status is what the daemon has to say about itself and the node, in daemon.json of
// the state directory.
type Status struct {
	// PID is the process in podmarkd's own PID namespace, and no sign that it lives: that is
	// state.Store.DaemonLives.
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Interval is the longest that passes between two reconciliations, in seconds.
	Interval float64 `json:"intervalSeconds"`
	// LastReconcile is when the node was last reconciled, and Trigger what caused that.
	LastReconcile time.Time `json:"lastReconcile"`
	Trigger       Trigger   `json:"trigger"`
	// Error is what went wrong in that; empty when nothing did.
	Error string `json:"error,omitempty"`
	// Idle is set where podmark has never run.
	Idle bool `json:"idle"`
	// Mode is current, whenever LastReconcile was.
	Mode  Mode     `json:"mode"`
	Ports Decision `json:"ports"`
	// FelixMask is the mask of FelixConfiguration, in hexadecimal, where it
	// is not the node's.
	FelixMask string `json:"felixMask,omitempty"`
	// Collisions are those who write bits of the mask.
	Collisions []string `json:"collisions,omitempty"`
	// ForeignError is what of the rules of others could not be read.
	ForeignError string `json:"foreignError,omitempty"`
	// Sysctls are what the node needs of kernel parameters.
	Sysctls  []Sysctl     `json:"sysctls,omitempty"`
	Policies PolicyStatus `json:"policies"`
	// NotInstalled is why the next pod starts without podmark, or without what was asked for, or not at
	// all; empty where it does not.
	NotInstalled string `json:"notInstalled,omitempty"`
	// Coverage is who of the node's pods was policed at the last reconciliation.
	Coverage desired.Coverage `json:"coverage"`
	// Unmarked are the pods that had started without podmark, "namespace/name" by containers;
	// null where the runtime's cache has not been read.
	Unmarked map[string]string `json:"unmarked"`
	// Drift is what others have done to links of endpoints and not undone.
	Drift []node.EndpointDrift `json:"drift,omitempty"`
	// Alterable is what is lacking to keep what has been judged as it is.
	Alterable string `json:"checksumsLack,omitempty"`
	// Repairs counts what was missing in the kernel since the start.
	Repairs    int     `json:"repairs"`
	LastRepair *Repair `json:"lastRepair,omitempty"`
}

// PolicySource is where the node's policies come from.
type PolicySource string

// The sources.
const (
	FromNobody     PolicySource = "none" // podmarkctl applies them, or nobody
	FromDirectory  PolicySource = "directory"
	FromKubernetes PolicySource = "kubernetes"
)

// PolicyStatus is how it goes with the policies that podmarkd follows.
type PolicyStatus struct {
	Source PolicySource `json:"source"`
	// Socket is where the plugin's questions are answered.
	Socket string `json:"socket"`
	// Synced is whether what the source says is in force, and Since when that has been so,
	// or has not; Error is why it is not.
	Synced bool      `json:"synced"`
	Since  time.Time `json:"since"`
	Error  string    `json:"error,omitempty"`
	// Policies are in force. Watches of the API, and the Pods that these show, are how
	// many there are.
	Policies int `json:"policies"`
	Watches  int `json:"watches"`
	Pods     int `json:"pods"`
	// Noted is how many manifests of the directory count otherwise than they are written, and
	// Notes are the first of them.
	Noted int      `json:"noted,omitempty"`
	Notes []string `json:"notes,omitempty"`
	// UnsyncedPolicies policies are not in force as the API has them, and Troubles are some of them.
	UnsyncedPolicies int             `json:"unsynced,omitempty"`
	Troubles         []PolicyTrouble `json:"unsyncedPolicies,omitempty"`
}

// PolicyTrouble is a policy that is not in force as the API has it. What is not known of it
// allows nobody.
type PolicyTrouble struct {
	Namespace string `json:"namespace"`
	// Policy is empty where the policies of the namespace are not known: what was in force
	// there still is.
	Policy string `json:"policy,omitempty"`
	// Reason is one of NoAnswer, Failing, Forbidden, Refused and TooLarge.
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Text   string    `json:"text"`
}

// Of is what is in trouble: "shop/web", or "all of shop".
func (t PolicyTrouble) Of() string {
	if t.Policy == "" {
		return "all of " + t.Namespace
	}
	return t.Namespace + "/" + t.Policy
}

// After is the status when it was before until now.
func (p PolicyStatus) After(before PolicyStatus, now time.Time) PolicyStatus {
	p.Synced = p.Error == ""
	if p.Since = now; p.Source == before.Source && p.Synced == before.Synced {
		p.Since = before.Since
	}
	return p
}

// Repair is one time that something was missing in the kernel.
type Repair struct {
	Time  time.Time  `json:"time"`
	Kind  drift.Kind `json:"kind"`
	Drift string     `json:"drift"`
}

// After is the status after one more reconciliation.
func (s Status) After(l Reconciliation) Status {
	s.LastReconcile, s.Trigger, s.Idle, s.Ports, s.Sysctls, s.Error = l.Time, l.Trigger, l.Idle, l.Ports, l.Sysctls, ""
	if err := l.Problem(); err != nil {
		s.Error = err.Error()
	}
	if s.FelixMask = ""; l.FelixMask != nil {
		s.FelixMask = fmt.Sprintf("%#x", *l.FelixMask)
	}
	if l.ApplyErr == nil || len(l.Repaired.EndpointDrift) > 0 { // else it is not known
		s.Drift = l.Repaired.EndpointDrift
	}
	if l.ApplyErr == nil {
		s.Alterable = l.Repaired.Alterable
	}
	s.Coverage, s.Unmarked = l.Coverage, l.Unmarked
	if s.NotInstalled = ""; l.NotInstalled != nil {
		s.NotInstalled = l.NotInstalled.Error()
	}
	s.Collisions = nil
	for _, c := range l.Collisions {
		s.Collisions = append(s.Collisions, c.String())
	}
	if s.ForeignError = ""; l.ForeignErr != nil {
		s.ForeignError = l.ForeignErr.Error()
	}
	if l.Repaired.Drift != nil {
		s.Repairs++
		s.LastRepair = &Repair{l.Time, drift.KindOf(l.Repaired.Drift), l.Repaired.Drift.Error()}
	}
	return s
}

// Stale reports whether the daemon should have reconciled the node again by now:
// three times over, and half a minute for a busy one.
func (s Status) Stale(now time.Time) bool {
	return now.Sub(s.LastReconcile) > time.Duration(3*s.Interval*float64(time.Second))+30*time.Second
}

// Write puts the status into the state directory.
func (s Status) Write(store state.Store) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding the status: %w", err)
	}
	return store.Write(state.DaemonFile, b)
}

// ReadStatus reads what the daemon wrote last; fs.ErrNotExist where none ever ran.
func ReadStatus(store state.Store) (Status, error) {
	var s Status
	return s, state.ReadJSON(filepath.Join(store.Dir(), state.DaemonFile), &s)
}
