package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type logLine struct {
	Time, Level, Msg, Verb, Network, Container, Ifname, Error, Mark string
	ID                                                              int
}

func readLog(t *testing.T, file string) []logLine {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []logLine
	for text := range strings.Lines(string(b)) {
		var l logLine
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Errorf("%v in line %q", err, text)
		}
		lines = append(lines, l)
	}
	return lines
}

// A misspelt key is said at each ADD: a pod starts, and without what was meant.
func TestUnknownKeys(t *testing.T) {
	n := newNode(t, nftables)
	file := filepath.Join(t.TempDir(), "podmark.log")
	keys := conf{"logFile": file, "polcy": "files", "runtimeConfig": conf{"dns": conf{}}, "example.com/key": 1}
	p := n.addPod()
	p.Add(keys).OK(t)
	p.Check(keys).OK(t)
	lines := readLog(t, file)
	if len(lines) != 3 || lines[0].Verb != "ADD" || lines[0].Level != "WARN" || !strings.Contains(lines[0].Msg, `["polcy"]`) {
		t.Errorf("it logs %+v", lines)
	}
}

func TestLog(t *testing.T) {
	n := newNode(t, nftables)
	file := filepath.Join(t.TempDir(), "podmark.log")
	keys := conf{"logFile": file}
	p := n.addPod()
	p.Add(keys).OK(t)
	p.Check(keys).OK(t)
	n.status(keys).OK(t)
	n.gc(keys, conf{"cni.dev/valid-attachments": []conf{{"containerID": p.ID, "ifname": "eth0"}}}).OK(t)
	p.Add(keys, conf{"iptablesMarkMask": 255}).Fails(t, 7)
	p.Del(keys).OK(t)
	want := []string{"ADD INFO", "CHECK INFO", "STATUS INFO", "GC INFO", "ADD ERROR", "DEL INFO"}
	lines := readLog(t, file)
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want one a call: %+v", len(lines), lines)
	}
	for i, l := range lines {
		if got := l.Verb + " " + l.Level; got != want[i] || l.Network != "net" {
			t.Errorf("line %d is %+v, want %s", i+1, l, want[i])
		}
		if l.Level == "ERROR" && !strings.Contains(l.Error, "iptablesMarkMask") {
			t.Errorf("error is %q", l.Error)
		}
	}
	if l := lines[0]; l.Container != p.ID || l.Ifname != "eth0" {
		t.Errorf("line of ADD is %+v", l)
	}
	if l := lines[0]; l.ID != 2 || l.Mark != "0x20000/0xffff0000" {
		t.Errorf("line of ADD has ID %d and mark %q", l.ID, l.Mark)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

// A log that cannot be written is no reason to refuse a pod.
func TestLogUnwritable(t *testing.T) {
	n := newNode(t, nftables)
	r := n.addPod().Add(conf{"logFile": "/proc/nowhere/log"}).OK(t)
	if !strings.Contains(r.Stderr, "/proc/nowhere/log") {
		t.Errorf("stderr is %q", r.Stderr)
	}
}

func TestLogOfManyWriters(t *testing.T) {
	n := newNode(t, nftables)
	file := filepath.Join(t.TempDir(), "podmark.log")
	var pods []*pod
	for range 40 {
		p := n.addPod()
		p.ID += strings.Repeat("x", 3000) // longer than any buffer that is written by parts
		pods = append(pods, p)
	}
	n.each(pods, func(p *pod) { p.Del(conf{"logFile": file}) })
	seen := map[string]bool{}
	for _, l := range readLog(t, file) {
		seen[l.Container] = true
	}
	if len(seen) != len(pods) {
		t.Errorf("%d of %d calls are in the log", len(seen), len(pods))
	}
}
