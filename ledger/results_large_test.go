package ledger_test

import (
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// With 28 days of four sinks, 800,000 rows, a start reads a few thousand of them, by the index of the hours and the primary key. It takes some
// ten milliseconds on a quiet machine, and the bound is a second because tests share one.
func TestReadResultsOf28Days(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec(`insert into outbox_metrics (processor_id, metric_type, time_window, value, unit, metadata)
		select p, m, tstzrange(at, at + interval '1 minute'), 1000, 'events', case m when 'count' then '{"write": "0123456789ABCDEFGHIJKLMNOP"}' else '{}' end::jsonb
		from generate_series(date_trunc('minute', now() - interval '28 days'), now(), interval '1 minute') at, generate_series(1, 4) p,
			unnest(array['count', 'within', 'p50', 'p99', 'worst']) m`)
	l.exec(`insert into outbox_metrics (processor_id, metric_type, time_window, value, unit, metadata)
		select p, 'hour', tstzrange(at, at + interval '1 hour'), 60000, 'events', jsonb_build_object('within', 59000, 'worst', 1, 'within_seconds', 1, 'objective', .99,
			'buckets', (select jsonb_object_agg(b, 1500) from generate_series(150, 190) b))
		from generate_series(date_trunc('hour', now() - interval '28 days'), now(), interval '1 hour') at, generate_series(1, 4) p`)
	schema := ledger.Schema("public")
	best := time.Hour
	for range 5 {
		began := time.Now()
		h, err := schema.ReadResults(t.Context(), l.conn, []int32{1, 2, 3, 4})
		if err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(began))
		if len(h.Hours) != 4*(28*24+1) || len(h.Minutes) < 4*355 {
			t.Fatalf("%d hours and %d minutes", len(h.Hours), len(h.Minutes))
		}
	}
	t.Logf("%s rows are read in %s", l.query("select count(*) from outbox_metrics"), best)
	if best > time.Second {
		t.Errorf("it takes %s", best)
	}
	m := minuteOf(1, time.Now().Truncate(time.Minute), time.Millisecond)
	began := time.Now()
	if err := schema.WriteResults(t.Context(), l.conn, &ledger.ResultBatch{ID: "one", Minutes: []ledger.MinuteResults{m}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("a minute is written in %s", time.Since(began))
	began = time.Now()
	if n, err := schema.DeleteMetrics(t.Context(), l.conn, 30*24*time.Hour, 1000); n != 0 || err != nil {
		t.Error(n, err)
	}
	t.Logf("a pass of the cleanup that finds nothing takes %s", time.Since(began))
}
