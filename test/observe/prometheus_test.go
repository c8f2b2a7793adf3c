package observe

import (
	"context"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// prometheus is a server that scrapes what is tested. What it does not answer ends the test.
type prometheus struct {
	*servers.Prometheus
	t testing.TB
}

// startPrometheus starts one with these rules. It ends with the test.
func startPrometheus(t testing.TB, o servers.PrometheusOptions) *prometheus {
	t.Helper()
	p, err := servers.StartPrometheus(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.Log())
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return &prometheus{p, t}
}

// series evaluates an expression now.
func (p *prometheus) series(expr string) []servers.Series {
	p.t.Helper()
	got, err := p.Query(p.t.Context(), expr)
	if err != nil {
		p.t.Fatal(err)
	}
	return got
}

// seriesOver evaluates an expression at each step of a span.
func (p *prometheus) seriesOver(expr string, span servers.Span) []servers.Series {
	p.t.Helper()
	got, err := p.QueryRange(p.t.Context(), expr, span)
	if err != nil {
		p.t.Fatal(err)
	}
	return got
}

// rules returns all rules. One that cannot be evaluated fails the test.
func (p *prometheus) rules() []servers.Rule {
	p.t.Helper()
	all, err := p.Rules(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	for _, r := range all {
		if r.Health == "err" {
			p.t.Errorf("rule %s: %s\n%s", r.Name, r.LastError, r.Query)
		}
	}
	return all
}
