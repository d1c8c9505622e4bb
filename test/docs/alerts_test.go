package docs_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// Each alert has a section in docs/monitoring.md, to which it leads, and each section has an
// alert.
func TestRunbooks(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "conf/alerts/podmark.yaml")), &rules); err != nil {
		t.Fatal(err)
	}
	var alerts []string
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			alerts = append(alerts, r.Alert)
			want := "https://github.com/podmark/podmark/blob/main/docs/monitoring.md#" + strings.ToLower(r.Alert)
			if got := r.Annotations["runbook_url"]; got != want {
				t.Errorf("alert %s leads to %q, want %q", r.Alert, got, want)
			}
		}
	}
	if len(alerts) == 0 {
		t.Fatal("no alerts")
	}
	_, sections, _ := strings.Cut(read(t, "docs/monitoring.md"), "\n## Alerts\n")
	var headings []string
	for _, m := range regexp.MustCompile(`(?m)^### (.+)$`).FindAllStringSubmatch(sections, -1) {
		headings = append(headings, m[1])
	}
	if diff := cmp.Diff(alerts, headings); diff != "" {
		t.Errorf("alerts (-) and sections of docs/monitoring.md (+), in their order:\n%s", diff)
	}
}
