package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// proxiedKafka is a broker that a world reaches through a proxy, and that the test may kill.
func proxiedKafka(t testing.TB) *servers.Kafka {
	t.Helper()
	k, err := servers.StartKafka(context.Background(), servers.KafkaOptions{Own: true, Proxy: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, k) })
	return k
}

// ofSink counts the rows of outbox_parked of a sink, by a condition on them.
func (w *world) ofSink(sink, condition string) int {
	w.t.Helper()
	return ask[int](w, `select count(*) from outbox_parked k join outbox_processors p on p.id = k.processor_id
		where p.processor_name = $1 and `+condition, sink)
}

// deliveredTo is the number of deliveries to a sink that the ledger knows.
func (w *world) deliveredTo(sink string) int {
	w.t.Helper()
	return ask[int](w, `select count(*) from outbox_delivery_log l join outbox_processors p on p.id = l.processor_id
		where l.status = 'delivered' and p.processor_name = $1`, sink)
}

// parksAtLeast waits until a sink has so many rows parked.
func (w *world) parksAtLeast(patience time.Duration, sink string, n int) {
	w.t.Helper()
	eventually(w.t, patience, fmt.Sprintf("%d parked of %s", n, sink), func() error {
		if got := w.ofSink(sink, "k.status = 'parked'"); got < n {
			return fmt.Errorf("it has %d", got)
		}
		return nil
	})
}

// goesOn wants that the slot is not held back: what is committed now is confirmed soon.
func (w *world) goesOn(patience time.Duration) {
	w.t.Helper()
	w.insert(7)
	w.passed(patience, ask[pglogrepl.LSN](w, "select pg_current_wal_insert_lsn()"))
}

// live waits until nothing is parked any more and every lane delivers what arrives.
func (w *world) live(c *connector, patience time.Duration) {
	w.t.Helper()
	eventually(w.t, patience, "all lanes live", func() error {
		if n := w.parked(); n > 0 {
			return fmt.Errorf("%d deliveries are parked", n)
		}
		if n := c.metric("lanes_catching_up"); n > 0 {
			return fmt.Errorf("%v lanes catch up", n)
		}
		return nil
	})
}

// statusOf makes an expectation of the events of the oracle: of those for which status gives one.
func (w *world) statusOf(status func(event) string) map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for _, ev := range w.truth() {
		if s := status(ev); s != "" {
			all[ev.id] = s
		}
	}
	return all
}

// deadOf is an expectation of those events that are dead letters of a sink.
func (w *world) deadOf(sink string) map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for _, id := range ask[[]string](w, `select coalesce(array_agg(k.event_id::text), '{}') from outbox_parked k
		join outbox_processors p on p.id = k.processor_id where k.status = 'dead' and p.processor_name = $1`, sink) {
		all[sink+"/"+id] = "dead"
	}
	return all
}

// insertInto commits n events of one order.
func (w *world) insertInto(aggregate string, n int) {
	w.t.Helper()
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
		select 'order', $1, 'made', json_build_object('i', i) from generate_series(1, $2::int) i`, aggregate, n)
}

// insertEach commits one event of each of n orders, prefix-1 to prefix-n.
func (w *world) insertEach(prefix string, n int) {
	w.t.Helper()
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
		select 'order', $1 || '-' || i, 'made', json_build_object('i', i) from generate_series(1, $2::int) i`, prefix, n)
}
