// Package contain runs a program with what a container of a manifest gets and nothing
// else: its files, its mounts and their propagation, its capabilities. It is for tests
// that prove a manifest right on the test's own node, and every network namespace may
// be that. The kernel enforces all of it; seccomp and cgroups alone are left out.
//
//	func TestMain(m *testing.M) { contain.Main(); os.Exit(m.Run()) }
//
//	c, err := contain.Of(pod, "podmarkd", contain.Node{Root: root, Image: image})
//	cmd := c.Command(t.TempDir())
package contain

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Container is what a process gets. Its network namespace is the caller's.
type Container struct {
	// Root is an empty directory, over which the container's files are mounted.
	Root string
	// Image has a file of this machine for each path of the image.
	Image map[string]string
	// Mounts are in an order in which they can be mounted.
	Mounts []Mount
	// Capabilities are as manifests name them: NET_ADMIN.
	Capabilities []string
	// ReadOnly is readOnlyRootFilesystem, NoNewPrivileges the opposite of
	// allowPrivilegeEscalation.
	ReadOnly, NoNewPrivileges bool
	Args, Env                 []string
}

// Mount is a file or directory of the node in a container.
type Mount struct {
	From, To string
	ReadOnly bool
	// Slave is mountPropagation HostToContainer; otherwise it is None.
	Slave bool
}

const variable = "PODMARK_CONTAINER"

// Command is the container's process: 1 in a process namespace of its own, so all of
// the container ends with it. It ends with the thread that starts it. root is an empty
// directory.
func (c Container) Command(root string) *exec.Cmd {
	c.Root = root
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // it has no kind of value that could fail
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{variable + "=" + string(b)}
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	return cmd
}

// Main becomes the container where a Command has started this program, and does
// nothing otherwise. It is what TestMain does first.
func Main() {
	text, ok := os.LookupEnv(variable)
	if !ok {
		return
	}
	runtime.LockOSThread() // capabilities are a thread's
	var c Container
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = c.become()
	}
	fmt.Fprintf(os.Stderr, "becoming the container: %v\n", err)
	os.Exit(125)
}

func (c Container) become() error {
	if err := c.mount(); err != nil {
		return err
	}
	if err := pivot(c.Root); err != nil {
		return err
	}
	if c.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("making the root read-only: %w", err)
		}
	}
	if err := limit(c.Capabilities); err != nil {
		return err
	}
	if c.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("setting no_new_privs: %w", err)
		}
	}
	return fmt.Errorf("executing %q: %w", c.Args[0], unix.Exec(c.Args[0], c.Args, c.Env))
}

// mount puts the files together, as runc does for a pod: what the node mounts comes
// to this namespace, and nothing goes back.
func (c Container) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("leaving the node's mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", c.Root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting the root: %w", err)
	}
	at := func(path string) string { return filepath.Join(c.Root, path) }
	if err := os.MkdirAll(at("/proc"), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("proc", at("/proc"), "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := os.MkdirAll(at("/sys"), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", at("/sys"), "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /sys: %w", err)
	}
	mounts := []Mount{{From: at("/proc/sys"), To: "/proc/sys", ReadOnly: true}, {From: "/dev/null", To: "/dev/null"}}
	for to, from := range c.Image {
		mounts = append(mounts, Mount{From: from, To: to, ReadOnly: true})
	}
	for _, m := range append(mounts, c.Mounts...) {
		if err := m.mount(at(m.To)); err != nil {
			return fmt.Errorf("mounting %q at %q: %w", m.From, m.To, err)
		}
	}
	return nil
}

func (m Mount) mount(to string) error {
	info, err := os.Stat(m.From)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if _, missing := os.Stat(to); missing != nil {
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(m.From, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	propagation := uintptr(unix.MS_PRIVATE)
	if m.Slave {
		propagation = unix.MS_SLAVE
	}
	if err := unix.Mount("", to, "", unix.MS_REC|propagation, ""); err != nil {
		return err
	}
	if m.ReadOnly {
		return unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	return nil
}

// pivot makes root the root, and lets go of the old one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil { // the old one is over it now: pivot_root(2)
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the old root: %w", err)
	}
	return unix.Chdir("/")
}

// limit leaves the calling thread, and what it executes, these capabilities alone.
func limit(names []string) error {
	var mask uint64
	for _, name := range names {
		n := slices.Index(capabilities, name)
		if n < 0 {
			return fmt.Errorf("%q is no capability", name)
		}
		mask |= 1 << n
	}
	for n := range 64 {
		if mask&(1<<n) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err == unix.EINVAL {
			break // the kernel has no more
		} else if err != nil {
			return fmt.Errorf("dropping capability %d: %w", n, err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(mask), uint32(mask>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("keeping %q alone: %w", names, err)
	}
	return nil
}

// capabilities are by number: include/uapi/linux/capability.h.
var capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
	SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
	AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON
	BPF CHECKPOINT_RESTORE`)
