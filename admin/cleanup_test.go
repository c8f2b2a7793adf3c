package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// oldRows inserts rows first to last of the outbox, made two days ago, and of each a row of the log at position 0/n.
func (w *world) oldRows(first, last int) {
	w.t.Helper()
	w.exec("select outbox_make_partitions(now() - interval '2 days', 1)", fmt.Sprintf(`with made as (
			insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
			select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'order', n::text, 'order.made', '{}', now() - interval '2 days' + n * interval '1 us'
			from generate_series(%d, %d) n returning id, aggregate_id::int as n)
		insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			select id, 1, 1, 'delivered', now() - interval '2 days', ('0/' || to_hex(n))::pg_lsn, 0, 7 from made`, first, last))
}

// settledTo sets the prefix of a slot.
func (w *world) settledTo(slot string, n int) {
	w.t.Helper()
	w.exec(fmt.Sprintf(`insert into outbox_checkpoints (slot_name, state, epoch) values ('%s', 'ready', 7) on conflict do nothing`, slot),
		fmt.Sprintf(`update outbox_checkpoints set prefix_lsn = '0/%X', prefix_index = 0, confirmed_lsn = '0/%[1]X' where slot_name = '%s'`, n, slot))
}

const rowsOfOutbox = "select count(*) from event_outbox"

var oneDay = cleanup.Retention{Outbox: 24 * time.Hour, Ledger: 24 * time.Hour}

// A dry run says what would go and what stays, and changes nothing; a run then does that.
func TestCleanup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.oldRows(1, 2500)
	w.settledTo("shop", 5000)
	w.settledTo("other", 2400) // a slot that is behind
	w.exec("delete from outbox_delivery_log where commit_lsn = '0/7'",
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'order', 'x', 'order.made', '{}' from generate_series(1, 3)")

	ctx := pgtest.Context(t)
	check := func(r CleanupResult, err error) {
		t.Helper()
		k := r.Outbox.Kept
		if err != nil || r.Outbox.Deleted != 2399 || k.Beyond != 100 || k.Unread != 1 || k.Total() != 101 || !r.Complete || r.Blocked != "" || len(r.Grants) > 0 {
			t.Errorf("%v, %+v", err, r)
		}
		if r.Slot == nil || r.Slot.Slot != "other" || r.Slot.Prefix != "0/960:0" || r.Slot.Exists || r.Slot.LagBytes <= 0 {
			t.Errorf("the slot that is behind: %+v", r.Slot)
		}
	}
	r, err := Cleanup(ctx, w.admin, CleanupOptions{Retention: oneDay, DryRun: true, Most: 1_000_000, Progress: func(int64) { t.Error("a dry run deletes") }})
	check(r, err)
	if !r.DryRun || w.text(rowsOfOutbox) != "2503" {
		t.Errorf("a dry run leaves %s rows, %+v", w.text(rowsOfOutbox), r)
	}
	if r, err = Cleanup(ctx, w.admin, CleanupOptions{Retention: oneDay, DryRun: true, Most: 1000}); err != nil || !r.Outbox.More || r.Outbox.Deleted >= 2399 {
		t.Errorf("a dry run that is bounded: %v, %+v", err, r)
	}
	var deleted []int64
	r, err = Cleanup(ctx, w.admin, CleanupOptions{Retention: oneDay, Progress: func(n int64) { deleted = append(deleted, n) }})
	check(r, err)
	if r.DryRun || w.text(rowsOfOutbox) != "104" || len(deleted) < 3 || deleted[len(deleted)-1] != 2399 {
		t.Errorf("a run leaves %s rows, and told of %v", w.text(rowsOfOutbox), deleted)
	}
	r, err = Cleanup(ctx, w.admin, CleanupOptions{Retention: cleanup.Retention{Outbox: cleanup.Forever, Ledger: cleanup.Forever}})
	if err != nil || w.text(rowsOfOutbox) != "104" {
		t.Errorf("off: %v, %+v", err, r)
	}
}

// The end of the context lets the chunk at hand be committed.
func TestCleanupInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.oldRows(1, 2500)
	w.settledTo("shop", 5000)
	ctx, cancel := context.WithCancelCause(pgtest.Context(t))
	defer cancel(nil)
	stop := errors.New("interrupt")
	r, err := Cleanup(ctx, w.admin, CleanupOptions{Retention: oneDay, Progress: func(int64) { cancel(stop) }})
	if !errors.Is(err, stop) || err.Error() != "ended early: interrupt; run it again to go on" || r.Outbox.Deleted != 1000 || r.Complete {
		t.Errorf("interrupted: %v, %+v", err, r)
	}
	if left := w.text(rowsOfOutbox); left != "1500" {
		t.Errorf("%s rows are left", left)
	}
	if r, err = Cleanup(pgtest.Context(t), w.admin, CleanupOptions{Retention: oneDay}); err != nil || r.Outbox.Deleted != 1500 {
		t.Errorf("the rest: %v, %+v", err, r)
	}
}

// What holds everything up is said, and nothing is deleted.
func TestCleanupThatMayNot(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ sql, blocked string }{
		"a slot that is being made": {"insert into outbox_checkpoints (slot_name, state) values ('new', 'building')", "a slot is being made"},
		"a job":                     {"insert into outbox_backlog (processor_id, mode, status) values (1, 'missing', 'running')", "outbox_backlog is unfinished"},
		"no slot":                   {"delete from outbox_checkpoints", "no slot has a checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.oldRows(1, 3)
			w.settledTo("shop", 10)
			w.exec(test.sql)
			for _, dryRun := range []bool{true, false} {
				r, err := Cleanup(pgtest.Context(t), w.admin, CleanupOptions{Retention: oneDay, DryRun: dryRun})
				if err != nil || !strings.Contains(r.Blocked, test.blocked) || r.Outbox.Deleted != 0 || w.text(rowsOfOutbox) != "3" {
					t.Errorf("dry run %v: %v, %+v", dryRun, err, r)
				}
			}
		})
	}
}

// A right that is missing is told with the statement that gives it, and that works.
func TestCleanupWithoutTheRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.oldRows(1, 3)
	w.settledTo("shop", 10)
	role, password := pgtest.NewLogin(t, w.conn)
	w.exec("grant usage on schema public to "+role, "grant select on all tables in schema public to "+role, "grant delete on outbox_metrics to "+role)
	limited := w.admin
	limited.DSN = pgtest.WithLogin(t, w.admin.DSN, role, password)
	for _, dryRun := range []bool{true, false} {
		r, err := Cleanup(pgtest.Context(t), limited, CleanupOptions{Retention: oneDay, DryRun: dryRun})
		if err != nil || len(r.Grants) != 3 || !strings.Contains(r.Grants[0], "grant delete on table public.event_outbox to ") || w.text(rowsOfOutbox) != "3" {
			t.Fatalf("dry run %v: %v, %+v", dryRun, err, r)
		}
		if dryRun && (r.Outbox.Deleted != 3 || r.Log.Stays != "the login lacks a right") {
			t.Errorf("a dry run does not need the right to delete: %+v", r)
		}
		if !dryRun {
			w.exec(r.Grants...)
		}
	}
	if r, err := Cleanup(pgtest.Context(t), limited, CleanupOptions{Retention: oneDay}); err != nil || r.Outbox.Deleted != 3 {
		t.Errorf("with the right: %v, %+v", err, r)
	}
}

func TestCleanupErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	mapped := w.admin
	mapped.Source.Table = "public.elsewhere"
	_, err := Cleanup(pgtest.Context(t), mapped, CleanupOptions{Retention: oneDay})
	exitcodetest.Want(t, err, exitcode.Config, "public.elsewhere")
	away := w.admin
	away.DSN = "postgres://127.0.0.1:1/nowhere"
	_, err = Cleanup(pgtest.Context(t), away, CleanupOptions{Retention: oneDay})
	exitcodetest.Want(t, err, exitcode.Unavailable)
}
