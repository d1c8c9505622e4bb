package main_test

import (
	"os"
	"testing"
)

func TestStatus(t *testing.T) {
	t.Run("virgin node", func(t *testing.T) {
		eachBackend(t, func(t *testing.T, n *node) {
			n.status().OK(t)
			if files := n.files(); len(files) > 0 {
				t.Errorf("STATUS made %v", files)
			}
			if got := n.present(); got != "" {
				t.Errorf("STATUS made something of %s", got)
			}
			n.withoutCommands(t)
		})
	})
	t.Run("used node", func(t *testing.T) {
		eachBackend(t, func(t *testing.T, n *node) {
			p := n.addPod()
			p.Add().OK(t)
			kernel := n.kernel()
			n.status().OK(t)
			for _, key := range []string{"auto", "nftables", "iptables"} {
				n.status(conf{"backend": key}).OK(t)
			}
			n.status(conf{"backend": "ipvs"}).Fails(t, 7, `"auto"`, `"nftables"`, `"iptables"`)
			n.status(conf{"iptablesMarkMask": "0xff"}).Fails(t, 50, "0xff", "0xffff0000")
			if kernel != n.kernel() {
				t.Error("STATUS changed something")
			}
			p.Del().OK(t)
			n.status(conf{"iptablesMarkMask": "0xff"}).OK(t)
			n.withoutCommands(t)
			n.write(t, "node.json", "[]")
			n.status().Fails(t, 50, "node.json")
		})
	})
	t.Run("directory of others", func(t *testing.T) {
		eachBackend(t, func(t *testing.T, n *node) {
			n.addPod().Add().OK(t)
			if err := os.Chmod(n.Dir, 0o777); err != nil {
				t.Fatal(err)
			}
			n.addPod().Add().Fails(t, 103, n.Dir)
			n.status().Fails(t, 50, n.Dir)
		})
	})
	t.Run("wrong configuration", func(t *testing.T) {
		newNode(t, nftables).status(conf{"policy": "all"}).Fails(t, 7, "policy", "all")
	})
	t.Run("lock held", func(t *testing.T) {
		n := newNode(t, nftables)
		n.addPod().Add().OK(t)
		defer n.HoldLock()()
		// Its own deadline: for as long as the entry says, nobody waits here.
		n.status().OK(t)
	})
}

// withoutCommands asks for the status of a node where iptables is not installed.
func (n *node) withoutCommands(t *testing.T) {
	t.Helper()
	defer func(path string) { n.Path = path }(n.Path)
	n.Path = "/nowhere"
	n.status(conf{"backend": "iptables"}).Fails(t, 50, "iptables", "install iptables")
	n.status(conf{"backend": "nftables"}).OK(t)
	n.status(conf{"backend": "auto"}).OK(t)
}
