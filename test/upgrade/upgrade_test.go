// Package upgrade_test replaces podmark's programs on a node whose pods run, by those of a
// podmark to come, and puts them back. Which format its state directory has is a build tag.
package upgrade_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/share"
	"github.com/podmark/podmark/test/testnode"
)

// The builds, by their tag. A podmark goes on from the state directory of late, and not from that
// of next.
const (
	now  = ""
	late = "podmark_format_late"
	next = "podmark_format_next"
)

var programs = []string{"podmark", "podmarkd"}

// builds is the directory with a directory of programs for each build.
var builds string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if builds, err = os.MkdirTemp("", "podmark-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(builds)
	for _, tag := range []string{now, late, next} {
		if err := testnode.Build(filepath.Join(builds, "of-"+tag), tag, programs...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	lab.Programs = filepath.Join(builds, "installed")
	return m.Run()
}

// install replaces the programs, as 'podmarkd install' does.
func install(t *testing.T, tag string) {
	t.Helper()
	for _, program := range programs {
		to := filepath.Join(lab.Programs, program)
		b, err := os.ReadFile(filepath.Join(builds, "of-"+tag, program))
		if err == nil {
			err = os.MkdirAll(lab.Programs, 0o755)
		}
		if err == nil {
			err = os.WriteFile(to+".new", b, 0o755)
		}
		if err == nil {
			err = os.Rename(to+".new", to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

const (
	port = 8080
	wait = 50 * time.Millisecond
)

// Pods that run are judged all the time while a newer podmark comes and goes: forbidden packets
// never get through, and what is allowed goes on. The former podmark goes on where the newer one
// says that it may, and else says what to do and touches nothing.
func TestUpgradeAndRollback(t *testing.T) {
	for _, backend := range share.OneOf(t, testnode.Backends) {
		for _, tag := range []string{late, next} {
			t.Run(backend.Name+"/"+tag, func(t *testing.T) { upgrade(t, backend, tag) })
		}
	}
}

func upgrade(t *testing.T, backend lab.Backend, tag string) {
	install(t, now)
	n := lab.NewNode(t, lab.Options{Backend: backend, Plain: true})
	outside := n.AddHost("outside", "192.168.50.1/24", "fd00:50::1/64")
	k := n.Kubernetes(nil)
	k.Apply(`
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: default}, spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080, protocol: UDP}]}]}}
`)
	var pods []*lab.Pod
	add := func() *lab.Pod {
		p := k.RunPod(lab.Manifest{Name: fmt.Sprintf("web%d", len(pods)), Labels: map[string]string{"app": "web"}})
		p.Listen(lab.UDP, port)
		p.Listen(lab.UDP, port+1)
		pods = append(pods, p)
		return p
	}
	request := func(p *lab.Pod, f lab.Family, port uint16) lab.Request {
		return lab.Request{Protocol: lab.UDP, To: p.At(f, port)}
	}
	judged := func(when string) {
		t.Helper()
		for _, p := range pods {
			for _, f := range lab.Families {
				k.Eventually(when+", what is allowed", outside.NS, request(p, f, port), lab.OK)
				k.Eventually(when+", what is forbidden", outside.NS, request(p, f, port+1), lab.Blocked)
			}
		}
	}
	first := add()
	judged("before")

	// A client tries what is forbidden all the time.
	var stop atomic.Bool
	var trying sync.WaitGroup
	defer trying.Wait()
	defer stop.Store(true)
	asked := 0
	trying.Go(func() {
		for ; !stop.Load(); asked++ {
			r := request(first, lab.Families[asked%2], port+1)
			r.Limit = wait
			if got := outside.Send(r); got.Outcome == lab.OK || got.Outcome == lab.OneWay {
				t.Errorf("forbidden question %d: %v", asked, got)
				return
			}
		}
	})
	restart := func() {
		t.Helper()
		k.Stop()
		k.Start()
	}

	install(t, tag)
	second := add() // the plugin is there before podmarkd is
	judged("with the new plugin")
	restart()
	third := add()
	if err := first.Check(); err != nil {
		t.Errorf("CHECK of a pod of the former podmark: %v", err)
	}
	judged("after the upgrade")

	install(t, now)
	if tag == next {
		k.Stop()
		k.Launch()
		refused := func(what string, err error) {
			t.Helper()
			if err == nil || !strings.Contains(err.Error(), "newer podmark") {
				t.Errorf("%s after a rollback: %v, want that the state directory is a newer podmark's", what, err)
			}
		}
		k.Put(lab.Manifest{Name: "late", Labels: map[string]string{"app": "web"}, NodeName: lab.NodeName})
		p, err := k.TryAddPod(lab.PodSpec{Name: "late", Network: k.Network})
		refused("ADD", err)
		refused("CHECK", second.Check())
		judged("after a rollback that is refused")
		install(t, tag)
		if err := p.Del(); err != nil {
			t.Errorf("DEL of the pod that was refused: %v", err)
		}
	}
	restart()
	for _, p := range []*lab.Pod{second, third} {
		if err := p.Check(); err != nil {
			t.Errorf("CHECK of a pod of the newer podmark: %v", err)
		}
	}
	add()
	judged("in the end")
	for _, p := range pods[1:] {
		if err := p.Del(); err != nil {
			t.Errorf("DEL of %s: %v", p.Name, err)
		}
	}
	stop.Store(true)
	trying.Wait()
	if asked == 0 {
		t.Error("nobody has tried what is forbidden")
	}
	t.Logf("%d forbidden questions", asked)
}
