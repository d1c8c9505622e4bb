package containerd_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// container is the DaemonSet's as a kubelet asks a runtime for it. The node's directories
// are those that containerd sees, but for CNI's, which are the test's.
func (n *node) container(t *testing.T) *cri.ContainerConfig {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "conf/kustomize/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var d appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(b, &d); err != nil {
		t.Fatal(err)
	}
	pod := d.Spec.Template.Spec
	spec := pod.Containers[0]
	rights := spec.SecurityContext
	if rights.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Fatalf("seccomp profile %s: this test knows the runtime's", rights.SeccompProfile.Type)
	}
	config := t.TempDir()
	entry, err := os.ReadFile(filepath.Join(root, "conf/kustomize/entry.json"))
	if err == nil {
		// There is no API server here.
		entry = bytes.Replace(entry, []byte(`"kubernetes"`), []byte(`"none"`), 1)
		err = os.WriteFile(filepath.Join(config, "entry.json"), entry, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	directories := map[string]string{"/etc/cni/net.d": n.conf, "/opt/cni/bin": n.bin}
	var mounts []*cri.Mount
	for _, m := range spec.VolumeMounts {
		mount := &cri.Mount{ContainerPath: m.MountPath, HostPath: config, Readonly: m.ReadOnly}
		for _, v := range pod.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				if mount.HostPath = directories[v.HostPath.Path]; mount.HostPath == "" {
					mount.HostPath = v.HostPath.Path
				}
			}
		}
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationHostToContainer {
			mount.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}
		mounts = append(mounts, mount)
	}
	capabilities := &cri.Capability{}
	for _, c := range rights.Capabilities.Add {
		capabilities.AddCapabilities = append(capabilities.AddCapabilities, string(c))
	}
	for _, c := range rights.Capabilities.Drop {
		capabilities.DropCapabilities = append(capabilities.DropCapabilities, string(c))
	}
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: spec.Name}, Image: &cri.ImageSpec{Image: image},
		Command: spec.Command, Args: spec.Args, Mounts: mounts, LogPath: "podmarkd.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			Capabilities: capabilities, Privileged: *rights.Privileged, ReadonlyRootfs: *rights.ReadOnlyRootFilesystem,
			NoNewPrivs: !*rights.AllowPrivilegeEscalation, RunAsUser: &cri.Int64Value{Value: *rights.RunAsUser},
			NamespaceOptions: nodeNetwork(), Seccomp: runtimeDefault(),
		}},
	}
}

const image = "docker.io/library/podmark:dev"

func nodeNetwork() *cri.NamespaceOption {
	return &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
}

func runtimeDefault() *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
}

// The DaemonSet's container as containerd and runc run it, with the seccomp profile of
// the runtime: podmarkd installs, repairs, and leaves the data plane when it is stopped.
func TestDaemonSet(t *testing.T) {
	n := newNode(t)
	n.state = fmt.Sprintf("/proc/%d/root/run/podmark", n.pid)
	if err := os.Mkdir(n.state, 0o755); err != nil { // DirectoryOrCreate is the kubelet's
		t.Fatal(err)
	}
	programs := map[string]string{}
	for _, p := range []string{"podmark", "podmarkd", "podmarkctl"} {
		programs["opt/podmark/"+p] = filepath.Join(root, "bin", p)
	}
	n.importImage(image, programs, "/opt/podmark/podmarkd")
	ctx, cancel := limited()
	defer cancel()
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "podmarkd", Namespace: "kube-system", Uid: "podmarkd"},
		LogDirectory: n.dir, Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    "/" + n.group(),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: nodeNetwork(), Seccomp: runtimeDefault()},
		},
	}
	pod, err := n.cri.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	made, err := n.cri.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: n.container(t), SandboxConfig: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.cri.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(n.dir + "/podmarkd.log")
			t.Logf("podmarkd said:\n%s", log)
		}
	})
	n.loads(with)
	n.eventually("it serves", func() error {
		conn, err := net.Dial("tcp", "127.0.0.1:9469")
		if err == nil {
			conn.Close()
		}
		return err
	})
	n.rights(t)
	p := n.mustStart()
	if !p.marked() {
		t.Error("a pod is not known")
	}
	rules := func() string { return n.run("nft", "-s", "list", "table", "inet", "podmark") }
	before := rules()
	n.run("nft", "flush", "ruleset")
	n.eventually("it repairs", func() error {
		if !strings.Contains(n.run("nft", "-s", "list", "ruleset"), before) {
			return errors.New("the table is not as it was")
		}
		return nil
	})
	if _, err := n.cri.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: made.ContainerId, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	s, err := n.cri.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: made.ContainerId})
	if err != nil || s.Status.ExitCode != 0 {
		t.Errorf("SIGTERM: %v, %+v", err, s)
	}
	if rules() != before {
		t.Error("it ended, and left another table")
	}
	p.mustEnd()
	if p.marked() {
		t.Error("a pod that was deleted is known")
	}
}

// rights wants the container's process to have one capability and a seccomp profile.
func (n *node) rights(t *testing.T) {
	t.Helper()
	statuses, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/proc/[0-9]*/status", n.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range statuses {
		b, _ := os.ReadFile(name) // of a process that may have ended
		if !strings.HasPrefix(string(b), "Name:\tpodmarkd\n") {
			continue
		}
		for _, line := range []string{
			fmt.Sprintf("CapEff:\t%016x\n", 1<<unix.CAP_NET_ADMIN), fmt.Sprintf("CapBnd:\t%016x\n", 1<<unix.CAP_NET_ADMIN), "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
		} {
			if !strings.Contains(string(b), line) {
				t.Errorf("no %q in\n%s", line, b)
			}
		}
		return
	}
	t.Errorf("no podmarkd among %d processes", len(statuses))
}
