// Evaluates PromQL on given series: what promtool's rule tests do, without the rest of promtool.
//
// Standard input is JSON: {"series": "load 1m\n  up 0x10", "at_s": 600, "queries": {"name": "up == 0"}}; `series` is the
// language of https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/#series. Standard output is
// JSON: how many elements each query has then.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/promqltest"
)

type question struct {
	Series  string            `json:"series"`
	AtS     int64             `json:"at_s"`
	Queries map[string]string `json:"queries"`
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
	if err != nil {
		panic(err)
	}
	return dir
}

func main() {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	storage := promqltest.LoadedStorage(fatal{}, asked.Series)
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, EnableAtModifier: true})
	found := map[string]int{}
	for name, expression := range asked.Queries {
		query, err := engine.NewInstantQuery(context.Background(), storage, nil, expression, time.Unix(asked.AtS, 0))
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		vector, err := query.Exec(context.Background()).Vector()
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		found[name] = len(vector)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		panic(err)
	}
}
