package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A daemon that has ended is found, and so is what it could not do.
func TestDoctorDaemon(t *testing.T) {
	p := newPatient(t, nftables, 1)
	var log bytes.Buffer
	start := func() *exec.Cmd {
		cmd := exec.Command(filepath.Join(programs, "podmarkd"), "--state-dir", p.dir, "--listen", "", "--interval", "200ms")
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if t.Failed() {
				t.Logf("podmarkd said:\n%s", log.String())
			}
		})
		return cmd
	}
	eventually := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within 20 s: %s: %+v", what, p.doctor())
			}
		}
	}
	pid := func(cmd *exec.Cmd) func() bool {
		return func() bool {
			return strings.Contains(p.files()["daemon.json"], fmt.Sprintf(`"pid":%d,`, cmd.Process.Pid))
		}
	}
	first := start()
	eventually("it has looked", pid(first))
	p.well()
	write(t, p.dir+"/attachments/0123456789abcdef0123456789abcdef", "{")
	eventually("it cannot do its work", func() bool { return len(of(p.doctor(), "podmarkd")) > 0 })
	p.shell(p.finds("podmarkd", "damaged", "state", "leaked").Mend)
	eventually("it can again", func() bool { return len(p.doctor()) == 0 })
	_ = first.Process.Signal(unix.SIGTERM)
	_ = first.Wait()
	found := p.finds("podmarkd", "does not run")
	if want := "podmarkd --state-dir " + p.dir; found.Mend != want {
		t.Errorf("mend %q, want %q", found.Mend, want)
	}
	second := start()
	eventually("the next one has looked", pid(second))
	p.well()
	// It hangs, and that for a while.
	if err := second.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
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
