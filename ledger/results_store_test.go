package ledger_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

func minuteOf(processor int32, start time.Time, took ...time.Duration) ledger.MinuteResults {
	m := ledger.MinuteResults{Processor: processor, Start: start, Within: time.Second, Ratio: .99}
	for _, d := range took {
		one := ledger.Results{Events: 1, Worst: d, Took: ledger.Durations{ledger.DurationBucket(d): 1}}
		if d <= m.Within {
			one.InTime = 1
		}
		m.Add(&one)
	}
	return m
}

// A minute has five rows, or two if nothing was accepted. Rows of one minute by two sessions add up in the row of the hour, and a batch that is
// written again changes nothing.
func TestWriteResults(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	schema := ledger.Schema("public")
	now := time.Now().UTC().Truncate(time.Hour).Add(-2 * time.Hour)
	ms := time.Millisecond
	given := minuteOf(1, now.Add(5*time.Minute), 10*ms, 10*ms, 2*time.Second)
	given.Events++ // one has died
	dead := ledger.MinuteResults{Processor: 2, Start: now, Within: time.Second, Ratio: .99, Results: ledger.Results{Events: 3}}
	partial := minuteOf(1, now.Add(5*time.Minute), 3*time.Second)
	partial.Partial = true
	first := ledger.ResultBatch{ID: "first", Minutes: []ledger.MinuteResults{given, dead, minuteOf(1, now.Add(59*time.Minute), 10*ms), minuteOf(1, now.Add(60*time.Minute), 10*ms)}}
	second := ledger.ResultBatch{ID: "second", Minutes: []ledger.MinuteResults{partial}}
	for _, b := range []*ledger.ResultBatch{&first, &first, &second, &first, &second} {
		if err := schema.WriteResults(t.Context(), l.conn, b); err != nil {
			t.Fatal(err)
		}
	}
	const rows = `select string_agg(concat_ws(' ', processor_id, to_char(lower(time_window) at time zone 'UTC', 'MI'), upper(time_window) - lower(time_window), metric_type,
		round(value::numeric, 4), unit, metadata - 'write'), E'\n' order by id) from outbox_metrics where metric_type <> 'hour'`
	want := `1 05 00:01:00 count 4.0000 events {}
1 05 00:01:00 within 2.0000 events {"within_seconds": 1}
1 05 00:01:00 p50 0.0100 seconds {}
1 05 00:01:00 p99 1.9988 seconds {}
1 05 00:01:00 worst 2.0000 seconds {}
2 00 00:01:00 count 3.0000 events {}
2 00 00:01:00 within 0.0000 events {"within_seconds": 1}
1 59 00:01:00 count 1.0000 events {}
1 59 00:01:00 within 1.0000 events {"within_seconds": 1}
1 59 00:01:00 p50 0.0100 seconds {}
1 59 00:01:00 p99 0.0100 seconds {}
1 59 00:01:00 worst 0.0100 seconds {}
1 00 00:01:00 count 1.0000 events {}
1 00 00:01:00 within 1.0000 events {"within_seconds": 1}
1 00 00:01:00 p50 0.0100 seconds {}
1 00 00:01:00 p99 0.0100 seconds {}
1 00 00:01:00 worst 0.0100 seconds {}
1 05 00:01:00 count 1.0000 events {"partial": true}
1 05 00:01:00 within 0.0000 events {"partial": true, "within_seconds": 1}
1 05 00:01:00 p50 2.9491 seconds {"partial": true}
1 05 00:01:00 p99 2.9491 seconds {"partial": true}
1 05 00:01:00 worst 3.0000 seconds {"partial": true}`
	if diff := cmp.Diff(want, l.query(rows)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	hours, err := schema.ReadHours(t.Context(), l.conn, ledger.HoursQuery{Processors: []int32{1, 2}, From: now, Took: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range hours {
		hours[i].Start = hours[i].Start.UTC()
	}
	bucket := ledger.DurationBucket
	wantHours := []ledger.HourResults{
		{Processor: 1, Start: now, Within: time.Second, Ratio: .99, Results: ledger.Results{
			Events: 6, InTime: 3, Worst: 3 * time.Second, Took: ledger.Durations{bucket(10 * ms): 3, bucket(2 * time.Second): 1, bucket(3 * time.Second): 1},
		}},
		{Processor: 1, Start: now.Add(time.Hour), Within: time.Second, Ratio: .99, Results: ledger.Results{
			Events: 1, InTime: 1, Worst: 10 * ms, Took: ledger.Durations{bucket(10 * ms): 1},
		}},
		{Processor: 2, Start: now, Within: time.Second, Ratio: .99, Results: ledger.Results{Events: 3}},
	}
	if diff := cmp.Diff(wantHours, hours, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("hours: -want +got:\n%s", diff)
	}
	history, err := schema.ReadResults(t.Context(), l.conn, []int32{1})
	if err != nil {
		t.Fatal(err)
	}
	if len(history.Hours) != 2 || history.Hours[0].Events != 6 || history.Hours[0].Took != nil || time.Since(history.Now).Abs() > time.Minute {
		t.Errorf("the past: %+v", history)
	}
	var minutes []string
	for i := range history.Minutes {
		m := &history.Minutes[i]
		minutes = append(minutes, m.Start.UTC().Format("04")+" "+strings.Repeat("e", int(m.Events))+strings.Repeat("i", int(m.InTime)))
	}
	if diff := cmp.Diff([]string{"05 eeeeeii", "59 ei", "00 ei"}, minutes); diff != "" {
		t.Errorf("minutes: -want +got:\n%s", diff)
	}
}

// A try whose client has given up may commit later. The next try of the batch waits for it, and writes nothing then.
func TestWriteResultsAfterALateTry(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	schema := ledger.Schema("public")
	batch := ledger.ResultBatch{ID: "one", Minutes: []ledger.MinuteResults{minuteOf(1, time.Now().Truncate(time.Minute), time.Second)}}
	other, err := pgx.ConnectConfig(t.Context(), l.conn.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close(context.Background()) })
	tx, err := other.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.WriteResults(t.Context(), tx, &batch); err != nil { // a savepoint: the transaction goes on
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() { second <- schema.WriteResults(t.Context(), l.conn, &batch) }()
	for waiting := 0; waiting == 0; {
		if err := tx.QueryRow(t.Context(), "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())").Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-second:
			t.Fatalf("the second try did not wait: %v", err)
		default:
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if got := l.query("select count(*) || ' ' || max(value) filter (where metric_type = 'hour') from outbox_metrics"); got != "6 1" {
		t.Errorf("rows, and events of the hour: %s", got)
	}
}

// A ledger that lacks the index of the hours says what makes it, and what is no row of ours is left out.
func TestResultsOfAnOldLedger(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	schema := ledger.Schema("public")
	l.exec(`insert into outbox_metrics (processor_id, metric_type, time_window, value, metadata) values (1, 'hour', tstzrange(now(), now() + interval '1 h'), 1, '[]'),
		(1, 'hour', 'empty', 1, '{}'), (1, 'count', 'empty', 1, '[]'), (1, 'count', '(,)', 1, '[]')`)
	if h, err := schema.ReadResults(t.Context(), l.conn, []int32{1}); err != nil || len(h.Hours) != 0 {
		t.Errorf("%+v, %v", h, err)
	}
	l.exec("drop index idx_outbox_metrics_hours")
	batch := ledger.ResultBatch{ID: "one", Minutes: []ledger.MinuteResults{minuteOf(1, time.Now().Truncate(time.Minute), time.Second)}}
	err := schema.WriteResults(t.Context(), l.conn, &batch)
	if err == nil || !strings.Contains(err.Error(), "outbox-cdc init brings it up to date") {
		t.Errorf("%v", err)
	}
	if errors.Unwrap(err) == nil {
		t.Error("the cause is lost")
	}
}
