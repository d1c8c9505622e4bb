package cluster_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
)

// beat is how often live connections ask.
const beat = 20 * time.Millisecond

// protocols are those that every kernel has.
var protocols = []lab.Protocol{lab.TCP, lab.UDP}

// startAll starts live connections of all protocols and families.
func startAll(beats *lab.Beats, name string, from, to *lab.NS) {
	for _, p := range protocols {
		for _, f := range lab.Families {
			beats.Start(name, from, lab.Request{Protocol: p, To: to.At(f, port)})
		}
	}
}

// listenAll starts servers of all protocols.
func listenAll(spaces ...*lab.NS) {
	for _, ns := range spaces {
		for _, p := range protocols {
			ns.Listen(p, port)
		}
	}
}

// ofTeam are the labels of a namespace.
func ofTeam(name string) string { return ", labels: {team: " + name + "}" }

// elsewhere is a pod of another node.
func elsewhere(h *lab.Host, name string) lab.Manifest {
	return lab.Manifest{Name: h.Name, Labels: app(name), NodeName: "elsewhere", Phase: "Running", Addresses: addressesOf(h.NS)}
}

// Peers of a rule, as YAML.
const (
	fromClient  = "{podSelector: {matchLabels: {app: client}}}"
	fromOther   = "{podSelector: {matchLabels: {app: other}}}"
	fromFar     = "{podSelector: {matchLabels: {app: far}}}"
	fromFriends = "{namespaceSelector: {matchLabels: {team: friends}}}"
	fromOutside = `{ipBlock: {cidr: 192.168.0.0/16}}, {ipBlock: {cidr: "fd00:50::/32"}}`
)

// ingress are the rules of a policy, each of some peers.
func ingress(rules ...string) string {
	list := ""
	for _, r := range rules {
		list += "{from: [" + r + "]}, "
	}
	return "policyTypes: [Ingress], ingress: [" + list + "]"
}

// Whatever changes in the API, it stops the live connections that it forbids, lets go on
// those that it allows again, and every other one gets all its answers.
func TestLiveConnections(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply(namespace("default", "") + namespace("team", ofTeam("friends")))
		web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
		client := k.RunPod(lab.Manifest{Name: "client", Labels: app("client")})
		other := k.RunPod(lab.Manifest{Name: "other", Labels: app("other")})
		// With them the policies have pods whatever becomes of the server.
		k.RunPod(lab.Manifest{Name: "second", Labels: app("web")})
		k.RunPod(lab.Manifest{Name: "hermit", Labels: app("hermit")})
		k.Apply(policy("nobody", "hermit", "policyTypes: [Ingress]"))
		guest := k.RunPod(lab.Manifest{Namespace: "team", Name: "guest", Labels: app("guest")})
		outside := k.AddHost("outside", "192.168.50.1/24", "fd00:50::1/64")
		far := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64")
		k.Put(elsewhere(far, "far"))
		listenAll(web.NS, other.NS, far.NS)
		beats := k.Beats(beat)
		for _, ns := range []*lab.NS{client.NS, other.NS, guest.NS, outside.NS, far.NS} {
			startAll(beats, ns.Name+" to web", ns, web.NS)
		}
		startAll(beats, "client to other", client.NS, other.NS)
		startAll(beats, "client to far", client.NS, far.NS)
		startAll(beats, "node to web", k.NS, web.NS)
		beats.Are("no policy")

		steps := []struct {
			name   string
			change func()
			silent []string
		}{
			{"a policy comes that allows all of them", func() {
				k.Apply(policy("web", "web", ingress(fromClient+","+fromOther+","+fromFar, fromFriends, fromOutside)))
			}, nil},
			{"a peer here has another label", func() { k.Put(running(other, app("stranger"))) }, []string{"other to web"}},
			{"and its own again", func() { k.Put(running(other, app("other"))) }, nil},
			{"a peer elsewhere has another label", func() { k.Put(elsewhere(far, "stranger")) }, []string{"far to web"}},
			{"and its own again", func() { k.Put(elsewhere(far, "far")) }, nil},
			{"a namespace is no more selected", func() { k.Apply(namespace("team", ofTeam("foes"))) }, []string{"guest to web"}},
			{"and is again", func() { k.Apply(namespace("team", ofTeam("friends"))) }, nil},
			{"a peer is taken out of a rule", func() {
				k.Apply(policy("web", "web", ingress(fromClient+","+fromFar, fromFriends, fromOutside)))
			}, []string{"other to web"}},
			{"a rule is taken away", func() {
				k.Apply(policy("web", "web", ingress(fromClient+","+fromFar, fromFriends)))
			}, []string{"other to web", "outside to web"}},
			{"the server is no more selected", func() { k.Put(running(web, app("free"))) }, nil},
			{"and is again", func() { k.Put(running(web, app("web"))) }, []string{"other to web", "outside to web"}},
			{"a policy comes for the client", func() {
				k.Apply(policy("client", "client", "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]"))
			}, []string{"other to web", "outside to web", "client to other", "client to far"}},
			{"a policy comes that allows it more", func() {
				k.Apply(policy("more", "client", "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: far}}}]}]"))
			}, []string{"other to web", "outside to web", "client to other"}},
			{"a pod elsewhere is deleted", func() {
				if err := k.API.Delete(lab.APIPods, "default", far.Name); err != nil {
					t.Fatal(err)
				}
			}, []string{"other to web", "outside to web", "client to other", "client to far", "far to web"}},
			{"the policies are deleted", func() {
				for _, name := range []string{"more", "client", "web"} { // none forbids alone what all allow
					if err := k.API.Delete(lab.APIPolicies, "default", name); err != nil {
						t.Fatal(err)
					}
				}
			}, nil},
			{"the server gets a policy that allows one", func() {
				k.Apply(policy("web", "web", ingress(fromClient)))
			}, []string{"other to web", "guest to web", "outside to web", "far to web"}},
			{"the server goes over to a policy that allows nobody", func() {
				k.Put(running(web, app("hermit")))
			}, []string{"client to web", "other to web", "guest to web", "outside to web", "far to web"}},
		}
		for _, step := range steps {
			step.change()
			beats.Are(step.name, step.silent...)
		}
	})
}

// A connection that is silent for longer than its socket has room goes on asking, and resumes: also
// where the kernel would have given it up long ago, as it does on a machine that does much else.
func TestSilentForLong(t *testing.T) {
	t.Parallel()
	k := lab.NewNode(t, lab.Options{Backend: lab.NFTables, Plain: true}).Kubernetes(nil)
	k.Apply(namespace("default", ""))
	web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
	client := k.RunPod(lab.Manifest{Name: "client", Labels: app("client")})
	client.Sysctl("net/ipv4/tcp_wmem", "4096 4096 4096")
	client.Sysctl("net/ipv4/tcp_retries2", "2")
	listenAll(web.NS)
	beats := k.Beats(beat)
	startAll(beats, "client", client.NS, web.NS)
	beats.Are("at first")
	k.Apply(policy("web", "web", "policyTypes: [Ingress]"))
	for range 8 {
		beats.Are("it is forbidden", "client")
	}
	if err := k.API.Delete(lab.APIPolicies, "default", "web"); err != nil {
		t.Fatal(err)
	}
	beats.Are("it is allowed again")
}

// The numbers of epochs come round: with two bits there are three. Whoever loses its right
// is stopped each time, and who keeps it never misses an answer.
func TestEpochComesRound(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, b lab.Backend) {
		k := lab.NewNode(t, lab.Options{Backend: b, Plain: true}).Kubernetes(lab.Plugin{"iptablesMarkMask": "0x30000"})
		k.Apply(namespace("default", ""))
		k.Apply(policy("web", "web", ingress(fromClient+","+fromFar)))
		web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
		client := k.RunPod(lab.Manifest{Name: "client", Labels: app("client")})
		far, near := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64"), k.AddHost("near", "10.3.0.1/24", "fd00:10:3::1/64")
		k.Put(elsewhere(far, "far"))
		k.Put(elsewhere(near, "far"))
		listenAll(web.NS)
		to := lab.Request{Protocol: lab.TCP, To: web.At(lab.V4, port)}
		k.Eventually("far is let in", far.NS, to, lab.OK)
		k.Eventually("near is let in", near.NS, to, lab.OK)
		beats := k.Beats(beat)
		for _, ns := range []*lab.NS{client.NS, far.NS, near.NS} {
			startAll(beats, ns.Name, ns, web.NS)
		}
		beats.Are("at first")
		var numbers []uint32
		for range 4 {
			// The flows of one that is silent keep the number of their last packet.
			k.Put(elsewhere(far, "stranger"))
			beats.Are("far is out", "far")
			numbers = append(numbers, epoch(t, k))
			k.Put(elsewhere(near, "stranger"))
			beats.Are("both are out", "far", "near")
			numbers = append(numbers, epoch(t, k))
			k.Put(elsewhere(far, "far"))
			k.Put(elsewhere(near, "far"))
			beats.Are("both are in")
		}
		seen := map[uint32]int{}
		for i, n := range numbers {
			if i > 0 && n == numbers[i-1] {
				t.Errorf("the epochs were %v: one that takes away began none", numbers)
			}
			seen[n]++
		}
		if len(seen) != 3 {
			t.Errorf("the epochs were %v, want all of 1 to 3", numbers)
		}
	})
}

// epoch is the node's.
func epoch(t *testing.T, k *lab.Kubernetes) uint32 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.StateDir, "node.json"))
	if err != nil {
		t.Fatal(err)
	}
	var node struct{ Epoch uint32 }
	if err := json.Unmarshal(b, &node); err != nil {
		t.Fatal(err)
	}
	return node.Epoch
}
