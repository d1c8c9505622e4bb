// Package needs says what a test cannot run without.
//
// A test names its needs first. Where one is missing, the test is skipped with
// the reason on a developer's machine and fails where everything is supposed to
// be there: in continuous integration (CI=true) and in the lab (PODMARK_LAB=1). Whatever
// names a need is no unit test, and 'make unit' (PODMARK_UNIT=1) leaves it out.
//
//	func TestRender(t *testing.T) {
//		needs.All(t, needs.Netns, needs.Command("nft", "list", "ruleset"))
//		...
//	}
package needs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
)

// Feature tells why something is not there, or nil.
type Feature func() error

// All skips the test, or fails it where nothing may be missing, unless every
// feature is there.
func All(t testing.TB, features ...Feature) {
	t.Helper()
	if Unit() {
		t.Skip("it needs root or a kernel feature, and only unit tests are run")
	}
	var missing []error
	for _, feature := range features {
		if err := feature(); err != nil {
			missing = append(missing, err)
		}
	}
	switch err := errors.Join(missing...); {
	case err == nil:
	case os.Getenv("CI") == "true" || Lab():
		t.Fatalf("this machine lacks:\n%v", err)
	default:
		t.Skipf("this machine lacks:\n%v", err)
	}
}

// Unit reports whether only tests without needs are run.
func Unit() bool { return os.Getenv("PODMARK_UNIT") == "1" }

// Lab reports whether the kernel is the lab's.
func Lab() bool { return os.Getenv("PODMARK_LAB") == "1" }

// Whole reports whether a test does all of what is exhaustive: 'make test' does a share, which
// leaves out no kind, and 'make exhaustive' (PODMARK_WHOLE=1) all.
func Whole() bool { return os.Getenv("PODMARK_WHOLE") == "1" }

// Programs are podmark's, whose building takes longer than most tests. They are there, but
// 'make unit' has none.
func Programs() error { return nil }

// Time is what a test needs that takes half a minute. It is there, but 'make unit' has none.
func Time() error { return nil }

// Root is the right to change the network.
func Root() error {
	if os.Geteuid() != 0 {
		return errors.New("root")
	}
	return nil
}

// Netns is the right to make network namespaces.
func Netns() error {
	if err := inNewNetns(func() error { return nil }); err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	return nil
}

// Command is a command that succeeds in a new network namespace.
func Command(name string, args ...string) Feature {
	return func() error {
		line := strings.Join(append([]string{name}, args...), " ")
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("command %q", name)
		}
		var out []byte
		err := inNewNetns(func() (err error) {
			out, err = exec.Command(name, args...).CombinedOutput()
			return err
		})
		if err != nil {
			return fmt.Errorf("%q, which says: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
}

// IPVS is the kernel's load balancer.
func IPVS() error {
	loadModules()
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		return errors.New("kernel module ip_vs")
	}
	return nil
}

// BridgeNetfilter is the kernel's way to show bridged packets to iptables.
func BridgeNetfilter() error {
	loadModules()
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		return errors.New("kernel module br_netfilter")
	}
	return nil
}

// SCTP is the transport protocol.
func SCTP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return fmt.Errorf("kernel module sctp: %w", err)
	}
	return unix.Close(fd)
}

// Dummy is the link type that kube-proxy binds service addresses to.
func Dummy() error {
	return Command("ip", "link", "add", "probe", "type", "dummy")()
}

// VXLAN is the link type that unwraps other machines' packets.
func VXLAN() error {
	return Command("ip", "link", "add", "probe", "type", "vxlan", "id", "1", "dstport", "8472")()
}

// VRF is the link type that gives links a routing table of their own.
func VRF() error {
	return Command("ip", "link", "add", "probe", "type", "vrf", "table", "100")()
}

// VLANFiltering is a bridge that keeps VLANs apart.
func VLANFiltering() error {
	return Command("ip", "link", "add", "probe", "type", "bridge", "vlan_filtering", "1")()
}

// Checksums is a kernel, and a bpffs, with which podmark can look where checksums go.
func Checksums() error {
	err := inNewNetns(func() error { return errors.Join(checksum.Sync(), checksum.Remove()) })
	if err != nil {
		return fmt.Errorf("BPF programs of netfilter: %w", err)
	}
	return nil
}

// loadModules loads what the kernel does not load by itself on first use. It may
// fail: the features are looked for afterwards.
var loadModules = sync.OnceFunc(func() {
	for _, module := range []string{"ip_vs", "ip_vs_rr", "br_netfilter", "nf_conntrack"} {
		_ = exec.Command("modprobe", module).Run()
	}
})

// inNewNetns runs f on a thread of its own in a new network namespace. Both end
// with f.
func inNewNetns(f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked, so the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
