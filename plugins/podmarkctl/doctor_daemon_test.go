package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// podmarkd runs the daemon until the test ends, and returns when it has looked.
func (p *patient) podmarkd(args ...string) *testnode.Daemon {
	p.T.Helper()
	return p.podmarkdIn(0, args...)
}

// podmarkdIn has it begin namespaces, by their flags of clone.
func (p *patient) podmarkdIn(namespaces uintptr, args ...string) *testnode.Daemon {
	p.T.Helper()
	cmd := exec.Command(testnode.Program(p.T, "podmarkd"), append([]string{
		"--state-dir", p.Dir, "--listen", "", "--interval", "200ms", "--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin, "--cni-cache-dir", "",
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	d := p.Daemon(cmd)
	pid := d.Process.Pid
	if namespaces&unix.CLONE_NEWPID != 0 {
		pid = 1
	}
	p.eventually("podmarkd has looked", func() bool {
		return strings.Contains(p.files()["daemon.json"], fmt.Sprintf(`"pid":%d,`, pid))
	})
	return d
}

func (p *patient) eventually(what string, done func() bool) {
	p.T.Helper()
	wait.Until(p.T, what, func() error {
		if done() {
			return nil
		}
		return fmt.Errorf("doctor says %+v", p.doctor())
	})
}

// A daemon that has ended is found, and so is what it could not do.
func TestDoctorDaemon(t *testing.T) {
	p := newPatient(t, nftables, 1)
	first := p.podmarkd()
	p.well()
	write(t, p.Dir+"/attachments/0123456789abcdef0123456789abcdef", "{")
	p.eventually("it cannot do its work", func() bool { return len(of(p.doctor(), "podmarkd")) > 0 })
	p.shell(p.finds("podmarkd", "damaged", "state", "leaked").Fix)
	p.eventually("it can again", func() bool { return len(p.doctor()) == 0 })
	first.Stop()
	found := p.finds("podmarkd", "does not run")
	if want := "podmarkd --state-dir " + p.Dir; found.Fix != want {
		t.Errorf("fix %q, want %q", found.Fix, want)
	}
	second := p.podmarkd()
	p.well()
	// It hangs, and that for a while; without the lock, which we have meanwhile.
	release := p.HoldLock()
	if err := second.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	release()
	var status map[string]any
	if err := json.Unmarshal([]byte(p.files()["daemon.json"]), &status); err != nil {
		t.Fatal(err)
	}
	status["lastReconcile"] = time.Now().Add(-time.Hour)
	b, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.Dir+"/daemon.json", string(b))
	p.shell(p.finds("podmarkd", "has not looked").Fix)
	second.Wait()
	p.finds("podmarkd", "does not run")
}

// runs fails the test unless status, doctor and explain take podmarkd for one that runs, or does not.
func (p *patient) runs(want bool) {
	p.T.Helper()
	var status struct{ Running bool }
	if err := json.Unmarshal([]byte(p.ctl("status", "-o", "json").ok(p.T).Stdout), &status); err != nil || status.Running != want {
		p.T.Errorf("status says running %t, %v", status.Running, err)
	}
	if ended := len(of(p.doctor(), "podmarkd")) > 0; ended == want {
		p.T.Errorf("doctor: podmarkd has ended %t", ended)
	}
	const unwatched = "podmarkd does not run"
	if said := p.ctl("explain", "default/web-1", "192.0.2.9:22").Stdout; strings.Contains(said, unwatched) == want {
		p.T.Errorf("explain: %s", said)
	}
}

// Whether podmarkd runs does not depend on its number, which is another one outside of its
// container, and may be anybody's when it has ended.
func TestDaemonRuns(t *testing.T) {
	p := newPatient(t, iptablesNFT, 1)
	d := p.podmarkdIn(unix.CLONE_NEWPID)
	p.route()
	// Process 1 of this namespace is another, and process 4194305 is none anywhere.
	renumber := func(pid int) {
		t.Helper()
		var status map[string]any
		if err := json.Unmarshal([]byte(p.files()["daemon.json"]), &status); err != nil {
			t.Fatal(err)
		}
		status["pid"] = pid
		b, err := json.Marshal(status)
		if err != nil {
			t.Fatal(err)
		}
		write(t, p.Dir+"/daemon.json", string(b))
	}
	p.runs(true)
	if err := d.Process.Signal(unix.SIGSTOP); err != nil { // else it writes its status again
		t.Fatal(err)
	}
	renumber(1<<22 + 1)
	p.runs(true)
	d.Kill()
	p.runs(false)
	renumber(os.Getpid())
	p.runs(false)
	// Who uninstalls keeps podmarkd away, and is none.
	release, err := state.At(p.Dir).Claim()
	if err != nil {
		t.Fatal(err)
	}
	p.runs(false)
	release()
	p.podmarkd()
	p.runs(true)
}
