package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/test/contain"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// inPod is a host whose podmarkd runs in the container of conf/kustomize.
type inPod struct {
	*host
	*place
	// root stands for the node's root directory.
	root      string
	container contain.Container
}

func newInPod(t *testing.T, b backend) *inPod {
	t.Helper()
	t.Parallel()
	h := newHost(t, b)
	p := &inPod{host: h, place: newPlace(t), root: t.TempDir()}
	// A mount namespace of the test's own, whose mounts go where others take them.
	for _, err := range []error{
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", p.root, "tmpfs", 0, ""),
		unix.Mount("", p.root, "", unix.MS_SHARED, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(p.root, unix.MNT_DETACH) })
	h.Dir = filepath.Join(p.root, "run/podmark")
	p.state, p.conf, p.bin = h.Dir, filepath.Join(p.root, "etc/cni/net.d"), filepath.Join(p.root, "opt/cni/bin")
	for _, dir := range []string{h.Dir, p.conf, p.bin, filepath.Join(p.root, namespaces), namespaces} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.plugins("ptp", "bridge", "host-local", "portmap")
	// The plugin is told of namespaces by the paths that they have on a node.
	if err := unix.Mount(filepath.Join(p.root, namespaces), namespaces, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	bpf := filepath.Join(p.root, checksum.Mount)
	if err := errors.Join(os.MkdirAll(bpf, 0o755), unix.Mount(checksum.Mount, bpf, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile("../../conf/kustomize/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(manifest, &d); err != nil {
		t.Fatal(err)
	}
	config := t.TempDir()
	entry, err := os.ReadFile("../../conf/kustomize/entry.json")
	if err == nil {
		// There is no API server here.
		entry = bytes.Replace(entry, []byte(`"kubernetes"`), []byte(`"files"`), 1)
		err = os.WriteFile(filepath.Join(config, "entry.json"), entry, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	image := map[string]string{}
	for _, program := range []string{"podmark", "podmarkd", "podmarkctl"} {
		image["/opt/podmark/"+program] = filepath.Join(testnode.Programs(t), program)
	}
	p.container, err = contain.Of(d.Spec.Template.Spec, "podmarkd", contain.Node{Root: p.root, Image: image, ConfigMaps: map[string]string{"podmarkd": config}})
	if err != nil {
		t.Fatal(err)
	}
	p.container.Env = append(p.container.Env, "PODMARKD_INTERVAL=300ms")
	// Without one podmarkd is not ready.
	p.write("10-a.conflist", chain("net", "ptp"))
	return p
}

// namespaces is where runtimes keep the network namespaces of pods.
const namespaces = "/var/run/netns"

// start runs the container until the test ends.
func (p *inPod) start(change func(*contain.Container)) *daemon {
	p.T.Helper()
	c := p.container
	c.Mounts, c.Args = slices.Clone(c.Mounts), slices.Clone(c.Args)
	if change != nil {
		change(&c)
	}
	return &daemon{h: p.host, Daemon: p.Daemon(c.Command(p.T.TempDir())), address: "127.0.0.1:9469"}
}

// ready says what podmarkd's probe says.
func (d *daemon) ready() error {
	if !strings.Contains(d.Log.String(), "Serving metrics") {
		return errors.New("it does not serve")
	}
	if code, why := d.get("/readyz"); code != 200 {
		return fmt.Errorf("/readyz %d %s", code, why)
	}
	return nil
}

// namespace is a pod's that is a mount as containerd makes it.
func (p *inPod) namespace(name string) testnode.Space {
	p.T.Helper()
	of, end := testnode.SpaceUntil(p.T)
	path := filepath.Join(namespaces, name)
	if err := errors.Join(os.WriteFile(path, nil, 0o444), unix.Mount(of.Path, path, "", unix.MS_BIND, "")); err != nil {
		p.T.Fatal(err)
	}
	end()
	return testnode.Space{Path: path}
}

// The container of conf/kustomize, with its capability, its mounts and its read-only
// root, does all that podmarkd is for.
func TestContained(t *testing.T) {
	p := newInPod(t, nftables)
	const name = "10-a.conflist"
	list := chain("net", "ptp", "portmap")
	p.write(name, list)
	p.Ctl(policy, "apply", "-f", "-")
	p.addPod()
	d := p.start(nil)
	p.eventually("it is ready", d.ready)
	p.rightsAre(d, p.container.Capabilities)

	p.eventually("podmark is installed", func() error { return p.place.has(name, "ptp", "portmap", "podmark") })
	p.hasPlugin()
	if b, err := os.ReadFile(filepath.Join(p.conf, name)); err != nil || !strings.Contains(string(b), `"iptablesMarkMask": "0xffff0000"`) {
		t.Errorf("the entry is not that of the ConfigMap: %v\n%s", err, b)
	}
	if err := p.rename(name, chain("net", "bridge")); err != nil {
		t.Fatal(err)
	}
	p.eventually("it is put back", func() error { return p.place.has(name, "bridge", "podmark") })

	want := p.kernel()
	for i, harm := range harms(p.Backend) {
		harm.do(p.host)
		p.eventually(harm.name+" is repaired", func() error {
			if got := d.repairs(); got == i {
				return fmt.Errorf("%d repairs", got)
			}
			if diff := cmp.Diff(want, p.kernel()); diff != "" {
				return errors.New(diff)
			}
			return nil
		})
	}
	if code := d.Stop(); code != 0 {
		t.Errorf("SIGTERM: ended with %d", code)
	}
	if diff := cmp.Diff(want, p.kernel()); diff != "" {
		t.Errorf("it ended, and left:\n%s", diff)
	}
	p.hasTypes(name, "bridge", "podmark")
}

// rightsAre wants a process to have these capabilities, no way to others, and a root
// that it cannot write to.
func (p *inPod) rightsAre(d *daemon, want []string) {
	t := p.T
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(want, []string{"NET_ADMIN"}) {
		t.Errorf("capabilities %q: this test knows NET_ADMIN", want)
	}
	for _, line := range []string{"CapInh:\t%016x", "CapPrm:\t%016x", "CapEff:\t%016x", "CapBnd:\t%016x", "CapAmb:\t%016x"} {
		mask := 1 << unix.CAP_NET_ADMIN
		if strings.HasPrefix(line, "CapInh") || strings.HasPrefix(line, "CapAmb") {
			mask = 0
		}
		if line = fmt.Sprintf(line, mask); !strings.Contains(string(status), line+"\n") {
			t.Errorf("no %q in\n%s", line, status)
		}
	}
	if !strings.Contains(string(status), "NoNewPrivs:\t1\n") {
		t.Error("it could get new privileges")
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", d.Process.Pid))
	if err != nil || !regexp.MustCompile(`(?m)^\d+ \d+ \S+ / / ro\b`).Match(mounts) {
		t.Errorf("the root can be written to: %v\n%s", err, mounts)
	}
}

// Without any one of the rights and mounts something is missing: there is none too many.
func TestContainedNeedsAll(t *testing.T) {
	without := func(to string) func(*contain.Container) {
		return func(c *contain.Container) {
			n := len(c.Mounts)
			if c.Mounts = slices.DeleteFunc(c.Mounts, func(m contain.Mount) bool { return m.To == to }); len(c.Mounts) == n {
				t.Errorf("no mount %s", to)
			}
		}
	}
	says := func(text string) func(*inPod, *daemon) error {
		return func(_ *inPod, d *daemon) error {
			if !strings.Contains(d.Log.String(), text) {
				return fmt.Errorf("it does not say %q", text)
			}
			return nil
		}
	}
	for name, tt := range map[string]struct {
		change func(*contain.Container)
		check  func(*inPod, *daemon) error
	}{
		"capabilities":   {func(c *contain.Container) { c.Capabilities = nil }, says("operation not permitted")},
		"/etc/podmark":   {without("/etc/podmark"), says("--entry: ")},
		"/run/podmark":   {without("/run/podmark"), says("read-only file system")},
		"/etc/cni/net.d": {without("/etc/cni/net.d"), says("--cni-conf-dir says where it is")},
		"/opt/cni/bin":   {without("/opt/cni/bin"), says("--cni-bin-dir")},
	} {
		t.Run(name, func(t *testing.T) {
			p := newInPod(t, nftables)
			p.write("10-a.conflist", chain("net", "ptp"))
			p.addPod()
			d := p.start(tt.change)
			p.eventually("something is missing", func() error { return tt.check(p, d) })
		})
	}
}

// A pod whose interface is gone is not taken for gone while its network namespace is
// there, and the container does not keep that alive.
func TestContainedNamespaces(t *testing.T) {
	p := newInPod(t, nftables)
	before := p.namespace("before")
	p.addPodIn(before)
	d := p.start(func(c *contain.Container) { c.Env = append(c.Env, "PODMARKD_COLLECT_AFTER=1s") })
	p.eventually("it is ready", d.ready)
	during := p.namespace("during")
	p.addPodIn(during)
	kept := p.namespace("kept")
	p.addPodIn(kept)
	p.Exec("", "ip", "link", "del", "veth3")
	for i, space := range []testnode.Space{before, during} {
		if err := unix.Unmount(space.Path, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		p.eventually("the namespace ends, and the pod's interface with it", func() error {
			_, err := netlink.LinkByName(fmt.Sprintf("veth%d", i+1))
			if missing := (netlink.LinkNotFoundError{}); !errors.As(err, &missing) {
				return fmt.Errorf("it is there: %w", err)
			}
			return nil
		})
		if err := os.Remove(space.Path); err != nil {
			t.Fatal(err)
		}
	}
	p.eventually("both are collected, and the third is not", func() error {
		if got := d.metric("podmark_garbage_collected_total"); got != "2" {
			return fmt.Errorf("podmark_garbage_collected_total %s", got)
		}
		return nil
	})
	if list := p.records(); len(list) != 1 || list[0].Pod != "web-3" {
		t.Errorf("left are %+v", list)
	}
}

// A pod from before podmark gets an ID, without a right to enter its network namespace.
func TestContainedAdopts(t *testing.T) {
	p := newInPod(t, nftables)
	p.write("10-a.conflist", chain("net", "ptp"))
	space := p.namespace("before")
	if err := testnode.Veth("veth1", space, "eth0"); err != nil {
		t.Fatal(err)
	}
	cached := fmt.Sprintf(`{"kind": "cniCacheV1", "containerId": "before", "ifName": "eth0", "networkName": "net", "netns": %q,
		"cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web-0"]],
		"result": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}}`, space.Path)
	file := filepath.Join(p.root, "var/lib/cni/results/net-before-eth0")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(cached), 0o600)); err != nil {
		t.Fatal(err)
	}
	d := p.start(nil)
	p.eventually("the pod is adopted", func() error {
		if list := p.records(); len(list) != 1 || list[0].Namespace != "shop" || list[0].Pod != "web-0" || list[0].HostVeth != "veth1" || !list[0].Committed {
			return fmt.Errorf("records %+v", list)
		}
		return nil
	})
	p.Ctl("", "apply", "--delete")
	p.eventually("it is ready", d.ready)
}

// What the chart does with uninstall: the same rights are enough.
func TestContainedUninstall(t *testing.T) {
	p := newInPod(t, nftables)
	list := chain("net", "ptp")
	p.write("10-a.conflist", list)
	kernel := p.kernel()
	d := p.start(nil)
	p.eventually("podmark is installed", func() error { return p.place.has("10-a.conflist", "ptp", "podmark") })
	p.addPod()
	p.eventually("it is ready", d.ready)
	d.Stop()
	runs := func(args ...string) *daemon {
		return p.start(func(c *contain.Container) { c.Args = append([]string{c.Args[0]}, args...) })
	}
	u := runs("uninstall", "--wait="+wait.Most.String())
	p.eventually("the entry is out", func() error { return p.place.has("10-a.conflist", "ptp") })
	p.hasPlugin()
	p.deletePod(p.host, 1)
	if code := u.Wait(); code != 0 {
		t.Fatalf("uninstall ended with %d", code)
	}
	if diff := cmp.Diff(kernel, p.kernel()); diff != "" {
		t.Errorf("kernel:\n%s", diff)
	}
	if left, err := os.ReadDir(p.state); err != nil || len(left) > 0 {
		t.Errorf("left in %s: %v, %v", p.state, left, err)
	}
	if left, err := filepath.Glob(filepath.Join(p.bin, "*podmark*")); err != nil || len(left) > 0 {
		t.Errorf("left in %s: %v, %v", p.bin, left, err)
	}
	if b, err := os.ReadFile(filepath.Join(p.conf, "10-a.conflist")); err != nil || !bytes.Equal(b, []byte(list)) {
		t.Errorf("the conflist is not as it was: %v\n%s", err, b)
	}
	// Then the chart has podmarkd run with no directory, and it is ready; with the directories it misses podmark.
	d = runs("--listen=127.0.0.1:9469")
	p.eventually("it is not ready, and says why", func() error {
		if !strings.Contains(d.Log.String(), "Serving metrics") {
			return errors.New("it does not serve")
		}
		if code, why := d.get("/readyz"); code != 503 || !strings.Contains(why, "no entry") {
			return fmt.Errorf("/readyz %d %s", code, why)
		}
		return nil
	})
	d.Stop()
	d = runs("--cni-conf-dir=", "--listen=127.0.0.1:9469")
	p.eventually("it is ready", d.ready)
}

// The image has no iptables: podmarkd says so where it is needed.
func TestContainedWithoutIptables(t *testing.T) {
	p := newInPod(t, backends[1])
	p.addPod() // the plugin finds those of the node
	d := p.start(nil)
	p.eventually("it is not ready, and says why", func() error {
		if !strings.Contains(d.Log.String(), "Serving metrics") {
			return errors.New("it does not serve")
		}
		code, why := d.get("/readyz")
		if code != 503 || !strings.Contains(why, "iptables-save") || !strings.Contains(why, "in its image") {
			return fmt.Errorf("/readyz %d %s", code, why)
		}
		return nil
	})
}

// With an image that has iptables, it needs what the chart gives it for that backend:
// the lock of iptables, and NET_RAW, by which iptables asks for sets.
func TestContainedIptables(t *testing.T) {
	for _, b := range backends[1:] {
		t.Run(b.Name, func(t *testing.T) {
			p := newInPod(t, b)
			p.Ctl(policy, "apply", "-f", "-")
			p.addPod()
			lock := filepath.Join(p.root, "run/xtables.lock")
			if err := os.WriteFile(lock, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			with := func(rights ...string) *daemon {
				return p.start(func(c *contain.Container) {
					c.Capabilities = append(slices.Clone(c.Capabilities), rights...)
					c.Env = append(c.Env, "PATH=/usr/sbin:/usr/bin")
					for _, dir := range []string{"/usr", "/lib", "/lib64"} {
						c.Mounts = append(c.Mounts, contain.Mount{From: dir, To: dir, ReadOnly: true})
					}
					c.Mounts = append(c.Mounts, contain.Mount{From: lock, To: "/run/xtables.lock"})
				})
			}
			d := with("NET_RAW")
			p.eventually("it is ready", d.ready)
			want := p.kernel() // with the ports in use
			p.Iptables("-F")
			p.eventually("it is repaired", func() error {
				if diff := cmp.Diff(want, p.kernel()); diff != "" {
					return errors.New(diff)
				}
				return nil
			})
			d.Stop()
			p.Iptables("-F")
			d = with()
			p.eventually("without NET_RAW it is not", func() error {
				if !strings.Contains(d.Log.String(), "Reconciliation failed") {
					return errors.New("it does not say so")
				}
				return nil
			})
		})
	}
}

// Whether there is a program that looks where checksums go, podmarkd sees by its mount, and
// says once what is lacking: it has no right to attach one.
func TestContainedChecksums(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*contain.Container)
		remove bool
		says   string // empty where there is one
	}{
		"there":   {},
		"removed": {remove: true, says: "a BPF program"},
		"without the mount": {change: func(c *contain.Container) {
			c.Mounts = slices.DeleteFunc(c.Mounts, func(m contain.Mount) bool { return m.To == checksum.Mount })
		}, says: "no bpffs is mounted"},
	} {
		t.Run(name, func(t *testing.T) {
			needs.All(t, needs.Checksums)
			p := newInPod(t, nftables)
			p.addPod()
			if err := checksum.Check(); err != nil {
				t.Fatalf("behind the ADD of a pod: %v", err)
			}
			if tt.remove {
				if err := checksum.Remove(); err != nil {
					t.Fatal(err)
				}
			}
			d := p.start(tt.change)
			p.eventually("it is ready", d.ready)
			p.eventually("it says what is lacking", func() error {
				n := strings.Count(d.Log.String(), "Checksum protection is missing")
				if tt.says == "" && n == 0 || n == 1 && strings.Contains(d.Log.String(), tt.says) {
					return nil
				}
				return fmt.Errorf("it says %d times what is lacking, want once, with %q", n, tt.says)
			})
		})
	}
}
