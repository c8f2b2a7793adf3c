package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// drivers are those that services use.
var drivers = []string{"pgx", "postgres"}

// eachDriver runs test for all of them side by side.
func eachDriver(t *testing.T, test func(t *testing.T, driver string)) {
	t.Helper()
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			test(t, driver)
		})
	}
}

// users makes a database with a table of a service, whose pairs are checked when a transaction commits.
func users(t testing.TB) *pgtest.Database {
	t.Helper()
	db := pgtest.New(t)
	_, err := db.Conn(t).Exec(t.Context(), `create table users (id text primary key, name text not null, n int not null default 0);
		create table pairs (id int unique deferrable initially deferred)`)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func insertUser(tx *sql.Tx, id string) error {
	_, err := tx.Exec("insert into users (id, name) values ($1, $1)", id)
	return err
}

// expect compares one text that a query gives.
func expect(t *testing.T, db *pgtest.Database, query, want string) {
	t.Helper()
	var got *string
	if err := db.Conn(t).QueryRow(t.Context(), query).Scan(&got); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	if got == nil {
		got = new(string)
	}
	if *got != want {
		t.Errorf("%s: got %q, want %q", query, *got, want)
	}
}

const (
	userIDs    = "select string_agg(id, ' ' order by id) from users"
	aggregates = "select string_agg(aggregate_id, ' ' order by ctid) from event_outbox"
)

func registered(id string) outbox.Event {
	return outbox.Event{AggregateType: "user", AggregateID: id, EventType: "user.registered", Payload: []byte(`{}`)}
}

func operation(id string) outbox.EventProducingOperation {
	return outbox.EventProducingOperation{
		Operation: func(tx *sql.Tx) error { return insertUser(tx, id) },
		Events:    outbox.DomainEvents(registered(id)),
	}
}

func sqlState(err error) string {
	if e, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok {
		return e.SQLState()
	}
	return ""
}

func TestExecuteWithOutbox(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		w := outbox.NewWrapper(openSQL(t, db, driver))
		ctx, stop := t.Context(), errors.New("stop")

		o := operation("1")
		o.Events = append(o.Events, outbox.DomainEvents(registered("1b"), registered("1c"))...)
		if err := w.ExecuteWithOutbox(ctx, o); err != nil {
			t.Fatal(err)
		}
		nothing := []struct {
			name string
			op   outbox.EventProducingOperation
			want func(error) bool
		}{
			{"the operation fails", outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error { return errors.Join(insertUser(tx, "2"), stop) }, Events: outbox.DomainEvents(registered("2")),
			}, func(err error) bool { return errors.Is(err, stop) }},
			{"a statement fails", outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error { return errors.Join(insertUser(tx, "3"), insertUser(tx, "1")) }, Events: outbox.DomainEvents(registered("3")),
			}, func(err error) bool { return sqlState(err) == "23505" }},
			{"and the operation says nothing", outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error { _, _ = insertUser(tx, "4"), insertUser(tx, "1"); return nil }, Events: outbox.DomainEvents(registered("4")),
			}, func(err error) bool {
				return sqlState(err) == "25P02" && strings.HasPrefix(err.Error(), "insert events: ")
			}},
			{"nor has it events", outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error { _, _ = insertUser(tx, "5"), insertUser(tx, "1"); return nil },
			}, func(err error) bool { return strings.HasPrefix(err.Error(), "commit: ") }},
			{"an event is invalid", outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error { return insertUser(tx, "6") }, Events: outbox.DomainEvents(registered("6"), outbox.Event{Payload: []byte("{}")}),
			}, func(err error) bool { return strings.HasPrefix(err.Error(), "events[1].AggregateType: is empty\n") }},
			{"an event is nil", outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error { return insertUser(tx, "7") }, Events: []outbox.DomainEvent{nil},
			}, func(err error) bool { return err.Error() == "events[0] is nil" }},
			{"the commit fails", outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error {
					_, err := tx.Exec("insert into pairs values (1), (1)")
					return errors.Join(err, insertUser(tx, "8"))
				}, Events: outbox.DomainEvents(registered("8")),
			}, func(err error) bool { return strings.HasPrefix(err.Error(), "commit: ") && sqlState(err) == "23505" }},
			{"the operation rolls back", outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error { return errors.Join(insertUser(tx, "9"), tx.Rollback()) }, Events: outbox.DomainEvents(registered("9")),
			}, func(err error) bool { return errors.Is(err, sql.ErrTxDone) && !errors.Is(err, context.Canceled) }},
		}
		for _, test := range nothing {
			if err := w.ExecuteWithOutbox(ctx, test.op); err == nil || !test.want(err) {
				t.Errorf("%s: %v", test.name, err)
			}
		}
		expect(t, db, userIDs, "1")
		expect(t, db, aggregates, "1 1b 1c")

		o = operation("10")
		o.Events = nil
		if err := w.ExecuteWithOutbox(ctx, o); err != nil {
			t.Errorf("without events: %v", err)
		}
		if err := w.ExecuteWithOutbox(ctx, outbox.EventProducingOperation{Events: outbox.DomainEvents(registered("11"))}); err != nil {
			t.Errorf("without an operation: %v", err)
		}
		if err := w.ExecuteWithOutbox(ctx, outbox.EventProducingOperation{}); err != nil {
			t.Errorf("without both: %v", err)
		}
		expect(t, db, userIDs, "1 10")
		expect(t, db, aggregates, "1 1b 1c 11")
	})
}

// A transaction whose context ends is rolled back, wherever it is, and the error says why.
func TestExecuteAfterCancel(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		w := outbox.NewWrapper(openSQL(t, db, driver))
		w.Retries = 3
		for _, events := range [][]outbox.DomainEvent{nil, outbox.DomainEvents(registered("1"))} {
			cause := errors.New("the client has gone")
			ctx, cancel := context.WithCancelCause(t.Context())
			runs := 0
			err := w.ExecuteWithOutbox(ctx, outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error {
					runs++
					err := insertUser(tx, "1")
					cancel(cause)
					return err
				}, Events: events,
			})
			if !errors.Is(err, context.Canceled) && !errors.Is(err, cause) || runs != 1 {
				t.Errorf("%d runs: %v", runs, err)
			}
			ctx, cancel = context.WithCancelCause(t.Context())
			err = w.ExecuteWithOutbox(ctx, outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error {
					cancel(cause)
					var err error
					for err == nil || !errors.Is(err, sql.ErrTxDone) { // until database/sql has rolled back
						_, err = tx.Exec("select 1")
					}
					return err
				}, Events: events,
			})
			if !errors.Is(err, cause) || !errors.Is(err, sql.ErrTxDone) {
				t.Errorf("of an operation that goes on: %v", err)
			}
			if err := w.ExecuteWithOutbox(ctx, operation("2")); !errors.Is(err, context.Canceled) {
				t.Errorf("of a context that is over: %v", err)
			}
		}
		expect(t, db, userIDs, "")
		expect(t, db, aggregates, "")
	})
}

// A panic goes on, and leaves neither rows nor a transaction nor a connection behind.
func TestExecutePanics(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		pool := openSQL(t, db, driver)
		pool.SetMaxOpenConns(1)
		w := outbox.NewWrapper(pool)
		func() {
			defer func() {
				if r := recover(); r != "oh" {
					t.Errorf("recovered %v", r)
				}
			}()
			_ = w.ExecuteWithOutbox(t.Context(), outbox.EventProducingOperation{
				Operation: func(tx *sql.Tx) error { _ = insertUser(tx, "1"); panic("oh") }, Events: outbox.DomainEvents(registered("1")),
			})
		}()
		if err := w.ExecuteWithOutbox(t.Context(), operation("2")); err != nil { // on the only connection
			t.Fatal(err)
		}
		expect(t, db, userIDs, "2")
		expect(t, db, aggregates, "2")
	})
}

func TestExecuteBatch(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		w := outbox.NewWrapper(openSQL(t, db, driver))
		ctx := t.Context()
		err := w.ExecuteBatch(ctx, operation("1"), outbox.EventProducingOperation{Events: outbox.DomainEvents(registered("1b"))}, operation("2"))
		if err != nil {
			t.Fatal(err)
		}
		// The last operation fails: it takes the others with it.
		err = w.ExecuteBatch(ctx, outbox.CombineOperations(operation("3"), operation("4"), operation("1"), operation("5")))
		if sqlState(err) != "23505" || !strings.HasPrefix(err.Error(), "operations[2]: ") {
			t.Errorf("got %v", err)
		}
		invalid := operation("6")
		invalid.Events[0] = outbox.DomainEvents(outbox.Event{})[0]
		if err := w.ExecuteBatch(ctx, operation("7"), invalid); err == nil || !strings.HasPrefix(err.Error(), "events[1].") {
			t.Errorf("got %v", err)
		}
		if err := w.ExecuteBatch(ctx); err != nil {
			t.Errorf("nothing to do: %v", err)
		}
		expect(t, db, userIDs, "1 2")
		expect(t, db, aggregates, "1 1b 2")
	})
}

// A transaction that loses against a concurrent one is repeated only if that is asked for.
func TestSerializationRetry(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		pool := openSQL(t, db, driver)
		w := outbox.NewWrapper(pool)
		w.TxOptions = &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
		ctx := t.Context()
		if _, err := pool.ExecContext(ctx, "insert into users values ('1', 'x', 0)"); err != nil {
			t.Fatal(err)
		}
		runs, conflicts := 0, 0
		raise := outbox.EventProducingOperation{
			Operation: func(tx *sql.Tx) error {
				runs++
				var n int
				if err := tx.QueryRowContext(ctx, "select n from users").Scan(&n); err != nil {
					return err
				}
				if runs <= conflicts {
					if _, err := pool.ExecContext(ctx, "update users set n = n + 10"); err != nil {
						return err
					}
				}
				_, err := tx.ExecContext(ctx, "update users set n = $1", n+1)
				return err
			},
			Events: outbox.DomainEvents(registered("1")),
		}
		for _, test := range []struct{ retries, conflicts, runs int }{{0, 1, 1}, {2, 3, 3}, {2, 2, 3}, {2, 0, 1}} {
			w.Retries, runs, conflicts = test.retries, 0, test.conflicts
			err := w.ExecuteWithOutbox(ctx, raise)
			if runs != test.runs || (err != nil) != (test.conflicts > test.retries) || err != nil && sqlState(err) != "40001" {
				t.Errorf("%+v: %d runs, %v", test, runs, err)
			}
		}
		expect(t, db, "select n::text from users", "62") // 10 by each conflict, 1 by each of two transactions
		expect(t, db, aggregates, "1 1")
	})
}

type serializationFailure string

func (s serializationFailure) Error() string    { return "of the test" }
func (s serializationFailure) SQLState() string { return string(s) }

func TestWhatIsRetried(t *testing.T) {
	t.Parallel()
	w := outbox.NewWrapper(openSQL(t, users(t), "pgx"))
	w.Retries = 1
	for _, test := range []struct {
		err  error
		runs int
	}{
		{serializationFailure("40001"), 2},
		{fmt.Errorf("wrapped: %w", serializationFailure("40P01")), 2},
		{serializationFailure("23505"), 1},
		{errors.New("40001"), 1},
	} {
		runs := 0
		err := w.ExecuteWithOutbox(t.Context(), outbox.EventProducingOperation{Operation: func(*sql.Tx) error { runs++; return test.err }})
		if err != test.err || runs != test.runs { //nolint:errorlint // as it was
			t.Errorf("%v: %d runs, got %v", test.err, runs, err)
		}
	}

	w.Retries = 1 << 30
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	err := w.ExecuteWithOutbox(ctx, outbox.EventProducingOperation{Operation: func(*sql.Tx) error {
		if runs++; runs == 3 {
			cancel()
		}
		return serializationFailure("40001")
	}})
	if !errors.Is(err, context.Canceled) || sqlState(err) != "40001" || runs != 3 {
		t.Errorf("%d runs: %v", runs, err)
	}
}

func TestWrapperIsConcurrent(t *testing.T) {
	t.Parallel()
	db := users(t)
	w := outbox.NewWrapper(openSQL(t, db, "pgx"))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				id := fmt.Sprintf("%d-%d", i, j)
				if err := w.ExecuteWithOutbox(t.Context(), operation(id)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	expect(t, db, "select count(*)::text from users join event_outbox on aggregate_id = users.id", "40")
}
