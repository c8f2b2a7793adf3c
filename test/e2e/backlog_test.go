package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// allDelivered waits until every row of the outbox has a delivery to each sink in the log, and lets the command verify look as well.
func (w *world) allDelivered(c *connector) {
	w.t.Helper()
	eventually(w.t, 30*time.Second, "all delivered", func() error {
		n := ask[int](w, `select count(*) from event_outbox o, outbox_processors p
			where not exists (select from outbox_delivery_log l where l.event_id = o.id and l.processor_id = p.id and l.status = 'delivered')`)
		if n != 0 {
			return fmt.Errorf("%d deliveries are not", n)
		}
		return nil
	})
	eventually(w.t, 30*time.Second, "the jobs have finished", func() error {
		if n := ask[int](w, "select count(*) from outbox_backlog where status <> 'done'"); n != 0 {
			return fmt.Errorf("%d have not", n)
		}
		return nil
	})
	c.does("verify")
	if n := ask[int](w, "select count(*) from (select from outbox_delivery_log where status = 'delivered' group by event_id, processor_id having count(*) > 1) as twice"); n != 0 {
		w.t.Errorf("%d were delivered twice", n)
	}
}

// An outbox that is full at the first start is refused until somebody says what becomes of the rows. They are delivered, and what comes
// meanwhile too.
func TestInitBacklog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	c := w.connector()
	w.insert(50)
	c.does("destroy", "--yes")
	if out, code := c.command(nil, "init", "--config", c.config); code != exitcode.Config || !containsAll(out, []string{"holds 50 rows from before the slot", "--backlog all", "--backlog none"}) {
		t.Fatalf("init: exit code %d\n%s", code, out)
	}
	c.does("init", "--backlog", "all")
	if out, code := c.command(nil, "backlog", "--config", c.config); code != 0 || !containsAll(out, []string{"stdout", "0 of about 50 rows compared"}) {
		t.Errorf("backlog: exit code %d\n%s", code, out)
	}
	c.start()
	w.insert(20)
	w.allDelivered(c)
	if out, code := c.command(nil, "backlog", "--watch", "--config", c.config); code != 0 || !containsAll(out, []string{"stdout: finished at", "50 were missing"}) {
		t.Errorf("backlog: exit code %d\n%s", code, out)
	}

	// A sink that is new gets them all, if it asks for them.
	c.term()
	w.insert(5)
	sink := map[string]any{"name": "late", "type": "stdout", "topic": "x", "backlog": "all"}
	w.sinks = append(w.sinks, sink)
	w.writeConfig(c)
	c.start()
	w.insert(5)
	w.allDelivered(c)
	c.term()
}

// With on_slot_loss: resync a connector makes its lost slot anew, and nothing is missing.
func TestOnSlotLoss(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	w.source["on_slot_loss"] = "resync"
	c := w.connector()
	c.start()
	w.insert(10)
	w.deliveredAtLeast(20*time.Second, 10)
	c.term()
	w.insert(10)
	w.exec("select pg_drop_replication_slot($1)", w.slot)
	c.start()
	w.insert(10)
	w.allDelivered(c)
	c.ready("leader")
	c.says("the slot was lost, and was made anew")
	c.term()
}

// What "init --backlog" has left out stays undelivered when the slot is made anew, also while the job of init is unfinished. What was written
// since is found, whatever the filter says.
func TestResyncAfterFilter(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		backlog    string
		unfinished bool
	}{
		"where": {"where:tenant_id = 'mine'", false}, "where, unfinished": {"where:tenant_id = 'mine'", true},
		"since": {"since:7d", false}, "since, unfinished": {"since:7d", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
			c := w.connector()
			const row = `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, tenant_id, created_at) select 'order', 'a', 'made', '{}', $1, now() - $2 * interval '1 day'
				from generate_series(1, 20)`
			w.exec(row, "mine", 2)
			w.exec(row, "theirs", 9)
			c.does("destroy", "--yes")
			c.does("init", "--backlog", test.backlog)
			if !test.unfinished {
				c.start()
				w.deliveredAtLeast(20*time.Second, 20)
				eventually(t, 20*time.Second, "the job has finished", func() error {
					if n := ask[int](w, "select count(*) from outbox_backlog where status <> 'done'"); n != 0 {
						return fmt.Errorf("%d have not", n)
					}
					return nil
				})
				c.term()
			}
			w.exec("select pg_drop_replication_slot($1)", w.slot)
			w.exec(row, "others", 0)
			c.does("resync", "--yes")
			c.start()
			w.deliveredAtLeast(20*time.Second, 40)
			eventually(t, 20*time.Second, "the job has finished", func() error {
				if n := ask[int](w, "select count(*) from outbox_backlog where status <> 'done'") + ask[int](w, "select count(*) from outbox_parked"); n != 0 {
					return fmt.Errorf("%d jobs and parked rows", n)
				}
				return nil
			})
			if n := ask[int](w, "select count(distinct o.id) from event_outbox o join outbox_delivery_log l on l.event_id = o.id where tenant_id = 'theirs'"); n != 0 {
				t.Errorf("%d events that were left out were delivered", n)
			}
			c.does("verify")
			c.term()
		})
	}
}
