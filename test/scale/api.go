package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/podmark/podmark/test/fakeapi"
	"github.com/podmark/podmark/test/scale/cluster"
)

// The API server and what it is told besides: the rate of events, in a second.
const (
	apiAddress  = "127.0.0.1:6443"
	statePath   = "/scale/state"
	ratePath    = "/scale/rate"
	maxStreams  = 100 // of a connection of HTTP/2, as kube-apiserver has it
	batchesEach = 20 * time.Millisecond
)

// apiState is what the server says of itself.
type apiState struct {
	Traffic map[string]map[string]fakeapi.Traffic `json:"traffic"`
	// Events happened up to now; Behind is how many are missing to the rate.
	Events int64 `json:"events"`
	Behind int64 `json:"behind"`
}

func podResource() fakeapi.Resource {
	return fakeapi.Resource{Version: "v1", Name: "pods", Kind: "Pod", Namespaced: true}
}

func resources() []fakeapi.Resource {
	return []fakeapi.Resource{
		podResource(),
		{Version: "v1", Name: "namespaces", Kind: "Namespace"},
		{Group: "networking.k8s.io", Version: "v1", Name: "networkpolicies", Kind: "NetworkPolicy", Namespaced: true},
		{Version: "v1", Name: "services", Kind: "Service", Namespaced: true},
		{Version: "v1", Name: "nodes", Kind: "Node"},
		{Version: "v1", Name: "events", Kind: "Event", Namespaced: true},
	}
}

// api serves a cluster and lets it go on.
type api struct {
	*fakeapi.Server
	cluster              *cluster.Cluster
	rate, events, behind atomic.Int64
}

func newAPI(o cluster.Options) (*api, error) {
	c, err := cluster.New(o)
	if err != nil {
		return nil, err
	}
	a := &api{Server: fakeapi.New(resources()...), cluster: c}
	for o := range c.Namespaces() {
		if err := a.Put(o); err != nil {
			return nil, err
		}
	}
	for o := range c.Policies() {
		if err := a.Put(o); err != nil {
			return nil, err
		}
	}
	for o := range c.Pods() {
		if err := a.Put(o); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// goOn makes events at the rate.
func (a *api) goOn(ctx context.Context) error {
	tick := time.NewTicker(batchesEach)
	defer tick.Stop()
	due := 0.0
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			due += now.Sub(last).Seconds() * float64(a.rate.Load())
			last = now
		}
		for ; due >= 1; due-- {
			a.behind.Store(int64(due))
			if err := a.happen(a.cluster.Next()); err != nil {
				return err
			}
		}
	}
}

func (a *api) happen(e cluster.Event) error {
	a.events.Add(1)
	if e.Deleted {
		return a.Delete(podResource(), e.Object.GetNamespace(), e.Object.GetName())
	}
	return a.Put(e.Object)
}

// ServeHTTP implements [http.Handler].
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case statePath:
		_ = json.NewEncoder(w).Encode(apiState{a.Traffic(), a.events.Load(), a.behind.Load()}) // nobody is left to tell
	case ratePath:
		n, err := strconv.ParseInt(r.URL.RawQuery, 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a.rate.Store(n)
	default:
		a.Server.ServeHTTP(w, r)
	}
}

// serve is the process of the API server. It writes a kubeconfig once it serves.
func serve(ctx context.Context, flags *flag.FlagSet, args []string) error {
	o := clusterFlags(flags)
	config := flags.String("kubeconfig", "", "file to write, for who is the client podmarkd")
	if err := flags.Parse(args); err != nil {
		return err
	}
	a, err := newAPI(*o)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", apiAddress)
	if err != nil {
		return err
	}
	// With TLS, so that clients speak HTTP/2, as they do with the real one.
	server := httptest.NewUnstartedServer(a)
	server.Listener.Close()
	server.Listener, server.EnableHTTP2 = l, true
	server.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxStreams}
	server.StartTLS()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := writeKubeconfig(*config, authority, "podmarkd"); err != nil {
		return err
	}
	return a.goOn(ctx)
}

// writeKubeconfig makes the file of a client, whole or not at all.
func writeKubeconfig(file string, authority []byte, client string) error {
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "scale",
		"clusters": []any{map[string]any{"name": "scale", "cluster": map[string]any{"server": "https://" + apiAddress, "certificate-authority-data": authority}}},
		"users":    []any{map[string]any{"name": client, "user": map[string]any{"token": client}}},
		"contexts": []any{map[string]any{"name": "scale", "context": map[string]any{"cluster": "scale", "user": client}}},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	return os.Rename(file+".new", file)
}
