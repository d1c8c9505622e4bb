package deploy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/wait"
)

// boot runs systemd as process 1 of namespaces of its own, with a few targets and the
// units in the directory UNITS. /run, /opt, /etc and /usr/local/lib are the test's: what is
// written there is gone with it.
const boot = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/units /run/etc/upper /run/etc/work /run/netns
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
mount -t tmpfs tmpfs /opt
mount -t tmpfs tmpfs /usr/local/lib
mkdir /usr/local/lib/podmark
cp "$BIN"/podmark "$BIN"/podmarkd "$BIN"/podmarkctl /usr/local/lib/podmark/
cp -r "$UNITS"/. /run/units
for target in sysinit basic shutdown network multi-user; do
  printf '[Unit]\nDefaultDependencies=no\n' >/run/units/$target.target
done
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -o bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mkdir -p /etc/cni/net.d
cp "$CONFLIST" /etc/cni/net.d/
mkdir -p /opt/cni/bin
for plugin in ptp host-local portmap bandwidth; do cp /bin/true /opt/cni/bin/$plugin; done
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH=/run/units /lib/systemd/systemd --system --unit=multi-user.target --show-status=0`

// machine is a systemd that runs until the test ends, in the test's network namespace.
type machine struct {
	t   *testing.T
	pid int
}

func start(t *testing.T, units string) machine {
	t.Helper()
	netns.Enter(t)
	cgroups := t.TempDir()
	for _, err := range []error{
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("cgroup2", cgroups, "cgroup2", 0, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(cgroups, unix.MNT_DETACH) })
	group, err := os.MkdirTemp(cgroups, "podmark-test-")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	t.Cleanup(func() { removeGroup(t, group) })
	cmd := exec.Command("unshare", "--cgroup", "bash", "-c", boot)
	tree, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(os.Environ(), "UNITS="+units, "BIN="+tree+"/bin", "CONFLIST="+tree+"/conf/10-podmark-ptp.conflist")
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(dir.Fd()), Setsid: true, Pdeathsig: unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // all of its processes end with it
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("systemd said:\n%s", log.String())
		}
	})
	return machine{t: t, pid: cmd.Process.Pid}
}

// removeGroup removes a group whose processes have been killed, as soon as they are gone.
func removeGroup(t *testing.T, group string) {
	var groups []string
	_ = filepath.WalkDir(group, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	for i := len(groups) - 1; i >= 0; i-- {
		var err error
		busy := wait.Poll(func() error {
			if err = unix.Rmdir(groups[i]); err == unix.EBUSY {
				return err
			}
			return nil
		})
		if err := errors.Join(busy, err); err != nil {
			t.Errorf("removing %s: %v", groups[i], err)
		}
	}
}

// run executes a command among the machine's files and processes.
func (m machine) run(args ...string) (string, error) {
	args = append([]string{"--target", fmt.Sprint(m.pid), "--mount", "--pid", "--"}, args...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%q: %w: %s", args, err, out)
	}
	return string(out), err
}

func (m machine) must(args ...string) string {
	m.t.Helper()
	out, err := m.run(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m machine) eventually(what string, check func() error) {
	m.t.Helper()
	err := wait.Poll(check)
	if err == nil {
		return
	}
	status, _ := m.run("systemctl", "status", "--no-pager", "podmarkd")
	said, _ := m.run("cat", "/run/podmarkd.log")
	m.t.Fatalf("%s: %v\n%s\n%s", what, err, status, said)
}

// get asks podmarkd, from the test's own thread: it is the one in the network namespace.
func get(path string) (string, error) {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:9469", wait.Still)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	request, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:9469"+path, nil)
	if err == nil {
		err = request.Write(conn)
	}
	if err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, r.Status, b)
	}
	return string(b), err
}

// A real systemd starts the unit with all its restrictions, and podmarkd does what it is
// for: it installs, serves, repairs, and leaves the data plane when it is stopped.
func TestUnitRuns(t *testing.T) {
	for name, tt := range map[string]struct {
		backend, dropIn, flush string
		capabilities           uint64
	}{
		"nftables": {"nftables", "", "nft flush ruleset", 1 << unix.CAP_NET_ADMIN},
		"iptables": {"iptables", "conf/podmarkd-iptables.conf", "iptables-nft -t mangle -F", 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW},
	} {
		t.Run(name, func(t *testing.T) {
			units := t.TempDir()
			write := func(name, text string) {
				t.Helper()
				path := filepath.Join(units, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("podmarkd.service", string(read(t, "conf/podmarkd.service")))
			write("podmarkd.service.d/log.conf", "[Service]\nStandardError=append:/run/podmarkd.log\nEnvironment=PODMARKD_INTERVAL=300ms PODMARKD_POLICY=files\n")
			if tt.dropIn != "" {
				write("podmarkd.service.d/iptables.conf", string(read(t, tt.dropIn)))
			}
			m := start(t, units)
			m.eventually("systemd answers", func() error { _, err := m.run("systemctl", "is-system-running", "--wait"); return ignoreDegraded(err) })
			m.must("ip", "link", "set", "lo", "up")
			m.must("iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
			m.must("systemctl", "start", "--no-block", "podmarkd")
			m.eventually("it is ready", func() error { _, err := get("/readyz"); return err })
			m.eventually("it has installed", func() error {
				_, err := m.run("cmp", "/usr/local/lib/podmark/podmark", "/opt/cni/bin/podmark")
				return err
			})

			pid := strings.TrimSpace(m.must("systemctl", "show", "--property=MainPID", "--value", "podmarkd"))
			status := m.must("cat", "/proc/"+pid+"/status")
			for _, line := range []string{fmt.Sprintf("CapEff:\t%016x\n", tt.capabilities), fmt.Sprintf("CapBnd:\t%016x\n", tt.capabilities), "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
				if !strings.Contains(status, line) {
					t.Errorf("no %q in\n%s", line, status)
				}
			}

			// A pod's ADD writes the same; it takes no pod to have something repaired.
			m.must("sh", "-c", fmt.Sprintf(`ip netns add a && ip link add veth1 type veth peer name eth0 netns a && echo '{"cniVersion": "1.1.0", "name": "net", "type": "podmark", "policy": "files", "backend": %q,
				"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/32"}]}}' |
				CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_NETNS=/run/netns/a CNI_IFNAME=eth0 CNI_PATH=/ /opt/cni/bin/podmark`, tt.backend))
			metric := func(pattern string) error {
				body, err := get("/metrics")
				if err == nil && !regexp.MustCompile("(?m)^"+pattern).MatchString(body) {
					err = fmt.Errorf("no %s in\n%s", pattern, body)
				}
				return err
			}
			m.must("/usr/local/lib/podmark/podmarkctl", "apply", "--delete") // or the pod is open for want of a policy
			m.eventually("it has looked", func() error { return metric("podmark_node_ports_info") })
			m.must("sh", "-c", tt.flush)
			m.eventually("it repairs", func() error {
				if err := metric(`podmark_repairs_total\{[^}]*\} [1-9]`); err != nil {
					return err
				}
				_, err := get("/readyz")
				return err
			})
			rules := m.must("nft", "-s", "list", "ruleset")
			if !strings.Contains(strings.ToLower(rules), "podmark") {
				t.Errorf("nothing of podmark in\n%s", rules)
			}
			m.must("systemctl", "stop", "podmarkd")
			if got := m.must("systemctl", "show", "--property=Result,ExecMainStatus", "podmarkd"); !strings.Contains(got, "Result=success") || !strings.Contains(got, "ExecMainStatus=0") {
				t.Errorf("stopped with %s", got)
			}
			if after := m.must("nft", "-s", "list", "ruleset"); after != rules {
				t.Errorf("it was stopped, and left\n%s\nof\n%s", after, rules)
			}
			m.must("test", "-e", "/run/podmark/node.json")
		})
	}
}

// ignoreDegraded is for a machine whose other units are not there.
func ignoreDegraded(err error) error {
	if err != nil && strings.Contains(err.Error(), "degraded") {
		return nil
	}
	return err
}
