package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/test/bpffs"
	"github.com/podmark/podmark/test/contain"
	"github.com/podmark/podmark/test/lab"
)

func TestMain(m *testing.M) {
	contain.Main()
	bpffs.Main()
	os.Exit(lab.Losses(m.Run()))
}

// In the container of conf/kustomize, with its one capability, podmarkd reads IPVS and
// repairs a node that has it. The rest is proven in plugins/podmarkd.
func TestDaemonContained(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Backend: lab.NFTables}, routed)
	manifest, err := os.ReadFile("../../conf/kustomize/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(manifest, &d); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, dir := range []string{"run", "etc/cni/net.d", "opt/cni/bin", "var/run/netns"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(c.StateDir, filepath.Join(root, "run/podmark")); err != nil {
		t.Fatal(err)
	}
	programs, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	config, err := filepath.Abs("../../conf/kustomize")
	if err != nil {
		t.Fatal(err)
	}
	container, err := contain.Of(d.Spec.Template.Spec, "podmarkd", contain.Node{
		Root: root, ConfigMaps: map[string]string{"podmarkd": config},
		Image: map[string]string{"/opt/podmark/podmark": programs + "/podmark", "/opt/podmark/podmarkd": programs + "/podmarkd"},
	})
	if err != nil {
		t.Fatal(err)
	}
	container.Env = append(container.Env, "PODMARKD_LOCK_TIMEOUT=2m", "PODMARKD_INTERVAL=2s")
	var log strings.Builder
	cmd := container.Command(t.TempDir())
	cmd.Stderr = &log
	cmd.SysProcAttr.Pdeathsig = 0 // Do has a thread of its own, which may end
	if err := c.Node.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("podmarkd said:\n%s", log.String())
		}
	})
	becomes(t, c.Node, "it has read IPVS", func(s agent.Status) bool { return s.Mode.IPVS && s.Mode.Services > 0 && s.Error == "" })
	c.Node.Run("nft", "delete", "table", "inet", "podmark")
	becomes(t, c.Node, "it has repaired", func(s agent.Status) bool { return s.Repairs > 0 && s.Error == "" })
}
