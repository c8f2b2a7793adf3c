package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
)

// jobDone waits until the job of a sink is done.
func (w *world) jobDone(patience time.Duration, sink string) {
	w.t.Helper()
	eventually(w.t, patience, "the job of "+sink+" is done", func() error {
		if left := w.unfinished(sink); left != "" {
			return fmt.Errorf("it has walked %s", left)
		}
		return nil
	})
}

// unfinished says how far the unfinished job of a sink is, "" if it has none.
func (w *world) unfinished(sink string) string {
	w.t.Helper()
	return ask[string](w, `select coalesce(max(walked || ' rows of ' || estimate), '') from outbox_backlog b join outbox_processors p on p.id = processor_id
		where status <> 'done' and processor_name = $1`, sink)
}

// jobsInOrder wants what each job has found to stand in the ledger in the order of source.order_by.
func (w *world) jobsInOrder() {
	w.t.Helper()
	n := ask[int](w, `select count(*) from (select (created_at, e.id) < lag((created_at, e.id)) over (partition by processor_id order by commit_lsn, tx_index) as early
		from outbox_delivery_log l join event_outbox e on e.id = event_id where tx_index < 0 and status = 'delivered') o where early`)
	if n > 0 {
		w.t.Errorf("%d events stand before earlier ones in what a job has found", n)
	}
}

// A sink goes away in the middle of its backlog, while events are written. The other sink gets its backlog meanwhile, the slot moves on, and memory
// stays bounded. Nothing is missing, repeated or out of order when the sink is back. The flag -large makes it a million rows.
func TestBacklogWhileASinkIsAway(t *testing.T) {
	t.Parallel()
	rows, patience := 20_000, time.Minute
	if *large {
		rows, patience = 1_000_000, time.Hour
	}
	w := newWorld(t, worldOptions{sinks: []string{"stdout", "redis_stream"}, proxied: true, delivery: map[string]any{"batch_size": 200}})
	proxy := w.proxies["redis_stream"]
	w.batchSize = 200
	c := w.connector()
	w.sampler.stop()
	c.does("destroy", "--yes")
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
		select case i % 2 when 0 then 'order' else 'invoice' end, 'a-' || i % 500, 'made', json_build_object('i', i), clock_timestamp() from generate_series(1, $1::int) i`, rows)
	c.does("init", "--backlog", "all")
	w.sampler = startSampler(t, w.dsn, w.slot)
	c.start()
	load := w.load(load{writers: 2, aggregates: 500, rate: 20})
	w.deliveredAtLeast(patience, rows/10)
	proxy.Refuse()
	proxy.Cut()
	if w.unfinished("redis_stream") == "" {
		t.Fatal("the job was done before its sink went away")
	}

	w.jobDone(patience, "stdout")
	w.passed(30*time.Second, ask[pglogrepl.LSN](w, "select pg_current_wal_insert_lsn()"))
	if n := w.deliveredTo("redis_stream"); n > rows/2 {
		t.Errorf("%d were delivered while the sink was away", n)
	}
	proxy.Accept()
	w.jobDone(patience, "redis_stream")
	load.stop()
	truth := w.truth()
	w.settledWithin(patience, truth)
	w.judge(truth, w.ledger(), expectation{faults: 1})
	w.jobsInOrder()
	c.does("verify")
	c.peakAtMost(128)
	c.term()
}
