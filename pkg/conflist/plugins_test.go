package conflist_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/conflist"
)

// What an ADD behind each main plugin could come to.
func TestBehind(t *testing.T) {
	const ipam = `, "ipam": {"type": "host-local"}`
	for _, tt := range []struct {
		plugins string
		warns   bool
		err     error
	}{
		{`{"type": "bridge"` + ipam + `}`, false, nil},
		{`{"type": "ptp"` + ipam + `}, {"type": "portmap"}`, false, nil},
		{`{"type": "flannel"}`, false, nil},
		{`{"type": "flannel", "delegate": {"isDefaultGateway": true}}`, false, nil},
		{`{"type": "calico"}`, false, nil},
		{`{"type": "aws-cni"}`, false, nil},
		{`{"type": "azure-vnet", "ipam": {"type": "azure-cns"}}`, false, nil},
		{`{"type": "bridge", "vlan": 0` + ipam + `}, {"type": "podmark"}`, false, nil},
		{`{"type": "somebody's"}`, true, nil},
		{`{"type": "flannel", "delegate": {"type": "somebody's"}}`, true, nil},
		{`{"type": "podmark"}`, false, nil},
		{`{"type": "bridge"}`, false, conflist.ErrMain},
		{`{"type": "ptp", "ipam": {}}`, false, conflist.ErrMain},
		{`{"type": "bridge", "vlan": 7` + ipam + `}`, false, conflist.ErrMain},
		{`{"type": "bridge", "vlanTrunk": [{"id": 7}]` + ipam + `}`, false, conflist.ErrMain},
		{`{"type": "flannel", "delegate": {"type": "ipvlan"}}`, false, conflist.ErrMain},
		{`{"type": "macvlan"` + ipam + `}`, false, conflist.ErrMain},
		{`{"type": "ipvlan"` + ipam + `}`, false, conflist.ErrMain},
		{`{"type": "host-device"` + ipam + `}`, false, conflist.ErrMain},
		{`{"type": "sriov"` + ipam + `}`, false, conflist.ErrMain},
		{`{"type": "loopback"}`, false, conflist.ErrMain},
		{`{"type": "portmap"}`, false, conflist.ErrMain},
		{`{"type": "ovn-k8s-cni-overlay"}`, false, conflist.ErrMain},
		{`{"type": "antrea"}`, false, conflist.ErrMain},
		{`{"type": "cilium-cni"}`, false, conflist.ErrMain},
		{`{"type": "multus"}`, false, conflist.ErrMain},
		{`{"type": "podmark"}, {"type": "macvlan"}`, false, conflist.ErrMain},
	} {
		warning, err := conflist.Behind(fmt.Appendf(nil, `{"name": "net", "plugins": [%s]}`, tt.plugins))
		if !errors.Is(err, tt.err) || (warning != "") != tt.warns {
			t.Errorf("%s: %q, %v", tt.plugins, warning, err)
		}
	}
	if warning, err := conflist.Behind([]byte(`{"name": "net"}`)); warning != "" || err != nil {
		t.Errorf("all plugins in files of their own: %q, %v", warning, err)
	}
	if _, err := conflist.Behind([]byte("{")); !errors.Is(err, conflist.ErrSyntax) {
		t.Error(err)
	}
}

func TestPrograms(t *testing.T) {
	for _, tt := range []struct {
		plugins string
		want    []string
	}{
		{`{"type": "ptp", "ipam": {"type": "host-local"}}, {"type": "portmap"}, {"type": "podmark"}`, []string{"ptp", "host-local", "portmap"}},
		{`{"type": "bridge", "ipam": {"type": "static"}}`, []string{"bridge", "static"}},
		{`{"type": "flannel"}, {"type": "portmap"}`, []string{"flannel", "bridge", "portmap"}},
		{`{"type": "flannel", "delegate": {"type": "ptp"}}`, []string{"flannel", "ptp"}},
		{`{"type": "azure-vnet", "ipam": {"type": "azure-cns"}}`, []string{"azure-vnet"}},
		{`{"type": "calico", "ipam": {"type": "calico-ipam"}}, {"type": "calico"}`, []string{"calico"}},
	} {
		got, err := conflist.Programs(fmt.Appendf(nil, `{"name": "net", "plugins": [%s]}`, tt.plugins), "podmark")
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", tt.plugins, err, diff)
		}
	}
}
