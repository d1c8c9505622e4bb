package main_test

import (
	"testing"
	"time"
)

func TestStatus(t *testing.T) {
	t.Run("virgin node", func(t *testing.T) {
		n := newNode(t, "nft")
		n.status().ok(t)
		if files := n.files(); len(files) > 0 {
			t.Errorf("STATUS made %v", files)
		}
		n.path = "/nowhere"
		n.status().fails(t, 50, "iptables", "install iptables")
	})
	t.Run("used node", func(t *testing.T) {
		n := newNode(t, "legacy")
		p := n.addPod()
		p.add().ok(t)
		n.status().ok(t)
		n.status(conf{"iptablesMarkMask": "0xff"}).fails(t, 50, "0xff", "0xffff0000")
		p.del().ok(t)
		n.status(conf{"iptablesMarkMask": "0xff"}).ok(t)
		path := n.path
		n.path = "/nowhere"
		n.status().fails(t, 50, "iptables")
		n.path = path
		n.write(t, "node.json", "[]")
		n.status().fails(t, 50, "node.json")
	})
	t.Run("wrong configuration", func(t *testing.T) {
		newNode(t, "nft").status(conf{"policy": "all"}).fails(t, 7, "policy", "all")
	})
	t.Run("lock held", func(t *testing.T) {
		n := newNode(t, "nft")
		n.addPod().add().ok(t)
		defer n.holdLock()()
		start := time.Now()
		n.status().ok(t)
		// Its own deadline, with room for a machine that is busy with other things.
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("STATUS took %v", took)
		}
	})
}
