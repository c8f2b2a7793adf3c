package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// deliveredOnce wants all n events of a table to be delivered, each of them once.
func (w *world) deliveredOnce(table string, n int) {
	w.t.Helper()
	eventually(w.t, 30*time.Second, "all delivered", func() error {
		if got := ask[int](w, "select count(*) from "+table+" e where exists (select from outbox_delivery_log l where l.event_id = e.id and status = 'delivered')"); got != n {
			return fmt.Errorf("%d of %d are", got, n)
		}
		return nil
	})
	if twice := ask[int](w, "select count(*) from (select event_id from outbox_delivery_log where status = 'delivered' group by 1 having count(*) > 1) t"); twice > 0 {
		w.t.Errorf("%d events were delivered twice", twice)
	}
}

// swap puts a copy of the outbox in its place, under the running connector.
func (w *world) swap() {
	w.t.Helper()
	w.exec("create table eo2 (like event_outbox including all)")
	w.execAll("begin; alter table event_outbox rename to event_outbox_old; alter table eo2 rename to event_outbox; commit")
}

// Another table takes the outbox's name while the connector runs. What docs/table.md#swapped says, word for word,
// delivers what was written into either, whichever of them stays.
func TestOutboxReplaced(t *testing.T) {
	t.Parallel()
	for name, mend := range map[string]string{
		"by mistake": "event_outbox rename to event_outbox_new",
		"for good":   "create table outbox_swapped",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
			c := w.connector()
			c.start()
			c.ready("leader")
			w.insert(10)
			w.deliveredAtLeast(10*time.Second, 10)
			w.swap()
			w.insert(10)
			c.exits(60*time.Second, exitcode.Config)
			c.says("public.event_outbox is another relation now", "which is public.event_outbox_old now", "docs/table.md#swapped")
			c.refuses(exitcode.Config, "does not publish table public.event_outbox", "it publishes public.event_outbox_old", "docs/table.md#swapped")
			// An event of the old table that the connector has not read.
			w.exec("insert into event_outbox_old (aggregate_type, aggregate_id, event_type, payload) values ('order', '1', 'late', '{}')")
			w.execAll(strings.ReplaceAll(documented(t, "table.md", mend), "publication outbox_cdc ", "publication "+w.publication+" "))
			w.insert(10)
			c.start()
			c.ready("leader")
			if name == "for good" {
				w.deliveredOnce("(select id from event_outbox union select id from event_outbox_old)", 31)
				c.says("rows of a table that is not the outbox arrive", "public.event_outbox_old")
				w.execAll(documented(t, "table.md", "drop table if exists event_outbox_old cascade"))
				c.does("init")
				if seen, all := ask[int](w, "select count(*) from event_outbox_status"), ask[int](w, "select count(*) from event_outbox"); seen != all {
					t.Errorf("the view has %d events, the outbox %d", seen, all)
				}
			} else {
				w.deliveredOnce("event_outbox", 31)
			}
			c.term()
		})
	}
}

// The table that takes the outbox's name is published already. The process that streams stops before the slot passes a row of
// it, and the one that stands by delivers them all.
func TestPublishedTableReplacesTheOutbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	c, other := w.connector(), w.connector()
	c.start()
	c.ready("leader")
	other.start()
	other.ready("standby")
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 10)
	w.exec("create table eo2 (like event_outbox including all)")
	w.execAll("begin; alter publication " + w.publication + " add table eo2; alter table event_outbox rename to event_outbox_old; alter table eo2 rename to event_outbox; commit")
	w.insert(10)
	c.exits(10*time.Second, exitcode.Config)
	c.says("public.event_outbox is another relation now")
	w.insert(10)
	other.ready("leader")
	w.deliveredOnce("event_outbox", 20)
	other.term()
}

// The publication leaves out the outbox for a moment. Nothing but the change itself tells of the rows of that moment, and the
// documented query finds them.
func TestPublicationWithoutTheOutboxForAMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 10)
	w.exec("create table other (i int)")
	w.exec("alter publication " + w.publication + " add table other")
	w.exec("alter publication " + w.publication + " drop table event_outbox")
	w.insert(3)
	w.exec("alter publication " + w.publication + " add table event_outbox")
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 20)
	eventually(t, 60*time.Second, "a warning", func() error {
		if log := tail(c.last().stderr, 10); !strings.Contains(log, "the publication was changed") {
			return errors.New(log)
		}
		return nil
	})
	if changes, read := c.metric("publication_changes_total"), c.metric("events_read_total"); changes < 1 || read != 20 {
		t.Errorf("metrics: %v changes, %v events read, want 20", changes, read)
	}
	if _, s := c.verifies(exitcode.Failure); s.Missing != 3 {
		t.Errorf("verify finds %d missing events, want 3", s.Missing)
	}
	c.ready("leader")
	c.term()
}

// A table that inherits from the outbox is made while the connector runs. It stops, and init refuses such an outbox.
func TestOutboxGetsAChild(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 10)
	w.exec("create table child () inherits (event_outbox)")
	c.exits(60*time.Second, exitcode.Config)
	c.says("inherit from public.event_outbox", "public.child", "docs/table.md#inheritance")
	c.refuses(exitcode.Config, "inherit from public.event_outbox", "public.child")
	c.does("destroy", "--yes")
	if out, code := c.command(nil, "init", "--backlog", "none", "--config", c.config); code != exitcode.Config || !containsAll(out, []string{"public.child"}) {
		t.Errorf("init: exit code %d\n%s", code, out)
	}
	w.exec(`alter table child no inherit "public"."event_outbox"`)
	c.does("init", "--backlog", "none")
	w.insert(10)
	c.start()
	w.deliveredAtLeast(10*time.Second, 20)
	c.term()
}

// A column that PostgreSQL computes is delivered where the publication has it, from 18 on; before, init refuses it.
func TestGeneratedColumn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}, bare: true})
	w.exec("create table events (id uuid primary key, kind text not null, of int, name text generated always as ('no ' || of::text) stored, body jsonb)")
	w.source["table"] = "public.events"
	w.source["columns"] = map[string]any{
		"aggregate_type": "kind", "aggregate_id": "name", "event_type": "kind", "event_version": "", "payload": "body", "metadata": "", "created_at": "",
		"max_retries": "", "tenant_id": "", "correlation_id": "", "causation_id": "",
	}
	c := w.connector()
	out, code := c.command(nil, "init", "--config", c.config)
	if code != exitcode.Config || !containsAll(out, []string{"name", "generated", "docs/table.md#generated"}) {
		t.Fatalf("init: exit code %d\n%s", code, out)
	}
	insert := "insert into events (id, kind, of, body) values (gen_random_uuid(), 'order', 7, '{}')"
	if w.version() >= 18 {
		w.exec("create publication " + w.publication + " for table events with (publish = 'insert', publish_generated_columns = stored)")
	} else {
		w.exec(`alter table "public"."events" alter column "name" drop expression`)
		insert = "insert into events (id, kind, name, body) values (gen_random_uuid(), 'order', 'no 7', '{}')"
	}
	c.does("init")
	c.start()
	c.ready("leader")
	w.exec(insert)
	w.deliveredAtLeast(10*time.Second, 1)
	if got := w.printed(); len(got) != 1 || got[0].key != "no 7" {
		t.Errorf("printed %+v, want one with the key %q", got, "no 7")
	}
	c.term()
}
