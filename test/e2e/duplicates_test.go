package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// numberedWorld has a JetStream stream that remembers message ids for longer than a test lasts.
func numberedWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, worldOptions{bare: true, sinks: []string{"event_bus"}})
	w.remembers(2 * time.Minute)
	w.source["ledger_schema"] = "outbox"
	w.exec("create schema outbox")
	return w
}

// remembers sets the stream's duplicate window.
func (w *world) remembers(window time.Duration) {
	w.t.Helper()
	_, err := w.jetStream().UpdateStream(w.t.Context(), jetstream.StreamConfig{
		Name: "events", Subjects: []string{w.topics.prefix + ".>"}, Storage: jetstream.FileStorage, Duplicates: window,
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// numbered makes an outbox whose ids are numbers, and a connector for it.
func (w *world) numbered(table string) *connector {
	w.t.Helper()
	w.exec("create table " + table + ` (id bigint generated always as identity primary key, aggregate_type text not null, aggregate_id text not null,
		event_type text not null, payload jsonb)`)
	none := map[string]any{"event_version": ""}
	for _, c := range []string{"metadata", "created_at", "max_retries", "tenant_id", "correlation_id", "causation_id"} {
		none[c] = ""
	}
	w.source["table"], w.source["columns"] = "public."+table, none
	w.slot, w.publication = w.database+"_"+table, w.database+"_"+table
	w.source["slot"], w.source["publication"] = w.slot, w.publication
	c := w.connector()
	if out, code := c.command(nil, "init", "--config", c.config, "--backlog", "none"); code != 0 {
		w.t.Fatalf("init: exit code %d\n%s", code, out)
	}
	return c
}

func (w *world) number(table string) {
	w.t.Helper()
	w.exec("insert into " + table + ` (aggregate_type, aggregate_id, event_type, payload) values ('order', '1', 'placed', '{}')`)
}

// numberedDelivered waits for the ledger to know of so many.
func (w *world) numberedDelivered(n int) {
	w.t.Helper()
	eventually(w.t, 30*time.Second, fmt.Sprintf("%d delivered", n), func() error {
		return atLeast(ask[int](w, "select count(*) from outbox.outbox_delivery_log where status = 'delivered'"), n)
	})
}

// streamedIDs waits for these messages in the stream.
func (w *world) streamedIDs(want ...string) {
	w.t.Helper()
	eventually(w.t, 30*time.Second, "messages in the stream", func() error {
		var got []string
		for _, d := range w.streamed() {
			got = append(got, d.id)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

// Two mapped tables with the same ids lead into one stream, which drops what it takes for a duplicate.
func TestTwoTablesOneStream(t *testing.T) {
	t.Parallel()
	w := numberedWorld(t)
	for _, table := range []string{"invoices_outbox", "orders_outbox"} {
		c := w.numbered(table)
		w.exec("alter table " + table + " alter id restart with 101")
		w.number(table)
		c.start()
		c.ready("leader")
	}
	w.streamedIDs(w.database+":public:invoices_outbox:101", w.database+":public:orders_outbox:101")
	w.numberedDelivered(2)
}

// Ids that begin anew within the stream's duplicate window: the event is refused with the cause, becomes a dead letter, and is
// accepted when the stream has forgotten the other one. So is one that was committed while the connector was stopped.
func TestIdentityRestarts(t *testing.T) {
	t.Parallel()
	w := numberedWorld(t)
	c := w.numbered("orders_outbox")
	id := w.database + ":public:orders_outbox:1"
	c.start()
	w.number("orders_outbox")
	w.numberedDelivered(1)
	for n, restart := range []bool{false, true} {
		if restart {
			c.term()
		}
		w.exec("truncate orders_outbox restart identity")
		w.number("orders_outbox")
		if restart {
			c.start()
		}
		eventually(t, 30*time.Second, "a dead letter", func() error {
			return atLeast(ask[int](w, `select count(*) from outbox.outbox_parked where status = 'dead' and attempts = tries
				and error_message like '%' || $1 || '%' and error_message like '%duplicate window%dlq retry%'`, id), n+1)
		})
	}
	w.streamedIDs(id)
	if n := ask[int](w, "select count(*) from outbox.outbox_delivery_log where status = 'delivered'"); n != 1 {
		t.Errorf("%d delivered, want 1", n)
	}
	// A retry meets the same answer as long as the stream remembers.
	retry := func() {
		if out, code := c.command(nil, "dlq", "retry", "--config", c.config, "--all"); code != 0 {
			t.Fatalf("exit code %d\n%s", code, out)
		}
	}
	retry()
	eventually(t, 30*time.Second, "dead again", func() error {
		return atLeast(ask[int](w, "select count(*) from outbox.outbox_delivery_log where status = 'dead'"), 4)
	})
	w.streamedIDs(id)
	// The second is refused as a duplicate of the first, and accepted by itself a little later.
	w.remembers(100 * time.Millisecond)
	retry()
	w.numberedDelivered(3)
	w.streamedIDs(id, id, id)
}

// What was accepted and not recorded when the connector was killed comes again. The stream calls it a duplicate, and is right.
func TestDuplicateAfterCrash(t *testing.T) {
	t.Parallel()
	w := numberedWorld(t)
	c := w.numbered("orders_outbox")
	id := w.database + ":public:orders_outbox:1"
	c.start()
	c.ready("leader")
	conn := connect(t, w.dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "begin; lock table outbox.outbox_delivery_log in share mode"); err != nil {
		t.Fatal(err)
	}
	w.number("orders_outbox")
	w.streamedIDs(id)
	c.kill()
	if _, err := conn.Exec(t.Context(), "rollback"); err != nil {
		t.Fatal(err)
	}
	c.start()
	w.numberedDelivered(1)
	w.streamedIDs(id)
	if n := ask[int](w, "select count(*) from outbox.outbox_delivery_log where status <> 'delivered'") + ask[int](w, "select count(*) from outbox.outbox_parked"); n != 0 {
		t.Errorf("%d tries failed, or events parked", n)
	}
	c.term()
}
