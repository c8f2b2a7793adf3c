package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// ownOutbox is the table that init makes.
var ownOutbox = ledger.OutboxTable{
	Schema: "public", Name: "event_outbox", ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", EventType: "event_type", CreatedAt: "created_at",
}

// deleting is a ledger whose outbox is cleaned up.
type deleting struct {
	*testLedger
	conn *pgx.Conn // as a connector's
	rows *ledger.OutboxRows
	ids  int
}

func newDeleting(t *testing.T, table ledger.OutboxTable) *deleting {
	t.Helper()
	d := &deleting{testLedger: newLedger(t)}
	d.conn = d.pinned()
	d.open(table)
	return d
}

func (d *deleting) pinned() *pgx.Conn {
	d.t.Helper()
	conn := d.db.Conn(d.t)
	if _, err := conn.Exec(context.Background(), "set search_path = pg_catalog, pg_temp; set TimeZone = 'UTC'; set DateStyle = ISO"); err != nil {
		d.t.Fatal(err)
	}
	return conn
}

func (d *deleting) open(table ledger.OutboxTable) {
	d.t.Helper()
	var err error
	if d.rows, err = ledger.Schema("public").OpenOutboxRows(pgtest.Context(d.t), d.conn, table); err != nil {
		d.t.Fatal(err)
	}
}

// event inserts a row of this age and returns its id.
func (d *deleting) event(age time.Duration) string {
	d.t.Helper()
	d.ids++
	id := fmt.Sprintf("00000000-0000-7000-8000-%012d", d.ids)
	d.exec(`insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) values ($1, 'order', 'a', 'made', '{}', now() - $2::interval)`,
		id, age.String())
	return id
}

// logged writes a log row of an event.
func (d *deleting) logged(id, status, lsn string, index, epoch int) {
	d.t.Helper()
	d.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		values ($1, 1, 1, $2, now(), $3, $4, $5)`, id, status, lsn, index, epoch)
}

func (d *deleting) parked(id, status, lsn string, index int) {
	d.t.Helper()
	d.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event) values (1, $3, $4, $1, 1, $2, '{}')`, id, status, lsn, index)
}

func (d *deleting) chunk(q ledger.ChunkQuery) (ledger.Chunk, error) {
	d.t.Helper()
	if q.Limit == 0 {
		q.Limit = 1000
	}
	if q.Age == 0 {
		q.Age = time.Hour
	}
	q.Patience, q.LockPatience = time.Minute, 100*time.Millisecond
	return d.rows.DeleteChunk(pgtest.Context(d.t), d.conn, q)
}

func (d *deleting) mustChunk(q ledger.ChunkQuery) ledger.Chunk {
	d.t.Helper()
	c, err := d.chunk(q)
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

func (d *deleting) left() []string {
	d.t.Helper()
	return strings.Fields(d.query("select string_agg(id::text, ' ' order by id) from event_outbox"))
}

// A chunk behind the last row says nothing of any row.
func TestDeleteChunkWithoutRows(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	d.event(2 * time.Hour)
	first := d.mustChunk(ledger.ChunkQuery{From: &ledger.OutboxKey{At: "2020-01-01 00:00:00+00"}})
	c := d.mustChunk(ledger.ChunkQuery{From: first.Last, After: true, Witness: first.Witness})
	if first.Last == nil || c.Last != nil || c.Waiting != nil || c.Unaccounted != "" || c.Kept.Total() != 0 {
		t.Errorf("after %+v: %+v", first.Last, c)
	}
}

// What may be deleted is old enough, and the ledger has a row of it at or before the least prefix (0/64, −1; epoch 3).
func TestDeleteChunkFollowsTheRule(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	var stay []string
	keep := func(id string) { stay = append(stay, id) }
	old := 2 * time.Hour
	for _, status := range []string{"delivered", "failed", "dead", "discarded"} {
		d.logged(d.event(old), status, "0/60", 7, 3)
	}
	d.parked(d.event(old), "parked", "0/60", 1)
	d.parked(d.event(old), "dead", "0/60", 2)
	d.logged(d.event(old), "delivered", "0/64", -1, 3) // exactly the prefix
	d.logged(d.event(old), "delivered", "9/0", 5, 2)   // of a slot before this one
	d.logged(d.event(old), "delivered", "9/0", -5, 3)  // of a job, never streamed
	d.parked(d.event(old), "parked", "9/0", -5)
	both := d.event(old) // settled at one sink, which says that everything at its position is
	d.logged(both, "failed", "0/60", 3, 3)
	d.parked(both, "parked", "0/60", 3)

	young := d.event(time.Minute)
	d.logged(young, "delivered", "0/60", 7, 3)
	keep(young)
	beyond := d.event(old)
	d.logged(beyond, "delivered", "0/64", 0, 3)
	keep(beyond)
	late := d.event(old)
	d.parked(late, "parked", "0/65", 0)
	keep(late)
	unknown := d.event(old)
	keep(unknown)

	explained := d.mustChunk(ledger.ChunkQuery{Explain: true})
	if got := len(d.left()); got != d.ids {
		t.Fatalf("a dry run has left %d rows of %d", got, d.ids)
	}
	c := d.mustChunk(ledger.ChunkQuery{})
	if diff := cmp.Diff(stay, d.left()); diff != "" {
		t.Errorf("rows that stay (-want +got):\n%s", diff)
	}
	if want := (ledger.KeptRows{Beyond: 2, Unread: 1}); c.Deleted != 11 || c.Kept != want || c.Full || c.Blocked != "" {
		t.Errorf("%+v", c)
	}
	if c.Last == nil || c.Last.ID != unknown || c.Waiting == nil || c.Waiting.ID != beyond {
		t.Errorf("last %+v, waiting %+v", c.Last, c.Waiting)
	}
	if explained.Deleted != c.Deleted || explained.Kept != c.Kept || *explained.Last != *c.Last {
		t.Errorf("explained %+v, done %+v", explained, c)
	}
	// Another slot is behind.
	d.logged(d.event(old), "delivered", "0/60", 7, 3)
	d.exec(`insert into outbox_checkpoints (slot_name, state, prefix_lsn, prefix_index, confirmed_lsn, epoch, slot_epoch) values ('second', 'ready', '0/50', 0, '0/50', 9, 9)`)
	if c := d.mustChunk(ledger.ChunkQuery{}); c.Deleted != 0 || c.Kept.Beyond != 3 {
		t.Errorf("with a slot behind: %+v", c)
	}
	for _, tc := range []struct{ set, undo, blocked string }{
		{"update outbox_checkpoints set state = 'building' where slot_name = 'second'", "delete from outbox_checkpoints where slot_name = 'second'", "a slot is being made"},
		{"insert into outbox_backlog (processor_id, mode, status) values (1, 'missing', 'running')", "update outbox_backlog set status = 'done'", "a job of outbox_backlog is unfinished"},
		{"alter table outbox_checkpoints rename to elsewhere; create table outbox_checkpoints (like elsewhere)", "drop table outbox_checkpoints; alter table elsewhere rename to outbox_checkpoints", "no slot has a checkpoint"},
	} {
		if _, err := d.testLedger.conn.Exec(context.Background(), tc.set); err != nil {
			t.Fatal(err)
		}
		if c := d.mustChunk(ledger.ChunkQuery{}); c.Blocked != tc.blocked || c.Deleted != 0 || c.Kept.Total() != 0 || c.Last != nil {
			t.Errorf("blocked by %q: %+v", tc.blocked, c)
		}
		if _, err := d.testLedger.conn.Exec(context.Background(), tc.undo); err != nil {
			t.Fatal(err)
		}
	}
	if c := d.mustChunk(ledger.ChunkQuery{}); c.Deleted != 1 {
		t.Errorf("not blocked any more: %+v", c)
	}
}

// A row that the ledger does not know is unaccounted only if it could be seen before what is settled now, and is never deleted.
func TestDeleteChunkTellsUnaccountedRows(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	lost := d.event(2 * time.Hour)
	first := d.mustChunk(ledger.ChunkQuery{})
	if first.Kept.Unread != 1 || first.Decides {
		t.Fatalf("%+v", first)
	}
	d.event(2 * time.Hour) // after the witness
	if c := d.mustChunk(ledger.ChunkQuery{Witness: first.Witness}); c.Kept.Unread != 2 || c.Decides {
		t.Errorf("not settled beyond the witness: %+v", c)
	}
	d.exec("update outbox_checkpoints set confirmed_lsn = $1", first.Witness.LSN)
	c := d.mustChunk(ledger.ChunkQuery{Witness: first.Witness})
	if c.Kept != (ledger.KeptRows{Unread: 1, Unaccounted: 1}) || c.Unaccounted != lost || !c.Decides {
		t.Errorf("settled beyond the witness: %+v", c)
	}
	d.logged(lost, "delivered", "0/60", 1, 3)
	if c := d.mustChunk(ledger.ChunkQuery{Witness: first.Witness}); c.Deleted != 1 || c.Unaccounted != "" {
		t.Errorf("known now: %+v", c)
	}
}

// A chunk goes on where the last one ended, in the order of time and id.
func TestDeleteChunkWalks(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	for i := range 25 {
		id := d.event(time.Duration(100-i/10) * time.Hour)
		if i%5 > 0 {
			d.logged(id, "delivered", "0/60", i, 3)
		}
	}
	var q ledger.ChunkQuery
	q.Limit = 4
	deleted, kept, chunks := int64(0), int64(0), 0
	for {
		c := d.mustChunk(q)
		deleted, kept, chunks = deleted+c.Deleted, kept+c.Kept.Total(), chunks+1
		if !c.Full {
			break
		}
		q.From, q.After = c.Last, true
	}
	if deleted != 20 || kept != 5 || chunks != 7 || len(d.left()) != 5 {
		t.Errorf("deleted %d, kept %d in %d chunks, %d left", deleted, kept, chunks, len(d.left()))
	}
	at, found, err := d.rows.OldestRow(pgtest.Context(t), d.conn, ledger.ChunkQuery{Age: time.Hour, Patience: time.Minute, LockPatience: time.Second})
	if err != nil || !found || at.ID != d.left()[0] {
		t.Errorf("oldest %+v, %v, %v", at, found, err)
	}
	if c := d.mustChunk(ledger.ChunkQuery{From: &at}); c.Kept.Unread != 5 {
		t.Errorf("from the oldest row: %+v", c)
	}
	if c := d.mustChunk(ledger.ChunkQuery{From: &at, After: true}); c.Kept.Unread != 4 {
		t.Errorf("after the oldest row: %+v", c)
	}
	at, found, err = d.rows.OldestRow(pgtest.Context(t), d.conn, ledger.ChunkQuery{Age: 200 * time.Hour, Patience: time.Minute, LockPatience: time.Second})
	if err != nil || found {
		t.Errorf("none is that old: %+v, %v, %v", at, found, err)
	}
	if c := d.mustChunk(ledger.ChunkQuery{From: &at}); c.Kept.Unread != 5 {
		t.Errorf("from the place before which there is none: %+v", c)
	}
}

// Rows that another transaction has locked are left out and counted; the others go.
func TestDeleteChunkLeavesLockedRows(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	var ids []string
	for i := range 10 {
		ids = append(ids, d.event(time.Duration(100-i)*time.Hour))
		d.logged(ids[i], "delivered", "0/60", i, 3)
	}
	ctx := pgtest.Context(t)
	other := d.db.Conn(t)
	for _, sql := range []string{"begin", "select from event_outbox where id = '" + ids[3] + "' for key share", "savepoint s", "select from event_outbox where id = '" + ids[5] + "' for update"} {
		if _, err := other.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	c := d.mustChunk(ledger.ChunkQuery{})
	if c.Deleted != 8 || c.Kept != (ledger.KeptRows{Locked: 2}) || c.Waiting == nil || c.Waiting.ID != ids[3] || c.LogNeeded.IsZero() {
		t.Errorf("%+v", c)
	}
	// Two transactions hold one row: then its xmax says nothing, and the statement waits.
	third := d.db.Conn(t)
	for _, sql := range []string{"begin", "select from event_outbox where id = '" + ids[3] + "' for key share"} {
		if _, err := third.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if c, err := d.chunk(ledger.ChunkQuery{}); !errors.Is(err, ledger.ErrRowLocked) || time.Since(began) > 10*time.Second {
		t.Errorf("%+v, %v after %s", c, err, time.Since(began))
	}
	for _, conn := range []*pgx.Conn{other, third} {
		if _, err := conn.Exec(ctx, "rollback"); err != nil {
			t.Fatal(err)
		}
	}
	if c := d.mustChunk(ledger.ChunkQuery{}); c.Deleted != 2 || len(d.left()) != 0 {
		t.Errorf("%+v", c)
	}
}

// A foreign key or a trigger of the user's may refuse a row, or a trigger may leave it out without an error.
func TestDeleteChunkSaysWhatIsRefused(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	a, b := d.event(3*time.Hour), d.event(2*time.Hour)
	d.logged(a, "delivered", "0/60", 0, 3)
	d.logged(b, "delivered", "0/60", 1, 3)
	d.exec("create table invoice (event uuid references event_outbox)")
	d.exec("insert into invoice values ($1)", b)
	_, err := d.chunk(ledger.ChunkQuery{})
	if !errors.Is(err, ledger.ErrRowRefused) || !strings.Contains(err.Error(), `on table "invoice"`) || strings.Contains(err.Error(), b) {
		t.Errorf("foreign key: %v", err)
	}
	if c := d.mustChunk(ledger.ChunkQuery{Limit: 1}); c.Deleted != 1 || c.Last.ID != a {
		t.Errorf("the row before it: %+v", c)
	}
	d.exec("drop table invoice")
	for body, want := range map[string]error{"return null;": nil, "raise exception 'no';": ledger.ErrRowRefused, "perform 1/0;": ledger.ErrRowRefused} {
		d.exec("create or replace function stop() returns trigger language plpgsql as $$ begin " + body + " return null; end $$")
		d.exec("drop trigger if exists stop on event_outbox")
		d.exec("create trigger stop before delete on event_outbox for each row execute function stop()")
		c, err := d.chunk(ledger.ChunkQuery{})
		if !errors.Is(err, want) || err == nil && (c.Deleted != 0 || c.Kept.Refused != 1) {
			t.Errorf("%s: %+v, %v", body, c, err)
		}
	}
}

// Two sessions do not delete from one table at once, and a statement does not run longer than its patience.
func TestDeleteChunkIsAloneAndBounded(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	d.logged(d.event(2*time.Hour), "delivered", "0/60", 0, 3)
	ctx := pgtest.Context(t)
	other := d.db.Conn(t)
	if _, err := other.Exec(ctx, "begin; select pg_advisory_xact_lock('pg_attribute'::regclass::oid::int, 'event_outbox'::regclass::oid::int)"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.chunk(ledger.ChunkQuery{}); !errors.Is(err, ledger.ErrCleanupRuns) {
		t.Errorf("beside another one: %v", err)
	}
	if _, err := other.Exec(ctx, "rollback"); err != nil {
		t.Fatal(err)
	}
	d.exec("create function sleepy() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return old; end $$")
	d.exec("create trigger sleepy before delete on event_outbox for each row execute function sleepy()")
	_, err := d.rows.DeleteChunk(ctx, d.conn, ledger.ChunkQuery{Age: time.Hour, Limit: 10, Patience: 200 * time.Millisecond, LockPatience: time.Second})
	if !errors.Is(err, ledger.ErrChunkTooLong) {
		t.Errorf("too long: %v", err)
	}
}

// A login without the right is told what it lacks.
func TestDeleteChunkWithoutTheRight(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	role := d.db.Stranger(t, "public").Role
	for _, table := range []string{"event_outbox", "outbox_delivery_log", "outbox_parked", "outbox_checkpoints", "outbox_backlog"} {
		d.exec("grant select on " + table + " to " + role)
	}
	if _, err := d.conn.Exec(pgtest.Context(t), "set role "+role); err != nil {
		t.Fatal(err)
	}
	d.open(ownOutbox)
	grant := "grant delete on table public.event_outbox to " + role
	if d.rows.Grant() != grant {
		t.Errorf("got %q, want %q", d.rows.Grant(), grant)
	}
	d.logged(d.event(2*time.Hour), "delivered", "0/60", 0, 3)
	if _, err := d.chunk(ledger.ChunkQuery{}); !errors.Is(err, ledger.ErrMayNotDelete) || !strings.Contains(err.Error(), grant) {
		t.Errorf("without the right: %v", err)
	}
	if c := d.mustChunk(ledger.ChunkQuery{Explain: true}); c.Deleted != 1 {
		t.Errorf("a dry run needs no right to delete: %+v", c)
	}
	d.exec(grant)
	d.open(ownOutbox)
	if c := d.mustChunk(ledger.ChunkQuery{}); c.Deleted != 1 || d.rows.Grant() != "" {
		t.Errorf("with the right: %+v", c)
	}
}

// A mapped table may have ids of any type, a time without a zone, names that need quotes, partitions, and infinite times.
func TestDeleteChunkOfAMappedTable(t *testing.T) {
	t.Parallel()
	for typ, ids := range map[string][]string{
		"smallint": {"-9", "10", "2000"}, "bigint": {"9", "10", "9223372036854775807"}, "text": {"'", "a,b", "ledger.outbox_parked"},
		"char(8)": {"a       ", "b       ", "c       "}, "numeric": {"1.50", "12", "2"}, "json": {`"a"`, `"b"`, `"c"`},
		"uuid": {"00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002", "00000000-0000-7000-8000-000000000003"},
	} {
		for _, at := range []string{"timestamptz", "timestamp"} {
			for _, partitioned := range []string{"", ` partition by range ("Created")`} {
				t.Run(typ+" "+at+partitioned, func(t *testing.T) {
					t.Parallel()
					d := &deleting{testLedger: newLedger(t)}
					d.conn = d.pinned()
					name := `"My.Shop"."ledger.outbox_of ""us"""`
					setUp := []string{
						"drop table event_outbox cascade", `create schema "My.Shop"`,
						`create table ` + name + ` ("Id" ` + typ + `, "ledger.outbox_parked" text, "Agg" int, "Created" ` + at + `)` + partitioned,
						"alter table outbox_parked alter event_id type text", "alter table outbox_delivery_log alter event_id type text",
					}
					if partitioned != "" {
						setUp = append(setUp, `create table "My.Shop".past partition of `+name+` for values from (minvalue) to ('2020-01-01')`,
							`create table "My.Shop".rest partition of `+name+` default`)
					}
					for _, sql := range setUp {
						d.exec(sql)
					}
					times := []string{"-infinity", "2019-05-06 07:08:09.123456", "2019-05-06 07:08:09.123456", "2021-01-01", "infinity"}
					all := []string{ids[0], ids[1], ids[2], ids[0], ids[1]}
					for i, id := range all {
						d.exec(`insert into `+name+` values ($1::text::`+typ+`, 'order', $2, $3::text::`+at+`)`, id, i, times[i])
					}
					d.exec(`insert into ` + name + ` ("Agg") values (9)`)
					d.exec(`insert into `+name+` values ($1::text::`+typ+`, 'order', 10, now() at time zone 'UTC' - interval '59 min'), ($1::text::`+typ+`, 'order', 11, now() at time zone 'UTC' - interval '61 min')`, ids[0])
					d.logged(ids[0], "delivered", "0/60", 0, 3)
					d.parked(ids[2], "dead", "0/60", 0)
					d.open(ledger.OutboxTable{
						Schema: "My.Shop", Name: `ledger.outbox_of "us"`, ID: "Id", AggregateType: "ledger.outbox_parked", AggregateID: "Agg", CreatedAt: "Created",
					})
					deleted, kept := int64(0), int64(0)
					q := ledger.ChunkQuery{Limit: 1}
					for {
						c := d.mustChunk(q)
						deleted, kept = deleted+c.Deleted, kept+c.Kept.Unread
						if !c.Full {
							break
						}
						q.From, q.After = c.Last, true
					}
					left := d.query(`select string_agg("Agg"::text, ' ' order by "Agg") from ` + name)
					if deleted != 4 || kept != 1 || left != "1 4 9 10" {
						t.Errorf("deleted %d, kept %d, left %s", deleted, kept, left)
					}
				})
			}
		}
	}
}

// A chunk reads the outbox by its index on the time and by the places of the rows, and the ledger by the ids, whatever the statistics say.
func TestPlanOfDeleteChunk(t *testing.T) {
	t.Parallel()
	d := newDeleting(t, ownOutbox)
	for range 20 {
		d.event(2 * time.Hour)
	}
	d.exec("analyze event_outbox")
	ctx := pgtest.Context(t)
	tx, err := d.conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if _, err := tx.Exec(ctx, ledger.PlanOfChunks); err != nil {
		t.Fatal(err)
	}
	for _, q := range []ledger.ChunkQuery{{}, {From: &ledger.OutboxKey{At: "2020-01-01"}}, {From: &ledger.OutboxKey{At: "2020-01-01", ID: "00000000-0000-7000-8000-000000000001"}, After: true}} {
		var at, id any
		if q.From != nil {
			at, id = q.From.At, q.From.ID
		}
		rows, err := tx.Query(ctx, "explain "+d.rows.ChunkStatement(&q), time.Hour.Microseconds(), 1000, at, id, nil, nil, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		plan := strings.Join(lines, "\n")
		for _, part := range []string{"Index Scan using idx_outbox_created_at on event_outbox", "Tid Scan on event_outbox", "Index Scan using idx_outbox_pending_events on outbox_parked"} {
			if !strings.Contains(plan, part) {
				t.Errorf("from %+v: no %q in\n%s", q.From, part, plan)
			}
		}
		for _, part := range []string{"Seq Scan on event_outbox", "Seq Scan on outbox_delivery_log", "Seq Scan on outbox_parked"} {
			if strings.Contains(plan, part) {
				t.Errorf("from %+v: %q in\n%s", q.From, part, plan)
			}
		}
	}
}
