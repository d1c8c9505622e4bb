package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/state"
)

// group is the device group of a link.
func (h *host) group(link string) uint32 {
	h.T.Helper()
	l, err := netlink.LinkByName(link)
	if err != nil {
		h.T.Fatal(err)
	}
	return l.Attrs().Group
}

// lines counts those of the log that say all words.
func (d *daemon) lines(words ...string) (n int) {
	for line := range strings.Lines(d.Log.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

// A host veth that was taken out of the device group is back in it, which is a repair.
func TestGroupLost(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.addPod()
		h.addPod()
		d := h.start()
		h.Exec("", "ip", "link", "set", "veth2", "group", "7")
		h.eventually("the group is back", func() error {
			s, err := d.status()
			if err != nil || s.Repairs != 1 || s.LastRepair.Kind != drift.Group || !strings.Contains(s.LastRepair.Drift, `"veth2" is in device group 7`) {
				return fmt.Errorf("%+v, %w", s, err)
			}
			return nil
		})
		if h.group("veth1") != hostport.Group || h.group("veth2") != hostport.Group {
			t.Error("a host veth is not in the device group")
		}
		if got := d.metric(`podmark_repairs_total{kind="group"}`); got != "1" {
			t.Errorf("%s repairs of a group", got)
		}
		if n := d.lines("level=WARN", "Repaired the data plane", "kind=group", "web-2"); n != 1 {
			t.Errorf("%d lines of the log say it:\n%s", n, d.Log)
		}
	})
}

// What others do to a host veth is said once, and that they have undone it.
func TestDrift(t *testing.T) {
	tests := []struct {
		name     string
		change   hostport.Change
		word     string
		do, undo [][]string
	}{
		{"renamed", hostport.Renamed, `renamed to "other"`, [][]string{{"link", "set", "veth1", "name", "other"}}, [][]string{{"link", "set", "other", "name", "veth1"}}},
		{"onto a bridge", hostport.Moved, `enslaved to "br0"`, [][]string{{"link", "set", "veth1", "master", "br0"}}, [][]string{{"link", "set", "veth1", "nomaster"}}},
		{"deleted", hostport.Gone, "is gone", [][]string{{"link", "del", "veth1"}}, nil},
	}
	eachBackend(t, func(t *testing.T, h *host) {
		h.addPod()
		h.addPod()
		h.Exec("", "ip", "link", "add", "br0", "type", "bridge")
		a := &apiServer{nodePort: 30000, mask: "4294901760"}
		d := h.start("--kubeconfig", h.serveAPI(a), "--collect-after", "1h")
		for _, tt := range tests {
			for _, args := range tt.do {
				h.Exec("", "ip", args...)
			}
			metric := fmt.Sprintf("podmark_endpoint_drift{change=%q}", tt.change)
			h.eventually(tt.name+" is in the status and the metrics", func() error {
				s, err := d.status()
				if err != nil || len(s.Drift) != 1 || s.Drift[0].Change != tt.change || s.Drift[0].Pod != "default/web-1" || d.metric(metric) != "1" {
					return fmt.Errorf("%+v, %w", s.Drift, err)
				}
				return nil
			})
			if text := h.Ctl("", "status"); !strings.Contains(text, tt.word) {
				t.Errorf("%s: podmarkctl status:\n%s", tt.name, text)
			}
			h.eventually(tt.name+" is an event", func() error {
				_, events := a.said()
				for _, e := range events {
					if e.Reason == "EndpointDrifted" && strings.Contains(e.Message, tt.word) && strings.Contains(e.Message, "default/web-1") {
						return nil
					}
				}
				return fmt.Errorf("%+v", events)
			})
			looks := d.values()[`podmark_reconciles_total{trigger="interval"}`]
			h.eventually("it has looked some more", func() error {
				if n := d.values()[`podmark_reconciles_total{trigger="interval"}`]; n < looks+3 {
					return fmt.Errorf("%v looks", n)
				}
				return nil
			})
			if n := d.lines("level=WARN", "has drifted", "change="+string(tt.change)); n != 1 {
				t.Errorf("%s: %d lines of the log say it:\n%s", tt.name, n, d.Log)
			}
			for _, args := range tt.undo {
				h.Exec("", "ip", args...)
			}
			if tt.undo == nil {
				continue
			}
			h.eventually(tt.name+" is undone", func() error {
				if s, err := d.status(); err != nil || len(s.Drift) != 0 || d.metric(metric) != "0" {
					return fmt.Errorf("%+v, %w", s.Drift, err)
				}
				return nil
			})
		}
		if s, err := d.status(); err != nil || s.Repairs != 0 {
			t.Errorf("%d repairs, %v", s.Repairs, err)
		}
	})
}

// The records of an older podmark, which have names of links alone, get numbers. One whose
// link is gone gets none, and no other link of that name is taken for it.
func TestUpgradeOfRecords(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.addPod()
		h.addPod()
		strip := func(file string, keys ...string) {
			content := map[string]any{}
			b, err := os.ReadFile(file)
			if err == nil {
				err = json.Unmarshal(b, &content)
			}
			for _, k := range keys {
				delete(content, k)
			}
			if err == nil {
				b, err = json.Marshal(content)
			}
			if err == nil {
				err = os.WriteFile(file, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		files, err := filepath.Glob(filepath.Join(h.Dir, "attachments", "*"))
		if err != nil || len(files) != 2 {
			t.Fatalf("%q, %v", files, err)
		}
		for _, file := range files {
			strip(file, "interfaceIndex", "portIndex")
		}
		strip(filepath.Join(h.Dir, "node.json"), "indexed")
		h.Exec("", "ip", "link", "del", "veth2")
		h.Ctl("", "gc", "--dry-run")
		d := h.start("--collect-after", "1h")
		h.eventually("what is gone is said", func() error {
			if s, err := d.status(); err != nil || len(s.Drift) != 1 || s.Drift[0].Change != hostport.Gone || s.Drift[0].Pod != "default/web-2" {
				return fmt.Errorf("%+v, %w", s.Drift, err)
			}
			return nil
		})
		h.Exec("", "ip", "link", "add", "veth2", "type", "veth", "peer", "name", "veth3")
		h.Ctl("", "apply", "--delete")
		records, err := state.At(h.Dir).List()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			index := 0
			if r.HostVeth == "veth1" {
				link, err := netlink.LinkByName("veth1")
				if err != nil {
					t.Fatal(err)
				}
				index = link.Attrs().Index
			}
			if r.HostVethIndex != index || r.L3InterfaceIndex != index {
				t.Errorf("%s has the numbers %d and %d, want %d", r.HostVeth, r.HostVethIndex, r.L3InterfaceIndex, index)
			}
		}
	})
}
