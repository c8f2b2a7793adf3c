package servers

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const testRules = `{groups: [{name: test, rules: [
  {record: "job:scraped:double", expr: "scraped_total * 2"},
  {alert: Always, expr: "vector(7)", labels: {severity: page}, annotations: {summary: "It is {{ $value }}."}},
]}]}`

func TestPrometheus(t *testing.T) {
	t.Parallel()
	var scrapes atomic.Int64
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# TYPE scraped_total counter\nscraped_total{a=\"b\"} %d\n", scrapes.Add(1))
	}))
	t.Cleanup(target.Close)
	rules := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(rules, []byte(testRules), 0o600); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	p, err := StartPrometheus(t.Context(), PrometheusOptions{
		Targets: map[string][]string{"test": {target.Listener.Addr().String()}}, Interval: 100 * time.Millisecond, Rules: []string{rules},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})

	eventually(t, "a recorded series", func() bool {
		got, err := p.Query(t.Context(), "job:scraped:double")
		return err == nil && len(got) == 1 && len(got[0].Points) == 1 && got[0].Points[0].Value >= 6 &&
			got[0].Labels["job"] == "test" && got[0].Labels["a"] == "b"
	})
	now := time.Now()
	got, err := p.QueryRange(t.Context(), "scraped_total", Span{From: started, To: now, Step: 50 * time.Millisecond})
	if err != nil || len(got) != 1 || len(got[0].Points) < 3 || got[0].Points[0].At.Before(started.Add(-time.Millisecond)) || got[0].Points[0].At.After(now) {
		t.Errorf("%+v, %v", got, err)
	}
	before := Span{From: started.Add(-time.Hour), To: started.Add(-time.Minute), Step: time.Minute}
	if got, err := p.QueryRange(t.Context(), "scraped_total", before); err != nil || len(got) != 0 {
		t.Errorf("before the first scrape: %+v, %v", got, err)
	}
	if got, err := p.Query(t.Context(), "scalar(vector(0)) / 0"); err != nil || len(got) != 1 || !math.IsNaN(got[0].Points[0].Value) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := p.Query(t.Context(), "sum("); err == nil || !strings.Contains(err.Error(), "parse error") {
		t.Errorf("a wrong query: %v", err)
	}
	all, err := p.Rules(t.Context())
	if err != nil || len(all) != 2 || all[0].Type != "recording" || all[0].Health != "ok" || all[1].State != "firing" || all[1].Labels["severity"] != "page" || len(all[1].Alerts) != 1 ||
		all[1].Alerts[0].State != "firing" || all[1].Alerts[0].Annotations["summary"] != "It is 7." {
		t.Errorf("%+v, %v", all, err)
	}
}

// A configuration that Prometheus refuses is an error that says why.
func TestPrometheusEndsAtItsStart(t *testing.T) {
	t.Parallel()
	rules := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(rules, []byte("groups: 7"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := StartPrometheus(t.Context(), PrometheusOptions{Rules: []string{rules}})
	if err == nil {
		t.Fatal("it started with rules that are none", p.Close())
	}
	if !strings.Contains(err.Error(), "cannot unmarshal") {
		t.Error(err)
	}
}

func TestPromtool(t *testing.T) {
	t.Parallel()
	if out, err := Promtool(t.Context(), strings.NewReader("# HELP a_total A.\n# TYPE a_total counter\na_total 1\n"), "check", "metrics"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := Promtool(t.Context(), strings.NewReader("# TYPE a counter\na 1\n"), "check", "metrics"); err == nil || !strings.Contains(err.Error(), "a no help text") {
		t.Errorf("metrics with mistakes: %v", err)
	}
}

func TestPoint(t *testing.T) {
	t.Parallel()
	for _, value := range []float64{0, -1.5, math.Inf(1), math.Inf(-1), math.NaN()} {
		in := Point{At: time.UnixMilli(1700000000123), Value: value}
		data, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var out Point
		if err := json.Unmarshal(data, &out); err != nil || !out.At.Equal(in.At) || out.Value != value && !math.IsNaN(value) {
			t.Errorf("%v becomes %s, and that %v (%v)", in, data, out, err)
		}
	}
}
