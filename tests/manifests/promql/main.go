// Evaluates PromQL on given series: what promtool's rule tests do, without the rest of promtool.
//
// Standard input is JSON: {"series": "load 1m\n  up 0x10", "scrapes": [{"at_s": 540, "labels": {"pod": "io-1"}, "text":
// "up 1\n"}], "at_s": 600, "queries": {"name": "up == 0"}}. `series` is the language of
// https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/#series, `scrapes` are pages as a target
// served them at a time. Standard output is JSON: how many elements with a number each query has then, and which of the
// metrics that it names have no series at all.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
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

// fatal is what promqltest wants of a test: a fault ends this program.
type fatal struct{}

func (fatal) Helper()                      {}
func (fatal) Cleanup(func())               {}
func (fatal) FailNow()                     { os.Exit(1) }
func (fatal) Error(args ...any)            { fmt.Fprintln(os.Stderr, args...) }
func (fatal) Errorf(f string, args ...any) { fmt.Fprintf(os.Stderr, f+"\n", args...) }
func (fatal) TempDir() string {
	dir, err := os.MkdirTemp("", "promql")
	check("temporary directory", err)
	return dir
}

func check(name string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func millis(seconds float64) int64 { return int64(seconds * 1000) }

// take appends what a target served, with the target's labels, as a scrape does.
func take(store storage.Storage, page scrape) {
	appender := store.Appender(context.Background())
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
		series := labels.NewBuilder(found)
		for name, label := range page.Labels {
			series.Set(name, label)
		}
		_, err = appender.Append(0, series.Labels(), when, value)
		check(series.Labels().String(), err)
	}
	check("scrape", appender.Commit())
}

// unknown are the metrics of an expression that have no series.
func unknown(store storage.Storage, expression parser.Expr) []string {
	querier, err := store.Querier(math.MinInt64, math.MaxInt64)
	check("storage", err)
	defer querier.Close()
	missing := []string{}
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			name := labels.MustNewMatcher(labels.MatchEqual, labels.MetricName, selector.Name)
			if !querier.Select(context.Background(), false, nil, name).Next() {
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
	store := promqltest.LoadedStorage(fatal{}, asked.Series)
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
