package monitoring

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMetricsAsScraped(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	const prefix = "pyairtable_outbox_"
	duration := NewMetrics(prefix, reg, 250*time.Millisecond, time.Second).EventDuration.WithLabelValues("events")
	duration.Observe(0.0015)
	duration.Observe(120)
	at := time.Unix(1_700_000_000, 0)
	reg.MustRegister(NewCollector(prefix, func() Status {
		return Status{
			At: at, Since: at.Add(-time.Hour), Role: RoleLeader, LanesPerSink: 2, Epoch: 21, Accounts: &AccountsStatus{UpTo: time.Unix(1_700_000_000, 0), WorkedAt: at, Missing: new(int64(22))},
			Streaming: true, Sessions: 1, InFlight: 2, Lag: 1500 * time.Millisecond, LagBytes: 4096, Invalid: 6, Unrouted: 7, Mended: MendedCounts{Publications: 24, Slots: 25},
			Stages: Stages{
				Read:         23,
				Busy:         []StageBusy{{StageDecode, "", 1500 * time.Millisecond}, {StageDeliver, "events", time.Minute}},
				ReaderWaited: ReaderWaited{Lanes: time.Second, Window: 2 * time.Second, Recorder: 3 * time.Second}, RecorderRetries: 4,
			},
			Sinks: []SinkStatus{
				{
					Name: "events", InSession: true, Breaker: "half-open", SuspectSince: at, Parked: 8, DeadLetters: 9, OldestParked: 90 * time.Second, CountedAt: at,
					Lanes:   []LaneStatus{{CatchingUp: true, InFlight: 10}, {CatchingUp: true, Held: 5, RefusedAll: true, InFlight: 1}, {CatchingUp: true}, {}},
					Counts:  Counts{Delivered: 3, Failed: 1, Dead: 1, Unparked: 2, Parked: 5, Retried: 6, Errors: ErrorCounts{1, 2, 3, 4, 5}},
					Events:  EventTimes{OldestCommittedAt: at.Add(-90 * time.Second)},
					Backlog: &BacklogStatus{Left: new(int64(26)), Rate: new(27.5)},
				},
				{
					Name: "mail", InSession: true, Breaker: "open", CountedAt: at, Counts: Counts{Discarded: 2},
					Objective: ObjectiveStatus{Within: time.Second, Ratio: .99, InTime: 7, Late: 2, Known: true, Month: EventCounts{Events: 1000, InTime: 985}},
				},
				{Name: "search", Breaker: "closed", Members: []MemberStatus{{Name: "first", Delivered: 2, Away: true}, {Name: "second", Delivered: 5}}},
			},
		}
	}))

	const golden = "testdata/metrics.prom"
	have := scrape(t, reg)
	if *update {
		if err := os.WriteFile(golden, have, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(have)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A sink has its series before its first event, but for the numbers of rows that nobody has counted. Without a connector there are no sinks.
func TestCollectorWithoutNumbers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status Status
		want   int
	}{
		"no connector":     {Status{}, 9},
		"no session, idle": {Status{Sinks: []SinkStatus{{Name: "events"}}}, 9 + 2 + 2 + 4 + 4 + 3 + 8 + 4},
		"idle":             {Status{Sinks: []SinkStatus{{Name: "events", CountedAt: time.Now()}}}, 9 + 2 + 2 + 7 + 4 + 3 + 8 + 4},
	} {
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(NewCollector("p_", func() Status { return test.status }))
		if n, err := testutil.GatherAndCount(reg); err != nil || n != test.want {
			t.Errorf("%s: %d series, %v, want %d", name, n, err, test.want)
		}
	}
}

func TestMetricsWithoutRegistry(t *testing.T) {
	t.Parallel()
	a, b := NewMetrics("p_", nil), NewMetrics("p_", nil)
	a.EventDuration.WithLabelValues("events").Observe(1)
	if got := testutil.CollectAndCount(b.EventDuration); got != 0 {
		t.Errorf("two connectors share a histogram: %d series", got)
	}
}

// A sink's component of /readyz says all that a person has to know of it.
func TestSinkComponent(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		status SinkStatus
		want   Component
	}{
		"well": {SinkStatus{Breaker: "closed", Cause: "an old failure"}, OK("")},
		"away": {
			SinkStatus{Name: "s", Breaker: "open", BreakerSince: at, Failing: true, Cause: "dial: refused", Parked: 3, OldestParked: 90 * time.Second},
			Degraded("left alone since 2026-01-02T03:04:05Z (breaker open; outbox-cdc retry s asks at once): dial: refused; 3 parked, the oldest 1m30s ago"),
		},
		"failing": {SinkStatus{Breaker: "closed", Failing: true, Cause: "500"}, Degraded("500")},
		"paused, with dead letters": {
			SinkStatus{Name: "s", Breaker: "closed", Paused: true, DeadLetters: 2},
			OK("paused by a person; outbox-cdc resume s goes on; 2 dead"),
		},
		"paused while it was away": {
			SinkStatus{Name: "s", Breaker: "open", BreakerSince: at, Failing: true, Cause: "dial: refused", Paused: true, SuspectSince: at, Parked: 1},
			OK("paused by a person; outbox-cdc resume s goes on; before that it did not accept: dial: refused; suspect since 2026-01-02T03:04:05Z: " +
				"what would become a dead letter is parked until it accepts a message (last failure: dial: refused); 1 parked, the oldest 0s ago"),
		},
		"suspect": {
			SinkStatus{Breaker: "closed", SuspectSince: at, Cause: "400"},
			Degraded("suspect since 2026-01-02T03:04:05Z: what would become a dead letter is parked until it accepts a message (last failure: 400)"),
		},
		"refuses every message": {
			SinkStatus{Breaker: "closed", Since: SinceTimes{Refusing: at}, Cause: "500", Parked: 9, OldestParked: time.Minute},
			Degraded("has refused every message since 2026-01-02T03:04:05Z (last failure: 500); 9 parked, the oldest 1m0s ago"),
		},
		"suspect, and refuses every message": {
			SinkStatus{Breaker: "closed", SuspectSince: at, Since: SinceTimes{Refusing: at}, Cause: "400"},
			Degraded("suspect since 2026-01-02T03:04:05Z: what would become a dead letter is parked until it accepts a message (last failure: 400)"),
		},
		"a topic is away": {
			SinkStatus{Breaker: "closed", Topics: TopicsAway{Count: 1, Since: at, Cause: "unknown topic"}, Parked: 1, OldestParked: time.Second},
			OK("a topic is away since 2026-01-02T03:04:05Z, and its events wait: unknown topic; 1 parked, the oldest 1s ago"),
		},
		"unreadable rows": {SinkStatus{Breaker: "closed", Unreadable: "no answer", Paused: true}, Degraded("no answer")},
	} {
		if diff := cmp.Diff(test.want, test.status.Component()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
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

// scrape returns what reg shows, but for build_info, which depends on the build.
func scrape(t *testing.T, g prometheus.Gatherer) []byte {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if strings.HasSuffix(f.GetName(), "_build_info") {
			continue
		}
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func BenchmarkCollector(b *testing.B) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(NewCollector("p_", func() Status { return Status{Sinks: []SinkStatus{{Name: "a"}, {Name: "b"}}} }))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := reg.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
