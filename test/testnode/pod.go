package testnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/wait"
)

// Conf is a network configuration, or some keys of one.
type Conf = map[string]any

// LockTimeout is how long what a test starts waits for the node's lock: the longest that there is. Many
// may wait for it, on a machine that is busy with other things.
const LockTimeout = 10 * time.Minute

// Conf is podmark's entry on the node; later keys replace earlier ones, and a nil value removes
// its key.
func (n *Node) Conf(more ...Conf) Conf {
	c := Conf{
		"cniVersion": "1.1.0", "name": "net", "type": "podmark", "stateDir": n.Dir, "policy": "files",
		"lockTimeoutSeconds": LockTimeout.Seconds(),
	}
	if n.Backend.Key != "" {
		c["backend"] = n.Backend.Key
	}
	for _, m := range append([]Conf{n.Keys}, more...) {
		maps.Copy(c, m)
	}
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// Reply is what came of one call of the plugin.
type Reply struct {
	Output
	// Err is the error on stdout; nil when the plugin exited with 0 or was killed.
	Err *types.Error
}

// Code is the reply's CNI error code, 0 for success.
func (r Reply) Code() uint {
	if r.Err == nil {
		return 0
	}
	return r.Err.Code
}

// Text is all that the error says.
func (r Reply) Text() string {
	if r.Err == nil {
		return ""
	}
	return r.Err.Msg + "; " + r.Err.Details
}

// OK fails the test unless the call succeeded.
func (r Reply) OK(t testing.TB) Reply {
	t.Helper()
	if r.Err != nil || r.Exit() != 0 {
		t.Fatalf("plugin ended with %v: %d: %s\n%s", r.State, r.Code(), r.Text(), r.Stderr)
	}
	return r
}

// Fails fails the test unless the call ended with code and an error that says all of words.
func (r Reply) Fails(t testing.TB, code uint, words ...string) {
	t.Helper()
	if r.Code() != code {
		t.Errorf("code is %d (%s), want %d", r.Code(), r.Text(), code)
	}
	for _, w := range words {
		if !strings.Contains(r.Text(), w) {
			t.Errorf("error %q does not say %q", r.Text(), w)
		}
	}
}

// Call runs the plugin on the calling thread. Whatever a failed call writes to stdout must be one
// CNI error and nothing else.
func (n *Node) Call(verb string, stdin any, env ...string) Reply {
	n.T.Helper()
	in, isText := stdin.(string)
	if !isText {
		b, err := json.Marshal(stdin)
		if err != nil {
			n.T.Fatal(err)
		}
		in = string(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait.Still)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(n.Programs, "podmark"))
	cmd.Env = append([]string{"CNI_COMMAND=" + verb, "CNI_PATH=" + Programs(n.T), "PATH=" + n.Path}, env...)
	o, err := output(cmd, in)
	if err != nil {
		n.T.Fatal(err)
	}
	r := Reply{Output: o}
	if !o.State.Success() && !o.Killed() {
		r.Err = &types.Error{}
		d := json.NewDecoder(strings.NewReader(o.Stdout))
		d.DisallowUnknownFields()
		if err := d.Decode(r.Err); err != nil || d.More() {
			n.T.Fatalf("%s ended with %v and stdout is not one CNI error: %v\n%s\n%s", verb, o.State, err, o.Stdout, o.Stderr)
		}
	}
	return r
}

// Pod is a container's namespace with an interface as ptp makes it: a veth of the node's.
type Pod struct {
	Space
	Node         *Node
	ID           string // CNI_CONTAINERID
	Name         string // of the Pod in namespace default
	IfName, Veth string
	V4, V6       string
	Labels       map[string]string
}

// NewPod makes a pod that podmark does not know yet, in a namespace. Its interface is off, and its
// addresses are not on it: podmark goes by what it is told. See [Pod.Connect].
func (n *Node) NewPod(in Space) *Pod { n.T.Helper(); return n.NewPodAs(in, "eth0") }

// NewPodAs is [Node.NewPod] with another name of the interface.
func (n *Node) NewPodAs(in Space, ifName string) *Pod {
	n.T.Helper()
	number := len(n.Pods) + 1
	p := &Pod{
		Space: in, Node: n, IfName: ifName,
		ID: fmt.Sprintf("container-%d", number), Name: fmt.Sprintf("web-%d", number), Veth: fmt.Sprintf("veth%d", number),
		V4: fmt.Sprintf("10.1.0.%d", number+1), V6: fmt.Sprintf("fd00:10::%x", number+1),
	}
	if err := Veth(p.Veth, in, ifName); err != nil {
		n.T.Fatal(err)
	}
	n.Pods = append(n.Pods, p)
	return p
}

// Connect switches the pod's interface on, with its addresses, and routes to it and from it. The
// node's routes to the addresses lead to this pod from now on.
func (p *Pod) Connect() {
	p.Node.T.Helper()
	err := errors.Join(
		Up(p.Veth),
		Address(p.Veth, "10.1.0.1/32"), Address(p.Veth, "fd00:10::1/128"),
		Route(p.Veth, p.V4+"/32", ""), Route(p.Veth, p.V6+"/128", ""),
	)
	if err != nil {
		p.Node.T.Fatal(err)
	}
	p.Do(p.Node.T, func() error {
		return errors.Join(
			Up(p.IfName),
			Address(p.IfName, p.V4+"/32"), Address(p.IfName, p.V6+"/128"),
			Route(p.IfName, "10.1.0.1/32", ""), Route(p.IfName, "fd00:10::1/128", ""),
			Route(p.IfName, "0.0.0.0/0", "10.1.0.1"), Route(p.IfName, "::/0", "fd00:10::1"),
		)
	})
}

// PrevResult is what ptp returns, in spec version 1.
func (p *Pod) PrevResult() Conf {
	return Conf{
		"cniVersion": "1.1.0",
		"interfaces": []Conf{{"name": p.Veth}, {"name": p.IfName, "sandbox": p.Path}},
		"ips": []Conf{
			{"address": p.V4 + "/32", "gateway": "10.1.0.1", "interface": 1},
			{"address": p.V6 + "/128", "gateway": "fd00:10::1", "interface": 1},
		},
	}
}

// Env is the environment of a call about the pod.
func (p *Pod) Env() []string {
	return []string{
		"CNI_CONTAINERID=" + p.ID, "CNI_NETNS=" + p.Path, "CNI_IFNAME=" + p.IfName,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.Name,
	}
}

// Conf is the node's configuration with the pod's prevResult and labels.
func (p *Pod) Conf(more ...Conf) Conf {
	return p.Node.Conf(append([]Conf{{
		"prevResult": p.PrevResult(),
		"args":       Conf{"cni": Conf{"labels": p.Labels}},
	}}, more...)...)
}

// Add runs ADD.
func (p *Pod) Add(more ...Conf) Reply {
	p.Node.T.Helper()
	return p.Node.Call("ADD", p.Conf(more...), p.Env()...)
}

// Check runs CHECK.
func (p *Pod) Check(more ...Conf) Reply {
	p.Node.T.Helper()
	return p.Node.Call("CHECK", p.Conf(more...), p.Env()...)
}

// Del runs DEL as most runtimes do: without prevResult.
func (p *Pod) Del(more ...Conf) Reply {
	p.Node.T.Helper()
	return p.Node.Call("DEL", p.Node.Conf(more...), p.Env()...)
}

// Unlink deletes the pod's interface, as the main plugin's DEL does.
func (p *Pod) Unlink() {
	p.Node.T.Helper()
	link, err := netlink.LinkByName(p.Veth)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		p.Node.T.Fatalf("deleting %s: %v", p.Veth, err)
	}
}

// Key is that of the pod's record.
func (p *Pod) Key() attachment.Key {
	return attachment.Key{Network: "net", ContainerID: p.ID, IfName: p.IfName}
}

// RecordFile is where the record is.
func (p *Pod) RecordFile() string {
	return filepath.Join(p.Node.Dir, "attachments", p.Key().Hash())
}

// Record reads what podmark knows of the pod.
func (p *Pod) Record(t testing.TB) attachment.Record {
	t.Helper()
	r, err := state.At(p.Node.Dir).Get(p.Key())
	if err != nil {
		t.Fatalf("record of %s: %v", p.ID, err)
	}
	return r
}
