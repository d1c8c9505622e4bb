package nodeports_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/desired"
)

// valid fails for a range that is none.
func valid(t *testing.T, list ...desired.PortRange) {
	t.Helper()
	for _, r := range list {
		if r.First == 0 || r.First > r.Last {
			t.Errorf("got range %v", r)
		}
	}
}

// validServer fails for more than one answer, and for none that is right.
func validServer(t *testing.T, server *nodeports.APIServer, err error) {
	t.Helper()
	if server == nil {
		return
	}
	if err != nil {
		t.Errorf("got both %v and %v", server, err)
	}
	valid(t, server.Range)
}

func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{"", "nodePortRanges: [80, '81', 1-2, 3:4]\nnodePortMode: exact", "nodePortRanges: &a [*a]", `{"nodePortRanges":null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := nodeports.ParseConfig(data)
		if err != nil && (c.Ranges != nil || c.Mode != "") {
			t.Errorf("got both %v and %v", c, err)
		}
		if c.Mode != "" && c.Mode != agent.PortsExact && c.Mode != agent.PortsRange {
			t.Errorf("got mode %q", c.Mode)
		}
		valid(t, c.Ranges...)
	})
}

func FuzzParseFelix(f *testing.F) {
	for _, seed := range []string{`{}`, `[80,"30000:32767"]`, `"1:2"`, `4278190080`, `-1`, `1e30`, `[[{}]]`} {
		f.Add([]byte(seed), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, portRanges, mask []byte) {
		u := &unstructured.Unstructured{}
		text := `{"apiVersion":"v1","kind":"F","spec":{"kubeNodePortRanges":` + string(portRanges) + `,"nftablesMode":"Enabled","nftablesMarkMask":` + string(mask) + `}}`
		if err := u.UnmarshalJSON([]byte(text)); err != nil {
			t.Skip()
		}
		c, _ := nodeports.ParseFelix(u)
		valid(t, c.Ranges...)
	})
}

func FuzzParseArguments(f *testing.F) {
	for _, seed := range []string{"", "kube-apiserver\n--etcd-servers=x", "--service-node-port-range\n1-2", "--service_node_port_range=1+9223372036854775807", "sh\n-c\nexec kube-apiserver --service-node-port-range=\"1-2\""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, lines string) {
		server, err := nodeports.ParseArguments(strings.Split(lines, "\n"))
		validServer(t, server, err)
	})
}

func FuzzParseManifest(f *testing.F) {
	for _, seed := range []string{"", kubeadm, withFlag("20000-22767"), withFlag("5-4"), `{"kind":"Pod","spec":{"containers":[{"command":["kube-apiserver"]}]}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		server, err := nodeports.ParseManifest(data)
		validServer(t, server, err)
	})
}
