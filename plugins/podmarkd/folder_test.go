package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What of a directory is passed over is logged once, and again when it is something else.
func TestDirectoryNotes(t *testing.T) {
	h := newHost(t, nftables)
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	deployment := func(name string) string {
		return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: " + name + "}\n"
	}
	put("web.yaml", policy)
	put("shop.yaml", deployment("shop"))
	d := h.start("--policy-dir", dir)
	logged := func(name string) int { return strings.Count(d.Log.String(), "apps/v1 Deployment "+name+":") }
	inForce := func(policies int) {
		t.Helper()
		h.eventually(fmt.Sprintf("%d policies are in force", policies), func() error {
			if s, err := d.status(); err != nil || s.Policies.Policies != policies || s.Policies.Noted == 0 || !s.Policies.Synced {
				return fmt.Errorf("%+v: %w", s.Policies, err)
			}
			return nil
		})
	}
	inForce(1)
	// Each is read again, with the same notes.
	for i := 2; i < 5; i++ {
		put(fmt.Sprintf("%d.yaml", i), strings.Replace(policy, "name: web", fmt.Sprintf("name: web-%d", i), 1))
		inForce(i)
	}
	put("shop.yaml", deployment("store"))
	h.eventually("another is logged", func() error {
		if logged("store") == 0 {
			return fmt.Errorf("%s", d.Log)
		}
		return nil
	})
	if logged("shop") != 1 || logged("store") != 1 {
		t.Errorf("shop is logged %d times, store %d times", logged("shop"), logged("store"))
	}
}

// Where no policy is left in the directory, those of before are in force, and that is told, until
// a list says that there are none.
func TestDirectoryWithoutPolicy(t *testing.T) {
	h := newHost(t, nftables)
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("web.yaml", policy)
	put("shop.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
	d := h.start("--policy-dir", dir)
	status := func(what string, policies int, trouble string) {
		t.Helper()
		h.eventually(what, func() error {
			if s, err := d.status(); err != nil || s.Policies.Policies != policies || s.Policies.Synced != (trouble == "") || !strings.Contains(s.Policies.Error, trouble) {
				return fmt.Errorf("%+v: %w", s.Policies, err)
			}
			return nil
		})
	}
	status("the policy is in force", 1, "")
	if err := os.Remove(filepath.Join(dir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	status("it still is", 1, "shop.yaml: no NetworkPolicy in it")
	put("none.yaml", "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicyList, items: []}")
	status("there is none", 0, "")
}
