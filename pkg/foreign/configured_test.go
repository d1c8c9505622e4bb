package foreign_test

import (
	"testing"

	"github.com/podmark/podmark/pkg/foreign"
)

// What a network is configured to have will be in use, wherever it stands.
func TestConfigured(t *testing.T) {
	for conf, want := range map[string]uint32{
		`{"name": "net", "plugins": [{"type": "ptp"}, {"type": "portmap"}, {"type": "podmark", "iptablesMarkMask": "0xffff0000"}]}`: 0x2000,
		`{"plugins": [{"type": "ptp"}, {"type": "portmap", "markMasqBit": 30}]}`:                                                    0x40002000,
		`{"plugins": [{"type": "portmap", "markMasqBit": 32}, {"type": "portmap", "markMasqBit": -1}]}`:                             0x2000,
		`{"type": "calico"}`:    0xffff0000,
		`{"type": "weave-net"}`: 0x60000,
		`{"type": "multus", "delegates": [{"plugins": [{"type": "cilium-cni"}]}]}`: 0xffff0fff,
		`{"plugins": [{"type": "aws-cni"}, {"type": "istio-cni"}]}`:                0xfff,
		`{"plugins": [{"type": "ptp"}]}`:                                           0,
		`[{"type": 7}, "calico"]`:                                                  0,
		`{`:                                                                        0,
	} {
		if got := foreign.Configured([]byte(conf)); got != want {
			t.Errorf("%s: %#x, want %#x", conf, got, want)
		}
	}
	free, ok := foreign.Report{Reserved: foreign.Configured([]byte(`{"type": "weave-net", "plugins": [{"type": "portmap", "markMasqBit": 31}]}`))}.Free()
	if !ok || free.Mask()&0x80062000 != 0 {
		t.Errorf("free: %#x", free.Mask())
	}
}
