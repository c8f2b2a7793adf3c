package e2e

import (
	"errors"
	"testing"
	"time"
)

// An outbox by day, through a crash, with rows of today, of an old day and of a time that has no partition. The old day's partition goes
// with the next start, once its rows are gone; what was inserted into it and is still on its way arrives all the same.
func TestPartitionedOutbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}, partitioned: true})
	w.exec("select from outbox_make_event_partitions('2020-01-01 00:00Z', 0)")
	old := func(n int, at string) {
		w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'order', 'o-' || i % 7, 'made', json_build_object('i', i), $2::text::timestamptz from generate_series(1, $1::int) i`, n, at)
	}
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(20)
	old(20, "2020-01-01 12:00Z")
	old(10, "1999-01-01 12:00Z")
	w.deliveredAtLeast(10*time.Second, 50)
	c.kill()
	w.snapshot()
	w.insert(20)
	old(20, "2020-01-01 13:00Z")
	w.exec("delete from event_outbox where created_at >= '2020-01-01Z' and created_at < '2020-01-02Z'")
	c.start()
	c.ready("leader")
	w.deliveredAtLeast(10*time.Second, 90)
	eventually(t, 10*time.Second, "the old day's partition is dropped", func() error {
		if w.exec("select from pg_class where relname = 'event_outbox_20200101'") > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 100)
	w.verify(expectation{faults: 1})
	c.term()
}
