package metrics_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

const (
	every = 15 * time.Second // a scrape
	spent = time.Hour        // of scrapes, at the end of which expressions are evaluated
)

// end is when; podmark_last_reconcile_timestamp_seconds of a scrape is made to fit. The first scrape
// is at 0, as promtool has it.
var end = time.Unix(int64(spent/time.Second), 0)

// series is a metric with its labels, and its value at each scrape.
type series struct {
	labels labels.Labels
	value  func(scrape int) float64
}

// store is what a Prometheus has scraped.
type store []series

// evaluate runs an expression as Prometheus' engine does, and returns the labels of each
// series of its result.
func (s store) evaluate(expr string) ([]labels.Labels, error) {
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: parser.NewParser(parser.Options{})})
	defer engine.Close()
	q, err := engine.NewInstantQuery(context.Background(), s, nil, expr, end)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	vector, err := q.Exec(context.Background()).Vector()
	var out []labels.Labels
	for _, sample := range vector {
		out = append(out, sample.Metric)
	}
	return out, err
}

// named matches a label in a legend of Grafana's or in an annotation.
var named = regexp.MustCompile(`\{\{ *(?:\$labels\.)?(\w+) *\}\}`)

// unnamed lists the labels that a text names and one of the series lacks.
func unnamed(text string, result []labels.Labels) (lacking []string) {
	for _, m := range named.FindAllStringSubmatch(text, -1) {
		if slices.ContainsFunc(result, func(l labels.Labels) bool { return l.Get(m[1]) == "" }) {
			lacking = append(lacking, m[1])
		}
	}
	return lacking
}

// Querier implements storage.Queryable.
func (s store) Querier(int64, int64) (storage.Querier, error) { return querier{s}, nil }

type querier struct{ store }

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found []storage.Series
	for _, s := range q.store {
		matches := true
		for _, m := range matchers {
			matches = matches && m.Matches(s.labels.Get(m.Name))
		}
		if !matches {
			continue
		}
		var list []chunks.Sample
		for i := range int(spent/every) + 1 {
			list = append(list, sample{at: end.Add(time.Duration(i)*every - spent), value: s.value(i)})
		}
		found = append(found, storage.NewListSeries(s.labels, list))
	}
	return &seriesSet{found, -1}
}

// sample is a number; it is no histogram, and is never copied.
type sample struct {
	chunks.Sample
	at    time.Time
	value float64
}

func (s sample) T() int64               { return s.at.UnixMilli() }
func (sample) ST() int64                { return 0 }
func (s sample) F() float64             { return s.value }
func (sample) Type() chunkenc.ValueType { return chunkenc.ValFloat }

func (querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (querier) Close() error { return nil }

// seriesSet is a list of series.
type seriesSet struct {
	list []storage.Series
	at   int
}

func (s *seriesSet) Next() bool                      { s.at++; return s.at < len(s.list) }
func (s *seriesSet) At() storage.Series              { return s.list[s.at] }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }

// samples are the values of one scrape, as if all scrapes had been like it.
func samples(families map[string]*dto.MetricFamily) store {
	var out store
	add := func(name string, pairs []*dto.LabelPair, value float64, more ...string) {
		b := labels.NewBuilder(labels.FromStrings(append(more, "__name__", name, "instance", "node-1", "job", "podmark")...))
		for _, p := range pairs {
			b.Set(p.GetName(), p.GetValue())
		}
		if name == "podmark_last_reconcile_timestamp_seconds" {
			value = float64(end.Unix())
		}
		out = append(out, series{b.Labels(), func(int) float64 { return value }})
	}
	for name, f := range families {
		for _, m := range f.Metric {
			switch {
			case m.Counter != nil:
				add(name, m.Label, m.Counter.GetValue())
			case m.Gauge != nil:
				add(name, m.Label, m.Gauge.GetValue())
			case m.Histogram != nil:
				for _, b := range m.Histogram.Bucket {
					add(name+"_bucket", m.Label, float64(b.GetCumulativeCount()), "le", fmt.Sprint(b.GetUpperBound()))
				}
			}
		}
	}
	return out
}
