package node

import (
	"context"
	"errors"

	"github.com/podmark/podmark/pkg/config"
)

// Uninstall removes every trace: rules, sets, device groups, bridge port
// settings and the state directory. Pods keep running, unmarked and unpoliced. Once it has begun,
// the next change finishes it.
func (n Node) Uninstall(ctx context.Context) error {
	return n.transact(ctx, func(t *tx) error {
		if err := t.strip(ctx); err != nil {
			return err
		}
		return t.Store.RemoveAll()
	})
}

// finishUninstall finishes an uninstall, and goes on with the lock and an empty state directory.
func (t *tx) finishUninstall(ctx context.Context) error {
	if err := t.strip(ctx); err != nil {
		return err
	}
	if err := t.Store.Clear(); err != nil {
		return err
	}
	t.step("cleared")
	t.file = nodeFile{}
	return t.Store.Init()
}

// strip notes that podmark leaves the node, and takes everything out of the kernel.
func (t *tx) strip(ctx context.Context) error {
	kinds := t.kernel().leftovers()
	var err error
	t.file, err = t.decodeNodeFile()
	if errors.Is(err, ErrNewer) {
		return err
	}
	if err == nil {
		_, err = t.file.node()
	}
	if err == nil && t.file.Backend != "" {
		kinds = append(t.file.Former, t.file.Backend, config.NFTables) // which guards bridges beside iptables
	}
	if err == nil {
		t.file.Uninstalling = true
		if err := t.saveBestEffort(); err != nil {
			return err
		}
		t.step("leaving")
	}
	if err := t.kernel().remove(ctx, t.LockTimeout, kinds); err != nil {
		return err
	}
	if err := t.kernel().removeChecksums(); err != nil {
		return err
	}
	t.step("removed")
	records, _ := t.Store.List()
	for _, r := range records {
		if err := t.kernel().restore(r.Endpoint); err != nil {
			return err
		}
	}
	links, err := t.kernel().links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := t.kernel().restoreLink(l); err != nil {
			return err
		}
	}
	t.step("freed")
	return nil
}
