package node

import (
	"context"
	"errors"

	"github.com/podmark/podmark/pkg/config"
)

// Uninstall removes every trace: rules, sets, device groups, bridge port
// settings and the state directory. Pods keep running, unmarked and unpoliced. Once it has begun,
// whoever comes next finishes it.
func (n Node) Uninstall(ctx context.Context) error {
	unlock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.strip(ctx); err != nil {
		return err
	}
	return n.Store.RemoveAll()
}

// finishUninstall finishes an uninstall, and goes on with the lock and an empty state directory.
func (n Node) finishUninstall(ctx context.Context) error {
	if err := n.strip(ctx); err != nil {
		return err
	}
	if err := n.Store.Clear(); err != nil {
		return err
	}
	n.step("cleared")
	return n.Store.Init()
}

// strip notes that the node is to be left, and takes everything out of the kernel.
func (n Node) strip(ctx context.Context) error {
	kinds := n.kernel().leftovers()
	f, err := n.decodeNodeFile()
	if errors.Is(err, ErrNewer) {
		return err
	}
	if err == nil {
		_, err = f.node()
	}
	if err == nil && f.Backend != "" {
		kinds = append(f.Former, f.Backend, config.NFTables) // which guards bridges beside iptables
	}
	if err == nil {
		f.Uninstalling = true
		if err := n.saveBestEffort(f); err != nil {
			return err
		}
		n.step("leaving")
	}
	if err := n.kernel().remove(ctx, n.LockTimeout, kinds); err != nil {
		return err
	}
	if err := n.kernel().removeChecksums(); err != nil {
		return err
	}
	n.step("removed")
	records, _ := n.Store.List()
	for _, r := range records {
		if err := n.kernel().restore(r.Endpoint); err != nil {
			return err
		}
	}
	links, err := n.kernel().links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := n.kernel().restoreLink(l); err != nil {
			return err
		}
	}
	n.step("freed")
	return nil
}
