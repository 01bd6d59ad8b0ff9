// Evaluates PromQL on given series with Prometheus' own parser and engine.
//
// Standard input is JSON: {"series": "up 0x10\n", "scrapes": [{"at_s": 540, "labels": {"pod": "io-1"}, "text": "up 1\n"}],
// "at_s": 600, "queries": {"name": "up == 0"}}. A line of `series` is one of promtool's rule tests, with a value a minute
// (https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/#series), `scrapes` are pages as a target
// served them at a time. Standard output is JSON: how many elements with a number each query has then, and which of the
// metrics that it names have no series at all.
//
// Series are kept in a map: Prometheus' database would be three times as much to compile.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

type scrape struct {
	AtS    float64           `json:"at_s"`
	Labels map[string]string `json:"labels"`
	Text   string            `json:"text"`
}

type question struct {
	Series  string            `json:"series"`
	Scrapes []scrape          `json:"scrapes"`
	AtS     float64           `json:"at_s"`
	Queries map[string]string `json:"queries"`
}

type answer struct {
	Elements int      `json:"elements"`
	Unknown  []string `json:"unknown"`
}

func check(name string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// series are all of them, each under its labels, with its points in the order of their times.
type series map[string]*promql.Series

func (all series) add(metric labels.Labels, at int64, value float64) {
	one := all[metric.String()]
	if one == nil {
		one = &promql.Series{Metric: metric}
		all[metric.String()] = one
	}
	if last := len(one.Floats) - 1; last >= 0 && one.Floats[last].T >= at {
		check(metric.String(), fmt.Errorf("a point at %d after one at %d", at, one.Floats[last].T))
	}
	one.Floats = append(one.Floats, promql.FPoint{T: at, F: value})
}

// Querier makes it a storage.Queryable.
func (all series) Querier(int64, int64) (storage.Querier, error) { return querier{all}, nil }

type querier struct{ all series }

func (querier) Close() error { return nil }

func (querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.ErrUnsupported // the engine asks for series only
}

func (querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.ErrUnsupported
}

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	found := &selected{}
	for _, name := range slices.Sorted(maps.Keys(q.all)) {
		if one := q.all[name]; matches(one.Metric, matchers) {
			found.rest = append(found.rest, one)
		}
	}
	return found
}

func matches(metric labels.Labels, matchers []*labels.Matcher) bool {
	for _, matcher := range matchers {
		if !matcher.Matches(metric.Get(matcher.Name)) {
			return false
		}
	}
	return true
}

// selected is a storage.SeriesSet.
type selected struct {
	at   *promql.Series
	rest []*promql.Series
}

func (s *selected) Next() bool {
	if len(s.rest) == 0 {
		return false
	}
	s.at, s.rest = s.rest[0], s.rest[1:]
	return true
}

func (s *selected) At() storage.Series              { return promql.NewStorageSeries(*s.at) }
func (*selected) Err() error                        { return nil }
func (*selected) Warnings() annotations.Annotations { return nil }

func millis(seconds float64) int64 { return int64(seconds * 1000) }

// load adds a series a line, with a value a minute from 0 on.
func load(all series, text string) {
	for line := range strings.Lines(text) {
		metric, values, err := parser.ParseSeriesDesc(strings.TrimSpace(line))
		check(line, err)
		for i, value := range values {
			if !value.Omitted {
				all.add(metric, millis(float64(i)*60), value.Value)
			}
		}
	}
}

// take adds what a target served, with the target's labels, as a scrape does.
func take(all series, page scrape) {
	parsed, err := textparse.New([]byte(page.Text), "text/plain; version=0.0.4", "", false, false, false, labels.NewSymbolTable())
	check("scrape", err)
	for {
		entry, err := parsed.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		check("scrape", err)
		if entry != textparse.EntrySeries {
			continue
		}
		_, at, value := parsed.Series()
		when := millis(page.AtS)
		if at != nil {
			when = *at
		}
		var found labels.Labels
		parsed.Labels(&found)
		metric := labels.NewBuilder(found)
		for name, label := range page.Labels {
			metric.Set(name, label)
		}
		all.add(metric.Labels(), when, value)
	}
}

// unknown are the metrics of an expression that have no series.
func unknown(all series, expression parser.Expr) []string {
	missing := []string{}
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			name := labels.MustNewMatcher(labels.MatchEqual, labels.MetricName, selector.Name)
			if !(querier{all}).Select(context.Background(), false, nil, name).Next() {
				missing = append(missing, selector.Name)
			}
		}
		return nil
	})
	return missing
}

func elements(vector promql.Vector) int {
	count := 0
	for _, sample := range vector {
		if !math.IsNaN(sample.F) {
			count++
		}
	}
	return count
}

func main() {
	var asked question
	check("input", json.NewDecoder(os.Stdin).Decode(&asked))
	store := series{}
	load(store, asked.Series)
	for _, page := range asked.Scrapes {
		take(store, page)
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, EnableAtModifier: true})
	found := map[string]answer{}
	for name, text := range asked.Queries {
		expression, err := parser.ParseExpr(text)
		check(name, err)
		query, err := engine.NewInstantQuery(context.Background(), store, nil, text, time.UnixMilli(millis(asked.AtS)))
		check(name, err)
		vector, err := query.Exec(context.Background()).Vector()
		check(name, err)
		found[name] = answer{elements(vector), unknown(store, expression)}
	}
	check("output", json.NewEncoder(os.Stdout).Encode(found))
}
