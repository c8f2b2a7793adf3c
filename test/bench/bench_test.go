//go:build linux

package main

import (
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	stat := "812 (a) S 1) (b) S 77 812 812 0 -1 4194560 2 41 0 0 5 6 130 20 20 0 1 0 9 0 0"
	pid, parent, children, err := parseStat([]byte(stat))
	if pid != 812 || parent != 77 || children != 1500*time.Millisecond || err != nil {
		t.Errorf("pid %d, parent %d, children %v, error %v", pid, parent, children, err)
	}
	for _, bad := range []string{"", "812 (a", "812 (a) S 77 1", "x (a) S 77 1 1 0 -1 0 2 41 0 0 5 6 130 20 20"} {
		if _, _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	if n, err := number([]byte(`{"seq": 4711, "data": "x"}`)); n != 4711 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, bad := range []string{"", "{}", `{"seq": x, `} {
		if _, err := number([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	result := throughputResult{Rounds: make([]round, 4)}
	for i, others := range []float64{0.2, 0.01, 0.3, 0.02} {
		result.Rounds[i] = round{Connectors: []connectorRun{{Ratio: float64(i)}}, Yardstick: yardstickRun{Others: others}}
	}
	result.choose(3)
	for i, want := range []bool{true, true, false, true} {
		if got := result.Rounds[i].Counts; got != want {
			t.Errorf("round %d counts: %v", i, got)
		}
	}
	if got := result.median(func(r round) float64 { return r.Connectors[0].Ratio }); got != 1 {
		t.Errorf("median %v, want 1", got)
	}
}

func TestMedianAndQuantile(t *testing.T) {
	t.Parallel()
	if got := median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("median %v", got)
	}
	if got := quantile([]float64{3, 1, 2}, 0.99); got != 3 {
		t.Errorf("quantile %v", got)
	}
}

func TestParseOptions(t *testing.T) {
	t.Parallel()
	if o, err := parseOptions([]string{"-rows", "10,1", "-events", "100"}); err != nil || len(o.rows) != 2 || o.rows[0] != 10 {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := parseOptions([]string{"-sink", "webhook kafka,redis_stream", "-events", "300"}); err != nil || len(o.sinks) != 3 || o.rounds != 3 || o.events != 300 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range [][]string{
		{"-rounds", "0"},
		{"-events", "150"},
		{"-sink", "redis"},
		{"-sink", "kafka,kafka"},
		{"-sink", "kafka,webhook", "-only", "memory"},
		{"-o", "xml"},
		{"-only", "speed"},
		{"-rows", "x"},
		{"what"},
	} {
		if _, err := parseOptions(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
