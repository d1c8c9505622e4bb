// Package attachment says what podmark knows of an attachment: one interface of one container on one
// network. It is values alone: package endpoint finds them out, and package state keeps them.
package attachment

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/podmark/podmark/pkg/mark"
)

// Key identifies an attachment: one interface of one container on one network.
type Key struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// String renders the key for people.
func (k Key) String() string {
	return fmt.Sprintf("%s/%s/%s", k.Network, k.ContainerID, k.IfName)
}

// Hash names the key's file: 32 hexadecimal digits. Each part is preceded by its
// length, so that no two keys read alike, and none can leave the directory.
func (k Key) Hash() string {
	h := sha256.New()
	for _, part := range []string{k.Network, k.ContainerID, k.IfName} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Record is what is known of one attachment.
type Record struct {
	Key
	ID mark.ID `json:"id"`
	Endpoint
	// Policed is whether NetworkPolicy applies to the endpoint.
	Policed bool `json:"policed"`
	// Kubernetes is whether its labels and its policies are those of the Kubernetes API.
	// One that is not Policed was let in without, by failOpen.
	Kubernetes bool `json:"kubernetes,omitempty"`
	// SourceBound are the prefixes that the network allows, of which Sources are those that
	// the endpoint has: all, or with the Kubernetes API those that the pod asks for.
	SourceBound []netip.Prefix `json:"sourceBound,omitempty"`
	// UID is that of the pod, where the runtime tells.
	UID string `json:"uid,omitempty"`
	// NamespaceUID is that of its namespace in the Kubernetes API; empty where nobody knows.
	NamespaceUID string `json:"namespaceUID,omitempty"`
	// Netns is the path of the network namespace at ADD.
	Netns string `json:"netns,omitempty"`
	// Committed is set once every packet of the endpoint is marked and judged.
	// A record without it was left by a crash.
	Committed bool `json:"committed"`
}

// Validate checks everything that later becomes a set element or a rule.
func (r Record) Validate() error {
	switch {
	case r.ID < mark.First:
		return fmt.Errorf("ID %d is reserved", r.ID)
	case !interfaceName(r.L3Interface) || !interfaceName(r.HostVeth):
		return fmt.Errorf("interface %q or port %q is not an interface name", r.L3Interface, r.HostVeth)
	case len(r.Addresses) == 0:
		return errors.New("it has no address")
	}
	for _, a := range r.Addresses {
		if !plain(a) {
			return fmt.Errorf("address %q is not a plain IPv4 or IPv6 address", a)
		}
	}
	return nil
}

// plain reports whether a is one address in its canonical form.
func plain(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified()
}

// interfaceName accepts what the kernel does (dev_valid_name): 1 to 15 bytes
// without space, slash or colon.
func interfaceName(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == 0x7f })
}
