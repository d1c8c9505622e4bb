package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/scale/cluster"
)

// apiProcess is a running API server.
type apiProcess struct {
	process
	kubeconfig string
	client     *http.Client
}

// startAPI starts the server and waits until all objects are there.
func startAPI(o cluster.Options, dir string) (*apiProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a := &apiProcess{
		kubeconfig: filepath.Join(dir, "kubeconfig"),
		client: &http.Client{Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // it is ours, on loopback
			ForceAttemptHTTP2: true,
		}},
	}
	if a.process, err = start(exec.Command(self, append(clusterArgs(o), "-kubeconfig", a.kubeconfig)...), "api"); err != nil {
		return nil, err
	}
	return a, a.until("the API server is there", 5*time.Minute, func() error {
		_, err := os.Stat(a.kubeconfig)
		return err
	})
}

func (a *apiProcess) get(ctx context.Context, path, accept, token string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+apiAddress+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", accept)
	r.Header.Set("Authorization", "Bearer "+token)
	response, err := a.client.Do(r)
	if err == nil && response.StatusCode != http.StatusOK {
		response.Body.Close()
		err = fmt.Errorf("asking for %s: %s", path, response.Status)
	}
	return response, err
}

// state asks the server how it is.
func (a *apiProcess) state() (s apiState, err error) {
	response, err := a.get(context.Background(), statePath, "", "scale")
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	return s, json.NewDecoder(response.Body).Decode(&s)
}

// setRate lets so many events happen a second.
func (a *apiProcess) setRate(n int) error {
	response, err := a.get(context.Background(), fmt.Sprintf("%s?%d", ratePath, n), "", "scale")
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// watchEverything is a client that asks for all pods, namespaces and policies, as nodes of
// other projects do, in protobuf, and keeps nothing. It is known by its name.
func (a *apiProcess) watchEverything(ctx context.Context, name string) error {
	for _, path := range []string{"/api/v1/pods", "/api/v1/namespaces", "/apis/networking.k8s.io/v1/networkpolicies"} {
		response, err := a.get(ctx, path+"?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan", "application/vnd.kubernetes.protobuf", name)
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(io.Discard, response.Body) // it ends with ctx
			response.Body.Close()
		}()
	}
	return nil
}

// process is a child that ends with us.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func start(cmd *exec.Cmd, command ...string) (process, error) {
	cmd.Args = append(append(cmd.Args[:1:1], command...), cmd.Args[1:]...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	p := process{cmd, make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return p, err
	}
	go func() {
		_ = cmd.Wait() // that it ended is what matters
		close(p.done)
	}()
	return p, nil
}

func (p process) stop() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// poll is how often a condition is looked at. podmarkd pays for it, as for a scrape of its
// metrics, which is rarer by far.
const poll = 500 * time.Millisecond

// until waits for a condition of a process.
func (p process) until(what string, patience time.Duration, f func() error) error {
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if err = f(); err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("waiting until %s: %w", what, errors.New("the process has ended"))
		case <-time.After(poll):
		}
	}
	return fmt.Errorf("waiting until %s: %w", what, err)
}
