package ledger_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// walking is a ledger whose outbox is walked.
type walking struct {
	*testLedger
	conn *pgx.Conn // as a connector's
}

func newWalking(t *testing.T) *walking {
	t.Helper()
	return newWalkingIn(t, newLedger(t))
}

func newWalkingIn(t *testing.T, l *testLedger) *walking {
	t.Helper()
	w := &walking{testLedger: l}
	cfg, err := pgx.ParseConfig(w.db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	ledger.PinRun(&cfg.Config, "walk")
	if w.conn, err = pgx.ConnectConfig(pgtest.Context(t), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.conn.Close(context.Background()) })
	return w
}

func (w *walking) open(s provision.Source, maxEventBytes int) *provision.Walk {
	w.t.Helper()
	s.LedgerSchema = "public"
	walk, err := s.OpenWalk(pgtest.Context(w.t), w.conn, maxEventBytes)
	if err != nil {
		w.t.Fatal(err)
	}
	return walk
}

// walk returns all rows that a walk finds, chunk by chunk.
func (w *walking) walk(walk *provision.Walk, q ledger.WalkQuery) (rows []provision.WalkRow, chunks int) {
	w.t.Helper()
	ctx := pgtest.Context(w.t)
	cursor, err := walk.Begin(ctx, w.conn)
	if err != nil {
		w.t.Fatal(err)
	}
	for q.Cursor = cursor; ; {
		c, err := walk.Read(ctx, w.conn, q)
		if err != nil {
			w.t.Fatal(err)
		}
		chunks++
		if rows = append(rows, c.Rows...); c.End {
			return rows, chunks
		}
		if c.Looked == 0 || string(c.Cursor) == string(q.Cursor) {
			w.t.Fatalf("the walk stands still at %s", q.Cursor)
		}
		q.Cursor = c.Cursor
	}
}

var ownWalk = provision.Source{Table: "public.event_outbox", Columns: decoder.DefaultColumns(), OrderBy: []string{"created_at", "id"}}

// The events of a walk are those of the stream, byte by byte, for all types of columns.
func TestWalkFindsWhatTheStreamCarries(t *testing.T) {
	t.Parallel()
	mapped := decoder.Columns{
		ID: "Id", AggregateType: "kind", AggregateID: "Nr", EventType: "what", EventVersion: "v", Payload: "body", Metadata: "meta", CreatedAt: "at",
		MaxRetries: "tries", TenantID: "tenant", CorrelationID: "kind", CausationID: "",
	}
	for name, test := range map[string]struct {
		setUp         string
		table         provision.Source
		maxEventBytes int
	}{
		"own": {`insert into event_outbox (aggregate_type, aggregate_id, event_type, event_version, payload, metadata, created_at, max_retries, tenant_id, correlation_id, causation_id)
			select 'order', n::text, 'made', n, case when n % 3 = 0 then repeat(' ', n) || '{"a" :  1.0e5, "ä":"\u0000"}' else 'null' end::json, '{"b": [1, 2.50]}',
				'2024-02-29 23:59:59.123456+05:30'::timestamptz + n / 3 * interval '1 us', nullif(n % 3, 0), nullif('t' || n % 2, 't0'), 'c', '' from generate_series(1, 50) n`, ownWalk, 1 << 20},
		"mapped": {
			`create type kind as enum ('ordér', 'cart');
			create table mapped ("Id" varchar primary key, kind kind not null, "Nr" bigint not null, what varchar, v smallint, body bytea, meta text, at timestamp not null, tries bigint, tenant uuid, extra point);
			create index on mapped (at);
			insert into mapped select 'x' || n, 'ordér', n, 'made', n, case when n % 5 > 0 then decode(lpad(to_hex(n), 2 * n, '0'), 'hex') end, ' no json ', '2024-01-01'::timestamp + n % 4 * interval '1 s', null, gen_random_uuid(), '(1,2)'
			from generate_series(1, 40) n`,
			provision.Source{Table: "public.mapped", Columns: mapped, OrderBy: []string{"at"}},
			1 << 20,
		},
		"large": {
			`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, metadata)
			select 'order', n::text, 'made', to_json(repeat('x', n % 4 * 4000)), json_build_object('m', repeat('y', n % 3 * 4000)) from generate_series(1, 24) n`,
			ownWalk, 9000,
		},
		"invalid": {
			`create table odd (id text primary key, aggregate_type text, aggregate_id text, event_type text, payload json, at timestamptz not null default '2024-01-01');
			insert into odd values ('1', 'a', 'a', 'a', '{}'), ('2', '', 'a', 'a', '{}'), ('3', 'a', null, 'a', '{}'), ('', 'a', 'a', 'a', null)`,
			provision.Source{
				Table: "public.odd", OrderBy: []string{"at", "id"},
				Columns: decoder.Columns{ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", EventType: "event_type", Payload: "payload", CreatedAt: "at"},
			},
			1 << 20,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWalking(t)
			parts := strings.SplitAfterN(test.setUp, "insert into", 2)
			w.exec(strings.TrimSuffix(parts[0], "insert into") + "select")
			slot := w.db.Slot(t)
			w.exec("create publication p for table " + test.table.Table)
			w.exec("select pg_create_logical_replication_slot('" + slot + "', 'pgoutput')")
			w.exec("insert into" + parts[1])
			streamed := w.streamed(slot, test.table, test.maxEventBytes)
			for _, q := range []ledger.WalkQuery{{MaxRows: 1000, MaxBytes: 1 << 20}, {MaxRows: 7, MaxBytes: 1 << 20}, {MaxRows: 1000, MaxBytes: 3000}, {MaxRows: 1, MaxBytes: 1}} {
				rows, chunks := w.walk(w.open(test.table, test.maxEventBytes), q)
				got := map[string]provision.WalkRow{}
				for i, row := range rows {
					got[row.Event.ID] = row
					if i > 0 && row.Event.CreatedAt.Before(rows[i-1].Event.CreatedAt) {
						t.Errorf("%+v: %s comes behind %s", q, row.Event.ID, rows[i-1].Event.ID)
					}
				}
				if diff := cmp.Diff(streamed, got, cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) })); diff != "" {
					t.Errorf("%+v: %s", q, diff)
				}
				if len(rows) != len(streamed) || q.MaxRows < 1000 && chunks < len(rows)/q.MaxRows || q.MaxBytes == 3000 && len(rows) > 20 && chunks < 3 {
					t.Errorf("%+v: %d rows of %d in %d chunks", q, len(rows), len(streamed), chunks)
				}
			}
		})
	}
}

// streamed reads from a slot all rows that it has.
func (w *walking) streamed(slot string, s provision.Source, maxEventBytes int) map[string]provision.WalkRow {
	w.t.Helper()
	ctx := pgtest.Context(w.t)
	var oid uint32
	if err := w.conn.QueryRow(ctx, "select $1::text::regclass::oid", s.Table).Scan(&oid); err != nil {
		w.t.Fatal(err)
	}
	stream, _, err := replication.Open(ctx, replication.StreamConfig{DSN: w.db.DSN, Slot: slot, Publication: "p"})
	if err != nil {
		w.t.Fatal(err)
	}
	defer stream.Close()
	d := decoder.New(decoder.Table{OID: oid, Columns: s.Columns}, maxEventBytes)
	all := map[string]provision.WalkRow{}
	for {
		f, err := stream.Next(ctx)
		if err != nil {
			w.t.Fatal(err)
		}
		if f.Keepalive {
			continue
		}
		m, err := d.Decode(f.Data)
		if err != nil {
			w.t.Fatal(err)
		}
		switch m.Kind {
		case decoder.KindInsert:
			all[m.Event.ID] = provision.WalkRow{Event: m.Event, Invalid: m.Invalid, Size: m.Size}
		case decoder.KindCommit:
			if len(all) > 0 {
				return all
			}
		}
	}
}

// A walk leaves out what its filter and the times leave out, ends at what could be seen when it began, and passes rows that have one time.
func TestWalkQuery(t *testing.T) {
	t.Parallel()
	w := newWalking(t)
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at, tenant_id)
		select 'order', n::text, 'made', '{}', '2024-01-01 00:00+00'::timestamptz + n / 30 * interval '1 h', 't' || n % 2 from generate_series(1, 90) n`)
	walk := w.open(ownWalk, 1<<20)
	for name, test := range map[string]struct {
		q    ledger.WalkQuery
		want int
	}{
		"all":         {ledger.WalkQuery{}, 90},
		"since":       {ledger.WalkQuery{Since: time.Date(2024, 1, 1, 2, 0, 0, 0, time.UTC)}, 31},
		"later since": {ledger.WalkQuery{Since: time.Date(2024, 1, 1, 1, 0, 0, 0, time.UTC), Filter: ledger.JobFilter{Since: time.Date(2024, 1, 1, 5, 0, 0, 0, time.FixedZone("", 7200))}}, 1},
		"filter":      {ledger.WalkQuery{Filter: ledger.JobFilter{Where: "tenant_id = 't1' -- theirs"}}, 45},
		"left out":    {ledger.WalkQuery{Declined: ledger.Declined{Filter: ledger.JobFilter{Where: "tenant_id = 't1' -- theirs"}, Before: time.Date(2024, 1, 1, 2, 0, 0, 0, time.UTC)}}, 30 + 31},
		"left, since": {ledger.WalkQuery{Declined: ledger.Declined{Filter: ledger.JobFilter{Since: time.Date(2024, 1, 1, 1, 0, 0, 0, time.UTC), Where: "tenant_id = 't1'"}, Before: time.Date(2024, 1, 1, 2, 0, 0, 0, time.UTC)}}, 15 + 31},
		"since late":  {ledger.WalkQuery{Declined: ledger.Declined{Filter: ledger.JobFilter{Since: time.Date(2024, 1, 1, 5, 0, 0, 0, time.UTC)}, Before: time.Date(2024, 1, 1, 2, 0, 0, 0, time.UTC)}}, 31},
		"null":        {ledger.WalkQuery{Filter: ledger.JobFilter{Where: "correlation_id = 'a'"}}, 0},
	} {
		test.q.MaxRows, test.q.MaxBytes = 8, 1<<20
		if rows, _ := w.walk(walk, test.q); len(rows) != test.want {
			t.Errorf("%s: %d rows, want %d", name, len(rows), test.want)
		}
	}
	cursor, err := walk.Begin(t.Context(), w.conn)
	if err != nil {
		t.Fatal(err)
	}
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'late', 'made', '{}')")
	c, err := walk.Read(t.Context(), w.conn, ledger.WalkQuery{Cursor: cursor, MaxRows: 1000, MaxBytes: 1 << 20})
	if err != nil || len(c.Rows) != 90 || !c.End {
		t.Errorf("%d rows, %v, of a walk that began before the 91st was there", len(c.Rows), err)
	}
	for where, ok := range map[string]bool{"tenant_id = 'a'": true, "tenant = 'a'": false, "tenant_id = ": false, "true; drop table event_outbox": false, "tenant_id": false} {
		if err := walk.CheckFilter(t.Context(), w.conn, ledger.JobFilter{Where: where}); (err == nil) != ok {
			t.Errorf("filter %q: %v", where, err)
		}
	}
	other := ownWalk
	other.OrderBy = []string{"id"}
	if _, err := w.open(other, 1<<20).Read(t.Context(), w.conn, ledger.WalkQuery{Cursor: c.Cursor, MaxRows: 1}); err == nil || !strings.Contains(err.Error(), "source.order_by has changed") {
		t.Errorf("a cursor of another order: %v", err)
	}
}

// What is missing is what the ledger does not know, as the three conditions say.
func TestMissing(t *testing.T) {
	t.Parallel()
	w := newWalking(t)
	var ids []string
	var want []int
	known := func() string {
		ids = append(ids, fmt.Sprintf("00000000-0000-7000-8000-%012d", len(ids)))
		return ids[len(ids)-1]
	}
	missing := func() string {
		want = append(want, len(ids))
		return known()
	}
	logged := func(id string, processor int, status, lsn string, index int) {
		w.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			values ($1, $2, 1, $3, now(), $4, $5, 1)`, id, processor, status, lsn, index)
	}
	parked := func(id string, processor int, status, lsn string, index int) {
		w.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event) values ($2, $4, $5, $1, 1, $3, '{}')`, id, processor, status, lsn, index)
	}
	missing() // nothing is known
	parked(known(), 1, "parked", "0/900", 1)
	parked(known(), 1, "dead", "0/900", -7)
	parked(missing(), 2, "parked", "0/900", 2)
	for _, status := range []string{"delivered", "dead", "discarded"} {
		logged(known(), 1, status, "0/900", 3)
		logged(known(), 1, status, "0/100", -3)
		logged(missing(), 2, status, "0/900", 3)
	}
	logged(missing(), 1, "failed", "0/900", 3)
	// Streamed at or before the base, which is (0/500, 4).
	logged(known(), 2, "delivered", "0/500", 4)
	logged(known(), 0, "discarded", "0/4FF", 9)
	parked(known(), 2, "parked", "0/500", 0)
	logged(missing(), 2, "delivered", "0/500", 5)
	logged(missing(), 0, "discarded", "0/501", 0)
	parked(missing(), 2, "parked", "0/500", 6)
	logged(missing(), 2, "delivered", "0/400", -1) // of a job: it was not streamed

	q := ledger.MissingQuery{Processor: 1, Base: checkpoint.Position{LSN: 0x500, Index: 4}, IDs: ids}
	got, err := ledger.Schema("public").Missing(t.Context(), w.conn, q)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	q.Base = checkpoint.Position{}
	before, err := ledger.Schema("public").Missing(t.Context(), w.conn, q)
	if err != nil || len(before) != len(want)+3 {
		t.Errorf("%v, without a base %v are missing, with one %v", err, before, want)
	}
}

// A job with a base begins an hour before the sink's first event, or at the newest day of the log that was dropped, whichever is later.
func TestOwedSince(t *testing.T) {
	t.Parallel()
	w := newWalking(t)
	w.exec("insert into outbox_processors (id, connector, processor_name, processor_type, since) values (1, 'c', 'a', 'x', '-infinity'), (2, 'c', 'b', 'x', now() - interval '3 days')")
	check := func(processor int32, want time.Duration) {
		t.Helper()
		got, err := ledger.Schema("public").OwedSince(t.Context(), w.conn, processor)
		age := time.Since(got)
		if got.IsZero() {
			age = 0
		}
		if err != nil || (age-want).Abs() > 30*time.Minute {
			t.Errorf("processor %d: %v, %v ago, want %v", processor, err, age, want)
		}
	}
	check(1, 0)
	check(2, 73*time.Hour)
	w.exec("insert into outbox_retention (id, log_dropped_until) values (1, now() - interval '6 days') on conflict (id) do update set log_dropped_until = excluded.log_dropped_until")
	check(1, 7*24*time.Hour)
	check(2, 73*time.Hour)
}

// A job waits for transactions that had begun when the slot was made.
func TestXminReached(t *testing.T) {
	t.Parallel()
	w := newWalking(t)
	other := w.db.Conn(t)
	tx, err := other.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var xmax uint64
	if err := tx.QueryRow(t.Context(), "select pg_current_xact_id()::text::bigint + 1").Scan(&xmax); err != nil {
		t.Fatal(err)
	}
	reached := func() bool {
		t.Helper()
		ok, err := ledger.Schema("public").XminReached(t.Context(), w.conn, xmax)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if reached() {
		t.Error("reached while the transaction runs")
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !reached(); { // other tests use the server, too
		if time.Now().After(deadline) {
			t.Fatal("not reached after its end")
		}
		w.exec("select pg_sleep(0.02)")
	}
}
