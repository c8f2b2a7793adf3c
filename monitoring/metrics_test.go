package monitoring

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMetricsAsScraped(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	m := NewMetrics("pyairtable_outbox_", reg)
	events := m.Sink("events")
	events.Delivered.Add(3)
	events.Failed.Inc()
	events.Dead.Inc()
	events.Duration.Observe(0.0015)
	events.Duration.Observe(120)
	m.SlotLagBytes.Set(4096)
	m.SlotLagSeconds.Set(1.5)
	m.InFlight.Set(2)
	m.Sessions.Inc()
	m.Leader.Set(1)

	const golden = "testdata/metrics.prom"
	if *update {
		if err := os.WriteFile(golden, scrape(t, reg), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.Open(golden)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	if err := testutil.GatherAndCompare(reg, want); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestSinkMetricsExistBeforeTheFirstEvent(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	NewMetrics("p_", reg).Sink("events")
	n, err := testutil.GatherAndCount(reg, "p_events_processed_total", "p_event_processing_duration_seconds")
	if err != nil {
		t.Fatal(err)
	}
	if n != 5 {
		t.Errorf("series = %d, want 5: four outcomes and one duration", n)
	}
}

func TestMetricsWithoutRegistry(t *testing.T) {
	t.Parallel()
	a, b := NewMetrics("p_", nil), NewMetrics("p_", nil)
	a.Sink("events").Delivered.Inc()
	if got := testutil.ToFloat64(b.Sink("events").Delivered); got != 0 {
		t.Errorf("two connectors share a counter: %v", got)
	}
}

func TestNewRegistryHasRuntimeMetrics(t *testing.T) {
	t.Parallel()
	n, err := testutil.GatherAndCount(NewRegistry(), "go_goroutines", "process_cpu_seconds_total")
	if err != nil {
		t.Fatal(err)
	}
	if n != 2 {
		t.Errorf("series = %d, want 2", n)
	}
}

func scrape(t *testing.T, g prometheus.Gatherer) []byte {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func BenchmarkSinkMetrics(b *testing.B) {
	s := NewMetrics("p_", nil).Sink("events")
	b.ReportAllocs()
	for b.Loop() {
		s.Delivered.Inc()
		s.Duration.Observe(0.0015)
	}
}
