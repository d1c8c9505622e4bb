package metrics_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/value"
)

// ruleTests is a file of 'promtool test rules', with the fields that are used here. JSON is YAML.
type ruleTests struct {
	RuleFiles          []string   `json:"rule_files"`
	EvaluationInterval string     `json:"evaluation_interval"`
	Tests              []ruleTest `json:"tests"`
}

type ruleTest struct {
	Name        string        `json:"name"`
	Interval    string        `json:"interval"`
	InputSeries []inputSeries `json:"input_series"`
	Exprs       []exprTest    `json:"promql_expr_test"`
}

type inputSeries struct {
	Series string `json:"series"`
	Values string `json:"values"`
}

type exprTest struct {
	Expr       string      `json:"expr"`
	EvalTime   string      `json:"eval_time"`
	ExpSamples []expSample `json:"exp_samples"`
}

type expSample struct {
	Labels string  `json:"labels"`
	Value  float64 `json:"value"`
}

// forPromtool has the store go on until a time.
func (s store) forPromtool(until time.Duration) []inputSeries {
	var out []inputSeries
	for _, one := range s {
		var values []string
		for i := range int(until/every) + 1 {
			text := "stale"
			if v := one.value(i); !value.IsStaleNaN(v) {
				text = strconv.FormatFloat(v, 'f', -1, 64)
			}
			values = append(values, text)
		}
		out = append(out, inputSeries{one.labels.String(), strings.Join(values, " ")})
	}
	return out
}

// Prometheus' own tool has each alert fire where it is due, once it has been for as long as the rule
// asks for and no sooner, and nowhere else.
func TestPromtool(t *testing.T) {
	rules, err := filepath.Abs("../../conf/alerts/podmark.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := ruleTests{RuleFiles: []string{rules}, EvaluationInterval: every.String()}
	cases := alertCases()
	for _, r := range alerts(t) {
		wait := time.Duration(r.For)
		firing := func(at time.Duration, n float64) exprTest {
			e := exprTest{Expr: fmt.Sprintf("count(ALERTS{alertname=%q, alertstate=\"firing\"})", r.Alert), EvalTime: at.String()}
			if n > 0 {
				e.ExpSamples = []expSample{{"{}", n}}
			}
			return e
		}
		add := func(name string, i int, s store, exprs ...exprTest) {
			file.Tests = append(file.Tests, ruleTest{fmt.Sprintf("%s, %s %d", r.Alert, name, i), every.String(), s.forPromtool(spent + wait), exprs})
		}
		for i, s := range cases[r.Alert].due {
			exprs := []exprTest{firing(spent+wait, 1)}
			if wait > 0 {
				exprs = append(exprs, firing(wait-every, 0))
			}
			add("due", i, s, exprs...)
		}
		for i, s := range cases[r.Alert].not {
			add("not due", i, s, firing(spent, 0), firing(spent+wait, 0))
		}
	}
	b, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tests, promtool := filepath.Join(dir, "tests.yaml"), filepath.Join(dir, "promtool")
	if err := os.WriteFile(tests, b, 0o600); err != nil {
		t.Fatal(err)
	}
	// Without service discovery, which rules do not need, there is a fifth less to compile.
	for _, command := range [][]string{
		{"go", "build", "-tags", "remove_all_sd", "-ldflags", "-s -w", "-o", promtool, "github.com/prometheus/prometheus/cmd/promtool"},
		{promtool, "check", "rules", rules},
		{promtool, "test", "rules", tests},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", command, err, out)
		}
	}
}
