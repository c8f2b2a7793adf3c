package monitoring

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// labelValues is how many values a label has at most, in a connector of tenSinks. A metric that is measured event by event has a series for
// each combination.
var labelValues = map[string]int{
	"sink": 10, "lane": 16, "member": 3, "stage": 8, "class": 6, "status": 6, "state": 6, "table": 8, "reason": 4, "within": 2, "le": 1,
}

// tenSinks is the status of a connector with 10 sinks of 16 lanes, two of them composites, that shows all that a Status can show.
func tenSinks() Status {
	at := time.Unix(1_700_000_000, 0)
	st := Status{
		At: at, Since: at.Add(-time.Hour), Role: RoleLeader, Streaming: true, Sessions: 3, Epoch: 7, LanesPerSink: 16, InFlight: 1234, Lag: time.Second,
		LagBytes: 1 << 20, Invalid: 1, Unrouted: 2, Accounts: &AccountsStatus{UpTo: at, WorkedAt: at, Missing: new(int64(0))},
	}
	st.Database = &DatabaseStatus{
		AskedAt: at, Plugin: "pgoutput", Failover: "false", Synced: "false", Spilled: new(int64(1)), SyncStandbys: new(int64(1)), XminAge: new(int64(1)), Connections: &ConnectionCounts{Idle: 1},
		ConnectionLimit: 10, ParkedAutovacuumedAt: at, Slot: &SlotStatus{AskedAt: at, RestartLag: new(int64(1)), WALStatus: "reserved", SafeWAL: new(int64(1))},
		Storage: &StorageStatus{AskedAt: at, Outbox: new(int64(1)), OldestRow: at},
	}
	for _, table := range []string{"outbox_delivery_log", "outbox_parked", "outbox_checkpoints", "outbox_processors", "outbox_metrics", "outbox_backlog", "outbox_retention"} {
		st.Database.Storage.Ledger = append(st.Database.Storage.Ledger, TableSize{Table: table, Bytes: 1})
	}
	st.Forecast = &ForecastStatus{CaughtUp: Forecast{Trend: TrendCatchingUp, CaughtUpAt: at.Add(time.Minute)}, SlotLostAt: at.Add(time.Hour)}
	for _, stage := range []string{"decode", "record", "confirm"} {
		st.Stages.Busy = append(st.Stages.Busy, StageBusy{Stage: stage})
	}
	for i := range 10 {
		for _, stage := range []string{"queue", "deliver"} {
			st.Stages.Busy = append(st.Stages.Busy, StageBusy{Stage: stage, Sink: fmt.Sprintf("sink-number-%d", i)})
		}
		sink := SinkStatus{
			Name: fmt.Sprintf("sink-number-%d", i), Type: "kafka", InSession: true, Breaker: "closed", CountedAt: at, Parked: 5, DeadLetters: 2,
			OldestParked: time.Minute, Lanes: make([]LaneStatus, 16), Counts: Counts{Delivered: 1e9 + int64(i), Failed: 4, Dead: 2},
			Events:  EventTimes{DeliveredAt: at, OldestCommittedAt: at.Add(-time.Minute)},
			Backlog: &BacklogStatus{Left: new(int64(1)), Rate: new(1.0)},
			Objective: ObjectiveStatus{
				Within: time.Second, Ratio: .99, InTime: 9, Late: 1, Known: true,
				Month: EventCounts{10, 9}, SixHours: EventCounts{10, 9}, Hour: EventCounts{10, 9},
			},
		}
		if i < 2 {
			sink.Members = []MemberStatus{{Name: "a"}, {Name: "b"}, {Name: "c"}}
		}
		st.Sinks = append(st.Sinks, sink)
	}
	return st
}

// wholeRegistry is all that a process with tenSinks shows: each metric of the table, with a series for each combination of its labels, and
// the metrics of the Go runtime and of the process.
func wholeRegistry(tb testing.TB) *prometheus.Registry {
	tb.Helper()
	reg := NewRegistry()
	st := tenSinks()
	reg.MustRegister(NewCollector("pyairtable_outbox_", func() Status { return st }))
	m := maker{prefix: "pyairtable_outbox_", to: promauto.With(reg), families: map[string]Family{}}
	for _, f := range families() {
		m.families[f.Name] = f
		if f.collect != nil {
			continue
		}
		combinations := [][]string{nil}
		for _, label := range f.Labels {
			n, known := labelValues[label]
			if !known {
				tb.Fatalf("%s has a label %s: say in labelValues how many values it has", f.Name, label)
			}
			var longer [][]string
			for _, c := range combinations {
				for i := range n {
					longer = append(longer, append(slices.Clip(c), fmt.Sprintf("%s-%d", label, i)))
				}
			}
			combinations = longer
		}
		var one func(values []string)
		switch f.Type {
		case Histogram:
			vec := m.histogram(f.Name)
			one = func(values []string) { vec.WithLabelValues(values...).Observe(1) }
		case Counter:
			vec := m.counter(f.Name)
			one = func(values []string) { vec.WithLabelValues(values...).Inc() }
		case Gauge:
			vec := m.gauge(f.Name)
			one = func(values []string) { vec.WithLabelValues(values...).Set(1) }
		}
		for _, values := range combinations {
			one(values)
		}
	}
	return reg
}

// scrapeOnce returns what a scrape gets.
func scrapeOnce(tb testing.TB, h http.Handler) []byte {
	tb.Helper()
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, httptest.NewRequestWithContext(tb.Context(), http.MethodGet, "/metrics", nil))
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.Code != http.StatusOK {
		tb.Fatalf("/metrics: %d %v %s", answer.Code, err, body)
	}
	return body
}

// With 10 sinks of 16 lanes there are at most 2,500 series, whatever else the table has.
func TestCardinality(t *testing.T) {
	t.Parallel()
	series := map[string]int{}
	all := 0
	for line := range bytes.Lines(scrapeOnce(t, Handler(wholeRegistry(t), &Health{}, nil))) {
		if len(line) > 1 && line[0] != '#' {
			all++
			series[string(line[:bytes.IndexAny(line, "{ ")])]++
		}
	}
	t.Logf("%d series", all)
	if all > 2500 {
		t.Errorf("%d series, at most 2,500 are allowed: %v", all, series)
	}
	if n := series["pyairtable_outbox_worker_health"]; n != 160 {
		t.Errorf("%d series of worker_health", n)
	}
	st := tenSinks()
	for name, values := range collected(&st) { // else this would count nothing of them
		if len(values) == 0 {
			t.Errorf("tenSinks shows nothing of %s", name)
		}
	}
}

// promtool finds nothing to complain of in what is scraped.
func TestPromtoolChecksMetrics(t *testing.T) {
	t.Parallel()
	out, err := servers.Promtool(t.Context(), bytes.NewReader(scrapeOnce(t, Handler(wholeRegistry(t), &Health{}, nil))), "check", "metrics")
	if err != nil || out != "" {
		t.Errorf("promtool check metrics: %v %s", err, out)
	}
}

func BenchmarkScrape(b *testing.B) {
	h := Handler(wholeRegistry(b), &Health{}, nil)
	b.SetBytes(int64(len(scrapeOnce(b, h))))
	b.ReportAllocs()
	for b.Loop() {
		scrapeOnce(b, h)
	}
}
