package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/wait"
)

// podmarkd runs the daemon until the test ends, and returns when it has looked.
func (p *patient) podmarkd(args ...string) *exec.Cmd {
	p.t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(programs, "podmarkd"), append([]string{
		"--state-dir", p.dir, "--listen", "", "--interval", "200ms", "--cni-conf-dir", p.conf, "--cni-cache-dir", "",
	}, args...)...)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if p.t.Failed() {
			p.t.Logf("podmarkd said:\n%s", log.String())
		}
	})
	p.eventually("podmarkd has looked", func() bool {
		return strings.Contains(p.files()["daemon.json"], fmt.Sprintf(`"pid":%d,`, cmd.Process.Pid))
	})
	return cmd
}

func (p *patient) eventually(what string, done func() bool) {
	p.t.Helper()
	wait.Until(p.t, what, func() error {
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
	write(t, p.dir+"/attachments/0123456789abcdef0123456789abcdef", "{")
	p.eventually("it cannot do its work", func() bool { return len(of(p.doctor(), "podmarkd")) > 0 })
	p.shell(p.finds("podmarkd", "damaged", "state", "leaked").Mend)
	p.eventually("it can again", func() bool { return len(p.doctor()) == 0 })
	_ = first.Process.Signal(unix.SIGTERM)
	_ = first.Wait()
	found := p.finds("podmarkd", "does not run")
	if want := "podmarkd --state-dir " + p.dir; found.Mend != want {
		t.Errorf("mend %q, want %q", found.Mend, want)
	}
	second := p.podmarkd()
	p.well()
	// It hangs, and that for a while; without the lock, which we have meanwhile.
	lock, err := os.Open(p.dir + "/lock")
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		err = second.Process.Signal(unix.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	var status map[string]any
	if err := json.Unmarshal([]byte(p.files()["daemon.json"]), &status); err != nil {
		t.Fatal(err)
	}
	status["looked"] = time.Now().Add(-time.Hour)
	b, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.dir+"/daemon.json", string(b))
	p.shell(p.finds("podmarkd", "has not looked").Mend)
	_ = second.Wait()
	p.finds("podmarkd", "does not run")
}
