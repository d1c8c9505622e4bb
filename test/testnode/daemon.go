package testnode

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Log is what a process has written, which can be read while it runs.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is all of it.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Daemon is a podmarkd on the node.
type Daemon struct {
	*exec.Cmd
	Log  *Log
	over chan struct{}
}

// Podmarkd starts a podmarkd with these flags and variables on the calling thread. It ends with
// the test or before.
func (n *Node) Podmarkd(env []string, args ...string) *Daemon {
	n.T.Helper()
	cmd := exec.Command(filepath.Join(n.Programs, "podmarkd"), append([]string{"--state-dir", n.Dir, "--lock-timeout", LockTimeout.String()}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	return n.Daemon(cmd)
}

// Daemon starts one that a command is of.
func (n *Node) Daemon(cmd *exec.Cmd) *Daemon {
	n.T.Helper()
	d := &Daemon{Cmd: cmd, Log: &Log{}, over: make(chan struct{})}
	cmd.Stderr = d.Log
	if err := cmd.Start(); err != nil {
		n.T.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(d.over)
	}()
	t := n.T
	t.Cleanup(func() {
		d.Kill()
		if t.Failed() {
			t.Logf("podmarkd said:\n%s", d.Log)
		}
	})
	return d
}

// Wait waits until it has ended, and returns its exit status.
func (d *Daemon) Wait() int { <-d.over; return d.ProcessState.ExitCode() }

// Kill kills it, if it has not ended.
func (d *Daemon) Kill() {
	_ = d.Process.Kill()
	<-d.over
}

// Stop ends it as a service manager does, and returns its exit status.
func (d *Daemon) Stop() int {
	_ = d.Process.Signal(unix.SIGTERM)
	return d.Wait()
}

// Gone reports whether it has ended.
func (d *Daemon) Gone() bool {
	select {
	case <-d.over:
		return true
	default:
		return false
	}
}
