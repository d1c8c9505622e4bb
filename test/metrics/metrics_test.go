package metrics_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// documented is the table of docs/monitoring.md.
func documented(t *testing.T) map[string]family {
	t.Helper()
	out := map[string]family{}
	row := regexp.MustCompile("(?m)^\\| `(podmark_\\w+)` \\| (\\w+) \\| ([^|]*)\\| .+ \\|$")
	for _, m := range row.FindAllStringSubmatch(read(t, "docs/monitoring.md"), -1) {
		f := family{kind: m[2], labels: []string{}}
		for _, l := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(m[3], -1) {
			f.labels = append(f.labels, l[1])
		}
		slices.Sort(f.labels)
		out[m[1]] = f
	}
	return out
}

// What podmarkd exports is what is documented, and all that the dashboard and the alert
// rules ask for.
func TestMetrics(t *testing.T) {
	families := scrape(t)
	exported := shapes(families)
	if diff := cmp.Diff(exported, documented(t), cmp.AllowUnexported(family{})); diff != "" {
		t.Errorf("exported (-) and in docs/monitoring.md (+):\n%s", diff)
	}
	used := map[string]bool{}
	board := dashboard(t)
	for _, q := range board.queries() {
		names, err := check(q.expr, exported)
		if err != nil {
			t.Errorf("dashboard, panel %q: %s: %v", q.panel, q.expr, err)
			continue
		}
		for _, name := range names {
			used[name] = true
		}
		result, err := samples(families).evaluate(q.expr)
		if lacking := unnamed(q.legend, result); err != nil || len(result) == 0 || lacking != nil {
			t.Errorf("dashboard, panel %q: %s shows %v, without the labels %q of the legend: %v", q.panel, q.expr, result, lacking, err)
		}
	}
	for name := range exported {
		if !used[name] {
			t.Errorf("no panel of the dashboard shows %s", name)
		}
	}
	for _, v := range board.Templating.List {
		if m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(v.Query); v.Type == "query" && (m == nil || exported[m[1]].kind == "" || m[2] != "instance") {
			t.Errorf("variable %s: %q", v.Name, v.Query)
		}
	}
	exported["up"] = family{kind: "gauge", labels: []string{"instance", "job"}} // Prometheus' own
	well := append(samples(families), of("up", steady(1)))
	for _, r := range alerts(t) {
		if _, err := check(r.Expr, exported); err != nil {
			t.Errorf("alert %s: %s: %v", r.Alert, r.Expr, err)
		}
		if result, err := well.evaluate(r.Expr); err != nil || len(result) != 0 {
			t.Errorf("alert %s fires for %v of a node on which all is well: %v", r.Alert, result, err)
		}
	}
}

// alerts are the rules, as Prometheus reads them.
func alerts(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.Parse([]byte(read(t, "conf/alerts/podmark.yaml")), false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var out []rulefmt.Rule
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("rule %+v lacks a name, a severity, a summary or a description", r)
			}
			out = append(out, r)
		}
	}
	return out
}

// board is what is read of Grafana's model of a dashboard.
type board struct {
	Templating struct {
		List []struct{ Name, Type, Query string }
	}
	Panels []struct {
		ID          int
		Type, Title string
		GridPos     struct{ X, Y, W, H int }
		Targets     []struct{ Expr, LegendFormat string }
	}
}

type query struct{ panel, expr, legend string }

func dashboard(t *testing.T) board {
	t.Helper()
	var b board
	if err := json.Unmarshal([]byte(read(t, "conf/dashboards/podmark.json")), &b); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	at := map[[2]int]string{}
	for _, p := range b.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q has the ID of another one, no title or no query", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := at[cell]; other != "" {
					t.Fatalf("panels %q and %q overlap", p.Title, other)
				}
				at[cell] = p.Title
			}
		}
	}
	return b
}

// queries are the expressions as Grafana sends them.
func (b board) queries() []query {
	var out []query
	for _, p := range b.Panels {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr)
			out = append(out, query{p.Title, expr, target.LegendFormat})
		}
	}
	return out
}

// added are the labels that Prometheus adds when it scrapes.
var added = []string{"instance", "job"}

// check parses an expression and returns the metrics that it names. Each of them must be
// exported, with the labels that it is selected and grouped by.
func check(expr string, exported map[string]family) ([]string, error) {
	tree, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		return nil, err
	}
	var names, wrong []string
	labelsOf := func(node parser.Node) []string {
		have := slices.Clone(added)
		for _, v := range selectors(node) {
			_, f := lookUp(v.Name, exported)
			have = append(have, f.labels...)
		}
		return have
	}
	for _, v := range selectors(tree) {
		name, f := lookUp(v.Name, exported)
		names = append(names, name)
		if f.kind == "" {
			wrong = append(wrong, fmt.Sprintf("%q is not exported", v.Name))
		}
		for _, m := range v.LabelMatchers {
			if m.Name != model.MetricNameLabel && !slices.Contains(append(f.labels, added...), m.Name) {
				wrong = append(wrong, fmt.Sprintf("%s has no label %q", name, m.Name))
			}
		}
	}
	parser.Inspect(tree, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.AggregateExpr:
			for _, label := range n.Grouping {
				if !slices.Contains(labelsOf(n.Expr), label) {
					wrong = append(wrong, fmt.Sprintf("nothing in %s has a label %q", n.Expr, label))
				}
			}
		case *parser.Call: // only a counter has a rate
			for _, v := range selectors(n) {
				if _, f := lookUp(v.Name, exported); f.kind == "gauge" && (n.Func.Name == "rate" || n.Func.Name == "increase") {
					wrong = append(wrong, fmt.Sprintf("%s of %s, which is a gauge", n.Func.Name, v.Name))
				}
			}
		}
		return nil
	})
	if wrong != nil {
		return nil, errors.New(strings.Join(wrong, "; "))
	}
	return names, nil
}

// selectors lists what an expression selects.
func selectors(node parser.Node) []*parser.VectorSelector {
	var out []*parser.VectorSelector
	parser.Inspect(node, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			out = append(out, v)
		}
		return nil
	})
	return out
}

// lookUp finds the metric of a series: a histogram has three names, and its buckets a label.
func lookUp(series string, exported map[string]family) (string, family) {
	if f, ok := exported[series]; ok && f.kind != "histogram" {
		return series, f
	}
	for _, suffix := range []string{"_bucket", "_count", "_sum"} {
		name, ok := strings.CutSuffix(series, suffix)
		if f := exported[name]; ok && f.kind == "histogram" {
			f.labels = slices.Clone(f.labels)
			if suffix == "_bucket" {
				f.labels = append(f.labels, "le")
			}
			return name, f
		}
	}
	return series, family{}
}
