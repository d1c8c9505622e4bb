package kube_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/agent/kube"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
)

// What cannot be read at the start is told, and read again until it can: a podmarkd that goes on
// without following the API looks as if it did.
func TestDamagedAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := node.Node{Store: state.At(filepath.Join(t.TempDir(), "state"))}
		if err := n.Store.Init(); err != nil {
			t.Fatal(err)
		}
		if err := n.Store.Write(state.NodeFile, []byte("{")); err != nil {
			t.Fatal(err)
		}
		c, err := kube.New(n, "node", &rest.Config{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { c.Run(ctx); close(ended) }()
		<-time.After(5 * time.Second)
		if err := c.Status().Err; !errors.Is(err, state.ErrDamaged) {
			t.Errorf("damaged: %v", err)
		}
		if err := os.Remove(n.Store.Path(state.NodeFile)); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Second)
		if err := c.Status().Err; err != nil {
			t.Errorf("repaired: %v", err)
		}
		stop()
		<-ended
	})
}
