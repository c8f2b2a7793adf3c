package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

const sagaEvents = "select string_agg(concat_ws(' ', aggregate_id, event_type, correlation_id, causation_id), E'\n' order by ctid) from event_outbox"

// sagaEvent makes an event of type t with an id of its own.
func sagaEvent(t string) outbox.DomainEvent {
	return outbox.DomainEvents(outbox.Event{
		ID: outbox.NewID(), AggregateType: "payment", AggregateID: "p", EventType: t, Payload: []byte("{}"),
	})[0]
}

func list(events ...outbox.DomainEvent) []outbox.DomainEvent { return events }

func TestSagaStep(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(openSQL(t, db, driver)))
		ctx, stop := t.Context(), errors.New("stop")

		err := saga.ExecuteSagaStep(ctx, "s1", func(tx *sql.Tx) error { return insertUser(tx, "1") }, list(sagaEvent("undo")), list(sagaEvent("done"), sagaEvent("told")))
		if err != nil {
			t.Fatal(err)
		}
		undo := list(sagaEvent("undo"), sagaEvent("tell"))
		for range 2 { // the second time, nothing is written
			err = saga.ExecuteSagaStep(ctx, "s2", func(tx *sql.Tx) error { return errors.Join(insertUser(tx, "2"), stop) }, undo, list(sagaEvent("done")))
			if !errors.Is(err, stop) || strings.Contains(err.Error(), "compensation") {
				t.Errorf("got %v", err)
			}
		}
		err = saga.ExecuteSagaStep(ctx, "s3", func(*sql.Tx) error { return stop }, nil, nil)
		if !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
		expect(t, db, userIDs, "1")
		expect(t, db, sagaEvents, "p done s1 s1\np told s1 s1\np undo s2 s2\np tell s2 s2")
	})
}

// Whatever keeps the step's transaction from being committed, the compensation is written, and the error is the cause.
func TestSagaStepFails(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(openSQL(t, db, driver)))
		invalid := outbox.DomainEvents(outbox.Event{ID: "x", AggregateType: "a"})[0]
		taken := sagaEvent("taken")
		if err := saga.ExecuteSagaStep(t.Context(), "s", func(*sql.Tx) error { return nil }, nil, list(taken)); err != nil {
			t.Fatal(err)
		}
		want := "p taken s s"
		succeeds := func(context.CancelFunc, *sql.Tx) error { return nil }
		for i, test := range []struct {
			name    string
			step    func(context.CancelFunc, *sql.Tx) error
			results []outbox.DomainEvent
			want    func(error) bool
		}{
			{
				"statement",
				func(_ context.CancelFunc, tx *sql.Tx) error { _, err := tx.Exec("select 1/0"); return err },
				nil,
				func(err error) bool { return sqlState(err) == "22012" },
			},
			{
				"commit",
				func(_ context.CancelFunc, tx *sql.Tx) error {
					_, err := tx.Exec("insert into pairs values (1), (1)")
					return err
				},
				list(sagaEvent("done")),
				func(err error) bool { return sqlState(err) == "23505" && strings.HasPrefix(err.Error(), "commit: ") },
			},
			{
				"context",
				func(cancel context.CancelFunc, _ *sql.Tx) error { cancel(); return nil },
				list(sagaEvent("done")),
				func(err error) bool { return errors.Is(err, context.Canceled) },
			},
			{
				"invalid result", succeeds, list(invalid),
				func(err error) bool { return strings.HasPrefix(err.Error(), "events[0].ID: ") },
			},
			{
				"nil result", succeeds, list(nil),
				func(err error) bool { return err.Error() == "events[0] is nil" },
			},
			{
				"an id of another event", succeeds, list(sagaEvent("done"), taken),
				func(err error) bool { return sqlState(err) == "23505" },
			},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			err := saga.ExecuteSagaStep(ctx, "s", func(tx *sql.Tx) error {
				return errors.Join(insertUser(tx, fmt.Sprint(i)), test.step(cancel, tx))
			}, list(sagaEvent("undo-"+test.name)), test.results)
			cancel()
			if err == nil || !test.want(err) {
				t.Errorf("%s: %v", test.name, err)
			}
			want += fmt.Sprintf("\np undo-%s s s", test.name)
		}
		expect(t, db, userIDs, "")
		expect(t, db, sagaEvents, want)
	})
}

func TestSagaStepPanics(t *testing.T) {
	t.Parallel()
	db := users(t)
	saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(openSQL(t, db, "pgx")))
	func() {
		defer func() {
			if r := recover(); r != "oh" {
				t.Errorf("recovered %v", r)
			}
		}()
		_ = saga.ExecuteSagaStep(t.Context(), "s", func(tx *sql.Tx) error { _ = insertUser(tx, "1"); panic("oh") }, list(sagaEvent("undo")), nil)
	}()
	expect(t, db, userIDs, "")
	expect(t, db, sagaEvents, "p undo s s")
}

// A name tells the steps of a saga apart, whatever the ids of the events, and the same name in another saga too.
func TestNamedSagaSteps(t *testing.T) {
	t.Parallel()
	db := users(t)
	saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(openSQL(t, db, "pgx")))
	ctx, stop := outbox.WithSagaStep(t.Context(), "charge"), errors.New("stop")
	without := func(t string) []outbox.DomainEvent {
		return outbox.DomainEvents(outbox.Event{AggregateType: "payment", AggregateID: "p", EventType: t, Payload: []byte("{}")})
	}
	fails := func(ctx context.Context, id string, compensation ...outbox.DomainEvent) {
		t.Helper()
		if err := saga.ExecuteSagaStep(ctx, id, func(*sql.Tx) error { return stop }, compensation, nil); !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
	}
	fails(ctx, "s", sagaEvent("undo"), without("tell")[0])
	fails(ctx, "s", sagaEvent("undo again"), without("tell again")[0])
	fails(ctx, "s2", sagaEvent("undo"))
	fails(outbox.WithSagaStep(ctx, "ship"), "s", sagaEvent("undo"))
	fails(outbox.WithCorrelationID(outbox.WithCausationID(ctx, "cause"), "request"), "s3", sagaEvent("undo"))
	want := "p undo s s/charge\np tell s s/charge\np undo s2 s2/charge\np undo s s/ship\np undo s3 cause"
	expect(t, db, sagaEvents, want)

	// A step that was done is not done again, and its events without ids are known again.
	runs := 0
	for range 2 {
		err := saga.ExecuteSagaStep(ctx, "s4", func(tx *sql.Tx) error { runs++; return insertUser(tx, fmt.Sprint(runs)) }, without("undo"), without("done"))
		if err != nil {
			t.Error(err)
		}
	}
	expect(t, db, userIDs, "1")
	expect(t, db, sagaEvents, want+"\np done s4 s4/charge")
}

// A step with a name that was committed is not compensated when it is called again, as after a crash, whatever it does then
// and whatever ids its events are made with.
func TestCommittedSagaStepIsCalledAgain(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		// Of a table of the user's own: it fills in nothing, and wants what an event has.
		_, err := db.Conn(t).Exec(t.Context(), `alter table event_outbox alter event_version drop default, alter metadata drop default,
			alter created_at drop default, add check (aggregate_type <> '' and aggregate_id <> '' and event_type <> '')`)
		if err != nil {
			t.Fatal(err)
		}
		saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(openSQL(t, db, driver)))
		call := func(name string, step func(*sql.Tx) error, results int) error {
			first, second := outbox.NewID(), outbox.NewID()
			done := outbox.DomainEvents(
				outbox.Event{ID: first, AggregateType: "payment", AggregateID: "p", EventType: "done", Payload: []byte("{}")},
				outbox.Event{ID: second, AggregateType: "payment", AggregateID: "p", EventType: "told", Payload: []byte("{}"), CausationID: first},
			)
			return saga.ExecuteSagaStep(outbox.WithSagaStep(t.Context(), name), "s", step, list(sagaEvent("undo")), done[:results])
		}
		insert := func(tx *sql.Tx) error { return insertUser(tx, "1") } // fails the second time
		for _, results := range []int{2, 2, 1} {
			if err := call("charge", insert, results); err != nil {
				t.Errorf("got %v", err)
			}
		}
		func() {
			defer func() { _ = recover() }()
			_ = call("charge", func(*sql.Tx) error { panic("oh") }, 2)
			t.Error("the panic does not go on")
		}()
		const events = "select string_agg(event_type || ' ' || case when causation_id = lag then 'of the former' else causation_id end, E'\n' order by n) " +
			"from (select *, lag(id::text) over (order by ctid), row_number() over (order by ctid) as n from event_outbox) as event"
		expect(t, db, userIDs, "1")
		expect(t, db, events, "done s/charge\ntold of the former")

		if err := call("ship", insert, 2); sqlState(err) != "23505" { // which was never committed
			t.Errorf("got %v", err)
		}
		expect(t, db, events, "done s/charge\ntold of the former\nundo s/ship")
	})
}

// What could not be compensated is not begun.
func TestSagaStepIsRefused(t *testing.T) {
	t.Parallel()
	saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(openSQL(t, users(t), "pgx")))
	for _, test := range []struct {
		id           string
		compensation outbox.Event
		want         string
	}{
		{"", outbox.Event{}, "the saga has no id"},
		{"s", registered("1"), "compensation events: events[0] has no id"},
		{"s", outbox.Event{ID: outbox.NewID(), AggregateType: "a", AggregateID: "b", EventType: "c", Payload: []byte("x")}, "compensation events: events[0].Payload: is not JSON"},
		{strings.Repeat("s", 1025), outbox.Event{ID: outbox.NewID(), AggregateType: "a", AggregateID: "b", EventType: "c", Payload: []byte("1")}, "compensation events: events[0].CorrelationID: has 1025"},
	} {
		err := saga.ExecuteSagaStep(t.Context(), test.id, func(*sql.Tx) error { t.Error("the step is run"); return nil }, outbox.DomainEvents(test.compensation), nil)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
	if err := saga.ExecuteSagaStep(t.Context(), "s", nil, list(nil), nil); err == nil || err.Error() != "compensation events: events[0] is nil" {
		t.Errorf("got %v", err)
	}
}

func TestSagaCompensationCannotBeWritten(t *testing.T) {
	t.Parallel()
	stop := errors.New("stop")
	pool := openSQL(t, users(t), "pgx")
	saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(pool))
	err := saga.ExecuteSagaStep(t.Context(), "s", func(*sql.Tx) error {
		_, err := pool.Exec("alter table event_outbox rename to elsewhere")
		return errors.Join(err, stop)
	}, list(sagaEvent("undo")), nil)
	if !errors.Is(err, stop) || sqlState(err) != "42P01" || !strings.Contains(err.Error(), "write the compensation events: insert events: ") {
		t.Errorf("got %v", err)
	}
}

// Steps of one saga, and calls of one step, run beside each other, at a level at which they get in each other's way.
func TestConcurrentSagaSteps(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db := users(t)
		pool := openSQL(t, db, driver)
		w := outbox.NewWrapper(pool)
		w.TxOptions = &sql.TxOptions{Isolation: sql.LevelSerializable}
		w.Retries = 20
		saga := outbox.NewOutboxSagaManager(w)
		stop := errors.New("stop")
		var together, calls sync.WaitGroup
		together.Add(8)
		for i := range 8 {
			ctx := outbox.WithSagaStep(t.Context(), fmt.Sprint("step-", i%2))
			calls.Go(func() {
				first := true
				err := saga.ExecuteSagaStep(ctx, "s", func(tx *sql.Tx) error {
					if err := insertUser(tx, fmt.Sprint(i)); err != nil {
						return err
					}
					if first { // all transactions are open at once
						first = false
						together.Done()
						together.Wait()
					}
					if i%2 == 0 {
						return stop
					}
					return nil
				}, list(sagaEvent("undo"), sagaEvent("tell")), outbox.DomainEvents(outbox.Event{AggregateType: "payment", AggregateID: "p", EventType: "done", Payload: []byte("{}")}))
				if i%2 == 0 && !errors.Is(err, stop) || i%2 == 1 && err != nil {
					t.Errorf("step %d: %v", i%2, err)
				}
			})
		}
		calls.Wait()
		expect(t, db, "select string_agg(concat_ws(' ', event_type, causation_id), E'\n' order by causation_id, event_type) from event_outbox",
			"tell s/step-0\nundo s/step-0\ndone s/step-1")
		expect(t, db, "select count(*)::text from users", "1")
	})
}

// The connection is lost after the server has committed the step: the step is done.
func TestSagaCommitWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	db := users(t)
	config, err := pgx.ParseConfig(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	var armed atomic.Bool
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &deafToCommit{Conn: conn, armed: &armed}, err
	}
	pool := stdlib.OpenDB(*config)
	defer pool.Close()
	saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(pool))
	err = saga.ExecuteSagaStep(t.Context(), "s", func(tx *sql.Tx) error {
		err := insertUser(tx, "1")
		armed.Store(true)
		return err
	}, list(sagaEvent("undo")), outbox.DomainEvents(registered("1")))
	if err != nil || armed.Load() {
		t.Errorf("got %v", err)
	}
	expect(t, db, userIDs, "1")
	expect(t, db, sagaEvents, "1 user.registered s s")
}

// deafToCommit loses the connection once the answer to a COMMIT arrives.
type deafToCommit struct {
	net.Conn
	armed *atomic.Bool
	lost  atomic.Bool
}

func (c *deafToCommit) Write(b []byte) (int, error) {
	if strings.Contains(strings.ToLower(string(b)), "commit") && c.armed.CompareAndSwap(true, false) {
		c.lost.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *deafToCommit) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.lost.Load() {
		c.Conn.Close()
		return 0, errors.New("the connection is lost")
	}
	return n, err
}

// Another call of the step has its events inserted and is busy with the commit when this one gives up: whether the step
// is done is for that commit to say, and nobody compensates before.
func TestSagaWaitsForACommit(t *testing.T) {
	t.Parallel()
	for _, commits := range []bool{true, false} {
		db := users(t)
		saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(openSQL(t, db, "pgx")))
		done := outbox.Event{ID: outbox.NewID(), AggregateType: "payment", AggregateID: "p", EventType: "done", Payload: []byte("{}")}
		other, err := openSQL(t, db, "pgx").BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Rollback() //nolint:errcheck // after Commit it does nothing
		if err := outbox.InsertSQL(t.Context(), other, done); err != nil {
			t.Fatal(err)
		}

		ctx, giveUp := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() {
			result <- saga.ExecuteSagaStep(ctx, "s", func(tx *sql.Tx) error { return insertUser(tx, "1") }, list(sagaEvent("undo")), outbox.DomainEvents(done))
		}()
		waitForLock(t, db, "%insert into event_outbox (id, aggregate_type, aggregate_id, event_type, event_version%")
		giveUp()
		waitForLock(t, db, "%outbox (id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, created_at)%")
		if commits {
			err = other.Commit()
		} else {
			err = other.Rollback()
		}
		if err != nil {
			t.Fatal(err)
		}
		got := <-result
		if commits && got != nil || !commits && !errors.Is(got, context.Canceled) {
			t.Errorf("commits %v: %v", commits, got)
		}
		want := "p undo s s"
		if commits {
			want = "p done"
		}
		expect(t, db, sagaEvents, want)
		expect(t, db, userIDs, "")
	}
}

// waitForLock returns when a statement of this kind waits for another transaction.
func waitForLock(t *testing.T, db *pgtest.Database, query string) {
	t.Helper()
	conn := db.Conn(t)
	for deadline := time.Now().Add(20 * time.Second); ; {
		var waits bool
		err := conn.QueryRow(t.Context(), `select exists (select from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock' and query like $1)`, query).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		if waits {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s waits", query)
		}
	}
}
