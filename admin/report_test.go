package admin

import (
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// results writes what a sink has accepted in a minute: so many events in time, and so many in three seconds.
func (w *world) results(processor int32, start time.Time, inTime, late int64) {
	w.t.Helper()
	const fast, slow = 10 * time.Millisecond, 3 * time.Second
	m := ledger.MinuteResults{Processor: processor, Start: start.Truncate(time.Minute), Within: time.Second, Ratio: .9, Results: ledger.Results{
		Events: inTime + late, InTime: inTime, Worst: slow, Took: ledger.Durations{ledger.DurationBucket(fast): inTime, ledger.DurationBucket(slow): late},
	}}
	if late == 0 {
		m.Worst = fast
	}
	err := ledger.Schema("public").WriteResults(pgtest.Context(w.t), w.conn, &ledger.ResultBatch{ID: start.String(), Minutes: []ledger.MinuteResults{m}})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) report(c ReportConfig, since time.Duration) Report {
	w.t.Helper()
	r, err := ReadReport(pgtest.Context(w.t), c, since)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func reportOf(w *world) ReportConfig {
	c := ReportConfig{Config: w.admin, LeftAlone: 5 * time.Minute, Objectives: map[string]monitoring.ObjectiveStatus{"a": {Within: time.Second, Ratio: .9}}}
	c.Sinks = []string{"a"}
	return c
}

// nobodyStreams is what a report does not know if it can ask nobody.
var nobodyStreams = []string{"the slowest stage: no instance streams"}

// The slowest stage is what the instance that streams says, by PostgreSQL's clock; one that works on another database is not asked.
func TestReportOfStages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	database := w.text("select current_database()")
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		in := anInstance()
		in.Process.Database.Name = database
		answerJSON(rw, in)
	}))
	t.Cleanup(server.Close)
	c := reportOf(w)
	c.Listen = strings.TrimPrefix(server.URL, "http://")
	r := w.report(c, time.Hour)
	if s := r.Stages; s == nil || len(r.Unknown) != 0 || s.PID != 7 || s.Host != "one" || len(s.All) != 2 || s.All[0].Sink != "a" || s.All[0].BusySeconds != 60 {
		t.Fatalf("%+v, not known: %q", s, r.Unknown)
	}
	if up := r.At.Sub(r.Stages.Since); up < 119*time.Second || up > 121*time.Second {
		t.Errorf("up for %s, want two minutes", up)
	}
	database = "another"
	if r := w.report(c, time.Hour); r.Stages != nil || !slices.Equal(r.Unknown, nobodyStreams) {
		t.Errorf("of another database: %+v, not known: %q", r.Stages, r.Unknown)
	}
}

// The report adds up the hours of its time, compares the last one, and finds outages in the log.
func TestReport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := reportOf(w)
	if r := w.report(c, 24*time.Hour); len(r.Sinks) != 1 || r.Sinks[0].Period.Events != 0 || r.Sinks[0].Met != nil || r.Sinks[0].Budget.Left != 1 || !slices.Equal(r.Unknown, nobodyStreams) {
		t.Errorf("of an empty ledger: %+v", r)
	}
	var now time.Time
	if err := w.conn.QueryRow(pgtest.Context(t), "select now()").Scan(&now); err != nil {
		t.Fatal(err)
	}
	hour := now.UTC().Truncate(time.Hour)
	w.results(1, hour.Add(-time.Minute), 90, 10)         // the last hour that is over
	w.results(1, hour.Add(-61*time.Minute), 50, 0)       // the one before
	w.results(1, hour.Add(-25*time.Hour), 7, 3)          // the day before
	w.results(1, hour.Add(-27*24*time.Hour), 1000, 1000) // only in the budget
	w.results(1, hour.Add(-29*24*time.Hour), 0, 5000)    // not even there
	w.results(3, hour.Add(-time.Hour), 0, 77)            // of another connector
	fail := func(processor int, ago time.Duration, n int) {
		for range n {
			w.exec(strings.NewReplacer("$p", string(rune('0'+processor)), "$ago", ago.String()).Replace(`insert into outbox_delivery_log
				(event_id, processor_id, attempt_number, status, completed_at, error_message, commit_lsn, tx_index, epoch)
				values (gen_random_uuid(), $p, 1, 'failed', now() - interval '$ago', 'refused at $ago', '0/1', 0, 1)`))
			ago -= time.Minute
		}
	}
	w.exec("select outbox_make_partitions(now() - interval '3 days', 7)")
	fail(1, 20*time.Hour, 10)  // nothing was accepted meanwhile
	fail(1, 19*time.Hour, 1)   // too short to tell
	fail(1, 10*time.Hour, 300) // five hours, during which events were accepted
	fail(1, 49*time.Hour, 3)   // before the report
	w.results(1, now.Add(-7*time.Hour), 2, 0)
	w.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		select gen_random_uuid(), p, 1, 'dead', now() - ago, '0/1', 0, 1 from (values (1, interval '1 h'), (1, '2 h'), (2, '3 h'), (0, '4 h'), (1, '50 h')) v (p, ago)`,
		"update outbox_processors set state = '{\"condition\": \"away\", \"since\": \"2026-01-02T03:04:05Z\", \"epoch\": 7}' where id = 1")
	w.park(1, 1, "dead", "")
	w.park(2, 2, "dead", "")

	r := w.report(c, 40*time.Hour)
	if !r.From.Equal(now.UTC().Add(-40*time.Hour).Truncate(time.Hour)) || r.Connector != "shop" || !slices.Equal(r.Unknown, nobodyStreams) || *r.NoSinkDead != 1 {
		t.Errorf("%+v", r)
	}
	if len(r.Sinks) != 2 || r.Sinks[1].Name != "b" || r.Sinks[1].Configured || r.Sinks[1].Objective != nil || *r.Sinks[1].Dead != 1 || *r.Sinks[1].Died != 1 {
		t.Fatalf("a sink that is no longer configured: %+v", r.Sinks)
	}
	s := r.Sinks[0]
	if s.Period.Events != 162 || s.Period.InTime != 149 || *s.Period.Percent != 91.975309 || *s.Period.Worst != 3 || *s.Period.P99 < 2.9 || *s.Period.P50 > .0104 || !*s.Met {
		t.Errorf("the time of the report: %+v", s.Period)
	}
	if s.Budget.Events != 2162 || s.Budget.Late != 1013 || s.Budget.Left > -3.68 || s.Budget.Left < -3.69 || s.Budget.BurnHour > 1.01 {
		t.Errorf("the budget: %+v", s.Budget)
	}
	if trend := s.Trend; !trend.Hour.Start.Equal(hour.Add(-time.Hour)) || trend.Hour.Events != 100 || *trend.Hour.Percent != 90 || trend.HourBefore.Events != 50 ||
		!trend.DayBefore.Start.Equal(hour.Add(-25*time.Hour)) || trend.DayBefore.Events != 10 || *trend.DayBefore.P99 < 2.9 {
		t.Errorf("the trend: %+v", trend)
	}
	if *s.Died != 2 || *s.Dead != 1 || s.Condition != "away" || s.Since == nil || *s.Objective != (ReportObjective{WithinSeconds: 1, Percent: 90}) {
		t.Errorf("%+v", s)
	}
	var worst []int64
	for _, h := range r.WorstHours {
		worst = append(worst, h.Events-h.InTime)
	}
	if diff := cmp.Diff([]int64{10, 3}, worst); diff != "" {
		t.Errorf("late events of the worst hours: %s", diff)
	}
	var outages []string
	for _, f := range r.Failures {
		kind := "?"
		if f.Outage != nil {
			kind = map[bool]string{true: "outage", false: "failures"}[*f.Outage]
		}
		outages = append(outages, strings.Join([]string{f.Sink, kind, f.Until.Sub(f.From).Round(time.Minute).String(), f.LastError}, " "))
	}
	if diff := cmp.Diff([]string{"a outage 9m0s refused at 19h51m0s", "a ? 0s refused at 19h0m0s", "a failures 4h59m0s refused at 5h1m0s"}, outages); diff != "" {
		t.Errorf("failures: %s", diff)
	}
}

// What cannot be known is said.
func TestReportOfWhatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec("insert into outbox_retention (id, log_dropped_until) values (1, now() - interval '1 h') on conflict (id) do update set log_dropped_until = excluded.log_dropped_until",
		"drop table outbox_delivery_log cascade")
	r := w.report(reportOf(w), 24*time.Hour)
	text := strings.Join(r.Unknown, "\n")
	for _, want := range []string{"outages, and what has died: ", "those days of the log were deleted"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q:\n%s", want, text)
		}
	}
	if r.NoSinkDead != nil || r.Sinks[0].Died != nil {
		t.Errorf("what has died is not known: %+v", r)
	}
}

// The schema says what "outbox-cdc report -o json" prints, and docs/objectives.md names each field of it.
func TestReportSchema(t *testing.T) {
	t.Parallel()
	checkSchema(t, schemaFile{
		typ: reflect.TypeFor[Report](), path: "report.schema.json", title: "What outbox-cdc report -o json prints",
	})
	page, err := os.ReadFile("../docs/objectives.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Report](), reflect.TypeFor[ReportSink](), reflect.TypeFor[ReportObjective](), reflect.TypeFor[ReportPeriod](), reflect.TypeFor[ReportBudget](),
		reflect.TypeFor[ReportTrend](), reflect.TypeFor[ReportHour](), reflect.TypeFor[ReportFailures](),
		reflect.TypeFor[ReportStages](), reflect.TypeFor[monitoring.StageReport](),
	} {
		for f := range typ.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && !strings.Contains(string(page), "`"+name+"`") {
				t.Errorf("docs/objectives.md does not name %s of %s", name, typ.Name())
			}
		}
	}
}
