package main_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/testnode"
)

// enforced is what 'podmarkctl status' says of tunnels and the epoch.
type enforced struct {
	Epoch   uint32          `json:"epoch"`
	Tunnels desired.Tunnels `json:"tunnels"`
}

func (h *host) enforced() (e enforced) {
	h.T.Helper()
	if err := json.Unmarshal([]byte(h.Ctl("", "status", "-o", "json")), &e); err != nil {
		h.T.Fatal(err)
	}
	return e
}

func (e enforced) has(port uint16) bool { return slices.Contains(e.Tunnels.UDPPorts, port) }

// A tunnel that the node gets is one that pods may not send from the next look on, and a
// flow that is judged already is judged again. With the link that ends. Neither is a repair.
func TestTunnels(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.Exec("", "ip", "link", "add", "first", "type", "vxlan", "id", "1", "dstport", "4998")
		h.addPod()
		before := h.enforced()
		if !before.has(4998) || !before.has(8472) || !slices.Contains(before.Tunnels.Protocols, 4) || before.Epoch != 1 {
			t.Errorf("after the first ADD: %+v", before)
		}
		d := h.start("--interval", "1h") // it is told
		h.eventually("the first reconciliation", func() error { _, err := d.status(); return err })
		h.Exec("", "ip", "link", "add", "second", "type", "vxlan", "id", "2", "dstport", "4999")
		h.eventually("the new one is forbidden", func() error {
			if now := h.enforced(); !now.has(4999) || !now.has(4998) || now.Epoch != before.Epoch+1 {
				return fmt.Errorf("%+v", now)
			}
			return nil
		})
		h.Exec("", "ip", "link", "del", "first")
		h.eventually("the one that is gone is not", func() error {
			if now := h.enforced(); now.has(4998) || !now.has(4999) || now.Epoch != before.Epoch+1 {
				return fmt.Errorf("%+v", now)
			}
			return nil
		})
		h.eventually("it has looked", func() error {
			if s, err := d.status(); err != nil || s.Repairs != 0 || s.Error != "" {
				return fmt.Errorf("%+v, %w", s, err)
			}
			return nil
		})
	})
}

// allowTunnels is a setting of the node, and goes with the next ADD. To forbid them again
// narrows.
func TestAllowTunnels(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.addPod()
		add := func(keys testnode.Conf) enforced {
			t.Helper()
			h.Pods[0].Add(keys).OK(t)
			return h.enforced()
		}
		if now := add(testnode.Conf{"allowTunnels": true}); len(now.Tunnels.UDPPorts)+len(now.Tunnels.Protocols) != 0 || now.Epoch != 1 {
			t.Errorf("allowed: %+v", now)
		}
		if now := add(testnode.Conf{"allowTunnels": false}); !now.has(8472) || now.Epoch != 2 {
			t.Errorf("forbidden again: %+v", now)
		}
		// An ADD reads no links where nothing else is to be written, and what writes
		// everything does.
		h.Exec("", "ip", "link", "add", "overlay", "type", "vxlan", "id", "1", "dstport", "4999")
		if now := add(nil); now.has(4999) || now.Epoch != 2 {
			t.Errorf("an ADD has looked for tunnels: %+v", now)
		}
		h.Ctl("", "gc")
		if now := h.enforced(); !now.has(4999) || now.Epoch != 3 {
			t.Errorf("gc has not looked for tunnels: %+v", now)
		}
		h.Exec("", "ip", "link", "del", "overlay")
		h.Ctl("", "apply", "--delete")
		if now := h.enforced(); now.has(4999) {
			t.Errorf("apply has not looked for tunnels: %+v", now)
		}
	})
}
