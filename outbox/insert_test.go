package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/lib/pq"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// producer inserts events in one transaction.
type producer func(t *testing.T, inTransaction func(insert func(...outbox.Event) error) error) error

// producers are the ways in which services do it.
func producers(db *pgtest.Database) map[string]producer {
	return map[string]producer{
		"pgx":                  throughPgx(db, pgx.QueryExecModeCacheStatement),
		"pgx, no statements":   throughPgx(db, pgx.QueryExecModeExec), // as with a pooler
		"pgx, simple protocol": throughPgx(db, pgx.QueryExecModeSimpleProtocol),
		"pgx/stdlib":           throughSQL(db, "pgx"),
		"lib/pq":               throughSQL(db, "postgres"),
	}
}

func throughPgx(db *pgtest.Database, mode pgx.QueryExecMode) producer {
	return func(t *testing.T, work func(func(...outbox.Event) error) error) error {
		config, err := pgx.ParseConfig(db.DSN)
		if err != nil {
			t.Fatal(err)
		}
		config.DefaultQueryExecMode = mode
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			return work(func(events ...outbox.Event) error { return outbox.Insert(t.Context(), tx, events...) })
		})
	}
}

func throughSQL(db *pgtest.Database, driver string) producer {
	return func(t *testing.T, work func(func(...outbox.Event) error) error) error {
		pool := openSQL(t, db, driver)
		tx, err := pool.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
		err = work(func(events ...outbox.Event) error { return outbox.InsertSQL(t.Context(), tx, events...) })
		if err != nil {
			return err
		}
		return tx.Commit()
	}
}

func openSQL(t *testing.T, db *pgtest.Database, driver string) *sql.DB {
	t.Helper()
	pool, err := sql.Open(driver, db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	return pool
}

// odd are payloads that a parser and a printer would not give back as they were.
var odd = []string{
	" {\"a\" :\t1,\r\n \"a\":2 } ", `"\u0000 \ud800 \/"`, `[9007199254740993, 1e400, -0.0, 0.10000000000000000000000000000000000001]`,
	`{"z":"🙂ü","a":"\\\"","":"'$1"}`, "null", strings.Repeat("[", 10000) + strings.Repeat("]", 10000),
	`"` + strings.Repeat(`\\`, 100_000) + `"`,
}

// placed are n events that are told apart by their AggregateID.
func placed(n int) []outbox.Event {
	events := make([]outbox.Event, n)
	for i := range events {
		events[i] = outbox.Event{
			AggregateType: "order", AggregateID: fmt.Sprint(i), EventType: "order.placed", Payload: fmt.Appendf(nil, `{"order": %d}`, i),
		}
	}
	return events
}

// What comes out of the stream is what was inserted, in that order, whatever inserts it.
func TestInsertedIsStreamed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	stream := openStream(t, db)
	for name, produce := range producers(db) {
		before := time.Now().Add(-time.Minute)
		events := placed(len(odd))
		for i := range events {
			events[i].Payload = []byte(odd[i])
		}
		events = append(events, outbox.Event{
			ID: "01970000-0000-7000-8000-00000000000A", AggregateType: `Be"st\el,lung`, AggregateID: "{日本}\n", EventType: "NULL",
			EventVersion: 32768, Payload: []byte("1"), Metadata: []byte(`{"b":"\u00e9\ud83d\ude42\\","a":1e400,"a":{"x":[null]}}`),
			CreatedAt:  time.Date(2026, 11, 24, 3, 58, 21, 123456789, time.FixedZone("", 5*3600+45*60)),
			MaxRetries: new(0), TenantID: "NULL", CorrelationID: " ", CausationID: outbox.NewID(),
		}, outbox.Event{
			AggregateType: "a", AggregateID: "b", EventType: "c", Payload: []byte("{}"), CreatedAt: time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC),
		})
		// Several calls in one transaction.
		err := produce(t, func(insert func(...outbox.Event) error) error {
			return errors.Join(insert(), insert(events[:2]...), insert(events[2]), insert(events[3:]...))
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := stream.read()
		if len(got) != len(events) {
			t.Fatalf("%s: %d events in the stream, want %d", name, len(got), len(events))
		}
		for i, e := range got {
			want := expected(events[i], e)
			if events[i].ID == "" && (e.ID <= got[max(0, i-1)].ID && i > 0) {
				t.Errorf("%s: the id of event %d is %s, that before it %s", name, i, e.ID, got[i-1].ID)
			}
			if events[i].CreatedAt.IsZero() && (e.CreatedAt.Before(before) || e.CreatedAt.After(time.Now().Add(time.Minute))) {
				t.Errorf("%s: event %d was created at %v", name, i, e.CreatedAt)
			}
			if show(e) != show(want) {
				t.Errorf("%s:\ngot  %.500s\nwant %.500s", name, show(e), show(want))
			}
		}
		if _, err := db.Conn(t).Exec(t.Context(), "delete from event_outbox"); err != nil { // the id is used again
			t.Fatal(err)
		}
	}
}

// expected is what becomes of an event in the table; what the database chose is taken from got.
func expected(e outbox.Event, got outbox.Event) outbox.Event {
	e.EventVersion = max(1, e.EventVersion)
	if e.ID == "" {
		e.ID = got.ID
	}
	e.ID = strings.ToLower(e.ID)
	if e.CreatedAt.IsZero() {
		e.CreatedAt = got.CreatedAt
	}
	e.CreatedAt = e.CreatedAt.UTC().Truncate(time.Microsecond)
	if e.Metadata == nil {
		e.Metadata = []byte("{}")
	} else {
		e.Metadata = []byte(`{"a": {"x": [null]}, "b": "é🙂\\"}`)
	}
	return e
}

func show(e outbox.Event) string {
	retries := "nil"
	if e.MaxRetries != nil {
		retries = fmt.Sprint(*e.MaxRetries)
		e.MaxRetries = nil
	}
	payload, metadata := e.Payload, e.Metadata
	e.Payload, e.Metadata = nil, nil
	return fmt.Sprintf("%+v retries %s metadata %s payload %q", e, retries, metadata, payload)
}

// Ten thousand events take several statements, among them ends by number and by bytes; large ones have one each.
func TestInsertMany(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	stream := openStream(t, db)
	all := producers(db)
	for _, name := range []string{"pgx", "pgx/stdlib", "lib/pq"} {
		produce := all[name]
		events := placed(10_000)
		for i := 2000; i < 2500; i++ {
			events[i].Payload = fmt.Appendf(nil, `"%s"`, strings.Repeat("x", 3000))
		}
		for i := 4000; i < 4002; i++ {
			events[i].Payload = fmt.Appendf(nil, `"%s"`, strings.Repeat(`\"`, 1<<19))
		}
		err := produce(t, func(insert func(...outbox.Event) error) error { return insert(events...) })
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := stream.read()
		if len(got) != len(events) {
			t.Fatalf("%s: %d events in the stream", name, len(got))
		}
		for i, e := range got {
			if e.AggregateID != events[i].AggregateID || string(e.Payload) != string(events[i].Payload) {
				t.Fatalf("%s: event %d is %.300s", name, i, show(e))
			}
		}
		if !slices.IsSortedFunc(got, func(a, b outbox.Event) int { return strings.Compare(a.ID, b.ID) }) {
			t.Errorf("%s: the ids are not in order", name)
		}
		if !slices.IsSortedFunc(got, func(a, b outbox.Event) int { return a.CreatedAt.Compare(b.CreatedAt) }) {
			t.Errorf("%s: the times are not in order", name)
		}
	}
	var sorted bool
	err := db.Conn(t).QueryRow(t.Context(), `select array_agg(id order by id) = array_agg(id order by id::text collate "C") from event_outbox`).Scan(&sorted)
	if err != nil || !sorted {
		t.Errorf("the ids are in another order as text: %v", err)
	}
}

func TestInsertLarge(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn := db.Conn(t)
	e := placed(1)[0]
	// 16 MiB, of bytes that are all escaped. (The 256 MiB that are allowed take 15 s.)
	e.Payload = fmt.Appendf(nil, `"%s"`, strings.Repeat(`\\`, 8<<20-1))
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return outbox.Insert(t.Context(), tx, e) })
	if err != nil {
		t.Fatal(err)
	}
	var same bool
	err = conn.QueryRow(t.Context(), `select payload::text = '"' || repeat('\', 2 * ((8 << 20) - 1)) || '"' from event_outbox`).Scan(&same)
	if err != nil || !same {
		t.Errorf("the payload has changed: %v", err)
	}
}

// Nothing of a call is inserted if one of its events is invalid, nothing of a transaction that is rolled back, and
// nothing behind a savepoint that is.
func TestInsertIsPartOfTheTransaction(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for name, produce := range producers(db) {
		stop := errors.New("stop")
		err := produce(t, func(insert func(...outbox.Event) error) error { return errors.Join(insert(placed(3)...), stop) })
		if !errors.Is(err, stop) {
			t.Fatalf("%s: %v", name, err)
		}
		err = produce(t, func(insert func(...outbox.Event) error) error {
			events := placed(2000)
			events[1999].Payload = []byte("secret")
			if err := insert(events...); err == nil || err.Error() != "events[1999].Payload: is not JSON" {
				t.Errorf("%s: %v", name, err)
			}
			return nil // commits
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	expectAggregates(t, db, "")
}

func TestInsertWithSavepoints(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	events := placed(8)
	duplicate := events[7]
	duplicate.ID = outbox.NewID()

	tx, err := db.Conn(t).Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	outer := outbox.Insert(ctx, tx, events[0], duplicate)
	undone := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		return errors.Join(outbox.Insert(ctx, tx, events[1]), outbox.Insert(ctx, tx, duplicate))
	})
	if e, ok := errors.AsType[*pgconn.PgError](undone); !ok || e.Code != "23505" || strings.Contains(undone.Error(), duplicate.ID) {
		t.Errorf("the same id again: %v", undone)
	}
	kept := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return outbox.Insert(ctx, tx, events[2]) })
	if err := errors.Join(outer, kept, outbox.Insert(ctx, tx, events[3]), tx.Commit(ctx)); err != nil {
		t.Fatal(err)
	}
	expectAggregates(t, db, "0 7 2 3")

	sqlTx, err := openSQL(t, db, "postgres").BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	savepoint := func(statement string) error { _, err := sqlTx.ExecContext(ctx, statement); return err }
	err = errors.Join(outbox.InsertSQL(ctx, sqlTx, events[4]), savepoint("savepoint a"), outbox.InsertSQL(ctx, sqlTx, events[5]))
	undone = outbox.InsertSQL(ctx, sqlTx, duplicate)
	if e, ok := errors.AsType[*pq.Error](undone); !ok || e.Code != "23505" {
		t.Errorf("the same id again: %v", undone)
	}
	err = errors.Join(err, savepoint("rollback to a"), outbox.InsertSQL(ctx, sqlTx, events[6]), sqlTx.Commit())
	if err != nil {
		t.Fatal(err)
	}
	expectAggregates(t, db, "0 7 2 3 4 6")
}

// expectAggregates compares the ids of the aggregates, in the order in which they were written.
func expectAggregates(t *testing.T, db *pgtest.Database, want string) {
	t.Helper()
	var got string
	err := db.Conn(t).QueryRow(t.Context(), "select coalesce(string_agg(aggregate_id, ' ' order by ctid), '') from event_outbox").Scan(&got)
	if err != nil || got != want {
		t.Errorf("the table holds %q, want %q (%v)", got, want, err)
	}
}

// The table is the one that the search_path finds.
func TestInsertFollowsTheSearchPath(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn := db.Conn(t)
	_, err := conn.Exec(t.Context(), `create schema "my Orders"; create table "my Orders".event_outbox (like event_outbox including all);
		set search_path = "my Orders", public; set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kathmandu'`)
	if err != nil {
		t.Fatal(err)
	}
	e := placed(1)[0]
	e.CreatedAt = time.Date(2026, 2, 1, 3, 4, 5, 6000, time.UTC)
	if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return outbox.Insert(t.Context(), tx, e) }); err != nil {
		t.Fatal(err)
	}
	var at time.Time
	if err := conn.QueryRow(t.Context(), `select created_at from "my Orders".event_outbox`).Scan(&at); err != nil || !at.Equal(e.CreatedAt) {
		t.Errorf("created at %v: %v", at, err)
	}
	expectAggregates(t, db, "")
}

func TestInsertWithoutTable(t *testing.T) {
	t.Parallel()
	db := pgtest.Unmigrated(t)
	for name, produce := range producers(db) {
		err := produce(t, func(insert func(...outbox.Event) error) error { return insert(placed(1)...) })
		if err == nil || !strings.HasPrefix(err.Error(), "insert events: ") || !strings.Contains(err.Error(), `"event_outbox" does not exist`) ||
			!strings.HasSuffix(err.Error(), `run "outbox-cdc init"`) {
			t.Errorf("%s: %v", name, err)
		}
		pgError, isPgx := errors.AsType[*pgconn.PgError](err)
		pqError, isPq := errors.AsType[*pq.Error](err)
		if !(isPgx && pgError.Code == "42P01" || isPq && pqError.Code == "42P01") {
			t.Errorf("%s: %T has no SQLSTATE", name, err)
		}
	}
}

func TestInsertAfterCancel(t *testing.T) {
	t.Parallel()
	tx, err := pgtest.New(t).Conn(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := outbox.Insert(ctx, tx, placed(1)...); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Ids grow in every goroutine, and no two are the same.
func TestNewID(t *testing.T) {
	t.Parallel()
	const goroutines, each = 8, 5000
	ids := make([][]string, goroutines)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			for range each {
				ids[i] = append(ids[i], outbox.NewID())
			}
		})
	}
	wg.Wait()
	seen := make(map[string]bool)
	for _, list := range ids {
		for i, id := range list {
			if len(id) != 36 || id[14] != '7' || id != strings.ToLower(id) {
				t.Fatalf("%s is no version 7 uuid", id)
			}
			if i > 0 && id <= list[i-1] {
				t.Fatalf("%s comes after %s", id, list[i-1])
			}
			seen[id] = true
		}
	}
	if len(seen) != goroutines*each {
		t.Errorf("%d ids are different, want %d", len(seen), goroutines*each)
	}
}
