package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// user is an aggregate that is told by its events.
type user struct {
	id          string
	version     int
	uncommitted []outbox.DomainEvent
}

func (u *user) GetUncommittedEvents() []outbox.DomainEvent { return u.uncommitted }
func (u *user) MarkEventsAsCommitted()                     { u.uncommitted = u.uncommitted[:0] }

func (u *user) raise(eventType string) {
	u.version++
	u.uncommitted = append(u.uncommitted, &userEvent{id: outbox.NewID(), user: u.id, eventType: eventType, at: time.Now(), version: u.version})
}

type userEvent struct {
	id, user, eventType string
	at                  time.Time
	version             int // of the aggregate
}

func (e *userEvent) EventID() string          { return e.id }
func (e *userEvent) AggregateType() string    { return "user" }
func (e *userEvent) AggregateID() string      { return e.user }
func (e *userEvent) EventType() string        { return e.eventType }
func (e *userEvent) EventVersion() int        { return 1 }
func (e *userEvent) Payload() any             { return map[string]int{"version": e.version} }
func (e *userEvent) Metadata() map[string]any { return map[string]any{"source": "test"} }
func (e *userEvent) OccurredAt() time.Time    { return e.at }

func newUser(id string) *user {
	u := &user{id: id}
	u.raise("user.registered")
	u.raise("user.activated")
	return u
}

// eventStore is an event-sourcing store as services have one: append-only, with one version once.
type eventStore struct {
	db     *sql.DB
	broken error
	panics bool
}

func createEventStore(t *testing.T, driver string) (*pgtest.Database, *eventStore) {
	t.Helper()
	db := pgtest.New(t)
	_, err := db.Conn(t).Exec(t.Context(), `create table domain_events (id uuid primary key, aggregate_id text, version int, event_type text, payload jsonb,
		unique (aggregate_id, version) deferrable initially deferred)`)
	if err != nil {
		t.Fatal(err)
	}
	return db, &eventStore{db: openSQL(t, db, driver)}
}

// Save was there before the outbox; its first lines are what has changed.
func (s *eventStore) Save(ctx context.Context, u *user) error {
	tx, ok := outbox.TxFromContext(ctx)
	if ok {
		return s.append(ctx, tx, u)
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if err := s.append(ctx, tx, u); err != nil {
		return err
	}
	return tx.Commit()
}

func (s *eventStore) append(ctx context.Context, tx *sql.Tx, u *user) error {
	for _, e := range u.uncommitted {
		e := e.(*userEvent)
		payload, err := json.Marshal(e.Payload())
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "insert into domain_events values ($1, $2, $3, $4, $5)", e.id, e.user, e.version, e.eventType, string(payload))
		if err != nil {
			return err
		}
	}
	if s.panics {
		panic("oh")
	}
	return s.broken
}

const (
	storedEvents = "select string_agg(concat_ws(' ', id, aggregate_id, event_type, payload->'version'), E'\n' order by aggregate_id, version) from domain_events"
	outboxEvents = "select string_agg(concat_ws(' ', id, aggregate_id, event_type, payload->'version'), E'\n' order by aggregate_id, (payload->>'version')::int) from event_outbox"
)

// Store and outbox have the same events, whatever goes wrong; and the aggregate keeps its events until they are there.
func TestSaveWithEventStore(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, driver string) {
		db, store := createEventStore(t, driver)
		repository := outbox.NewOutboxEnabledAggregateRepository(store, outbox.NewWrapper(store.db))
		ctx := outbox.WithTenantID(t.Context(), "tenant-1")

		u := newUser("1")
		first := u.uncommitted[0].EventID()
		u.raise("user.updated")
		if err := repository.Save(ctx, u); err != nil {
			t.Fatal(err)
		}
		if len(u.uncommitted) != 0 {
			t.Errorf("%d events are uncommitted", len(u.uncommitted))
		}
		u.raise("user.deactivated")
		if err := errors.Join(repository.Save(ctx, u), repository.Save(ctx, u)); err != nil { // the second has no events
			t.Fatal(err)
		}
		want := fmt.Sprint(first, " 1 user.registered 1")
		var stored string
		if err := store.db.QueryRowContext(ctx, storedEvents).Scan(&stored); err != nil || !strings.HasPrefix(stored, want) || strings.Count(stored, "\n") != 3 {
			t.Errorf("the store has %s, %v", stored, err)
		}
		expect(t, db, outboxEvents, stored)
		expect(t, db, "select distinct concat_ws(' ', tenant_id, metadata) from event_outbox", `tenant-1 {"source": "test"}`)

		broken := newUser("2")
		fails := func(name string, want func(error) bool) {
			t.Helper()
			if err := repository.Save(ctx, broken); err == nil || !want(err) {
				t.Errorf("%s: %v", name, err)
			}
			if len(broken.uncommitted) != 2 {
				t.Errorf("%s: %d events are uncommitted, want 2", name, len(broken.uncommitted))
			}
		}
		store.broken = errors.New("broken")
		fails("the store fails", func(err error) bool { return err == store.broken }) //nolint:errorlint // as it was
		store.broken = nil
		broken.id, broken.uncommitted[1].(*userEvent).user = "1", ""
		fails("an event is invalid", func(err error) bool { return err.Error() == "events[1].AggregateID: is empty" })
		for _, e := range broken.uncommitted {
			e.(*userEvent).user = "1" // its versions 1 and 2 are taken: two writers
		}
		fails("the commit fails", func(err error) bool { return sqlState(err) == "23505" && strings.HasPrefix(err.Error(), "commit: ") })
		for _, e := range broken.uncommitted {
			e.(*userEvent).user = "2"
		}
		func() {
			store.panics = true
			defer func() {
				if r := recover(); r != "oh" || len(broken.uncommitted) != 2 {
					t.Errorf("recovered %v, %d events", r, len(broken.uncommitted))
				}
				store.panics = false
			}()
			_ = repository.Save(ctx, broken)
		}()
		expect(t, db, storedEvents, stored)
		expect(t, db, outboxEvents, stored)

		if err := repository.Save(ctx, broken); err != nil {
			t.Fatal(err)
		}
		var now string
		if err := store.db.QueryRowContext(ctx, storedEvents).Scan(&now); err != nil || strings.Count(now, "\n") != 5 {
			t.Errorf("the store has %s, %v", now, err)
		}
		expect(t, db, outboxEvents, now)
		if err := store.Save(ctx, newUser("3")); err != nil { // without the outbox, as before
			t.Error(err)
		}
	})
}

// repositoryFunc is a base as it should not be, or one for a moment.
type repositoryFunc func(context.Context, *user) error

func (f repositoryFunc) Save(ctx context.Context, u *user) error { return f(ctx, u) }

// saveTxFunc has the transaction as a parameter.
type saveTxFunc func(context.Context, *sql.Tx, *user) error

func (saveTxFunc) Save(context.Context, *user) error { return errors.New("not this") }

func (f saveTxFunc) SaveTx(ctx context.Context, tx *sql.Tx, u *user) error { return f(ctx, tx, u) }

func TestHowABaseGetsTheTransaction(t *testing.T) {
	t.Parallel()
	db, store := createEventStore(t, "pgx")
	w := outbox.NewWrapper(store.db)
	ctx := t.Context()
	save := func(base outbox.AggregateRepository[*user], u *user) error {
		return outbox.NewOutboxEnabledAggregateRepository(base, w).Save(ctx, u)
	}

	u := newUser("1")
	err := save(saveTxFunc(func(ctx context.Context, tx *sql.Tx, u *user) error {
		_, err := tx.ExecContext(ctx, "insert into domain_events (id, aggregate_id) values ($1, $2)", outbox.NewID(), u.id)
		return err
	}), u)
	if err != nil || len(u.uncommitted) != 0 {
		t.Errorf("SaveTx: %v", err)
	}

	u = newUser("2")
	err = save(repositoryFunc(func(context.Context, *user) error { return nil }), u)
	if err == nil || !strings.Contains(err.Error(), "outbox.TxFromContext(ctx)") || len(u.uncommitted) != 2 {
		t.Errorf("a transaction of its own: %v", err)
	}

	u = newUser("3")
	err = save(repositoryFunc(func(ctx context.Context, u *user) error {
		return outbox.NewOutboxEnabledAggregateRepository(store, w).Save(ctx, u)
	}), u)
	if err == nil || !strings.Contains(err.Error(), "another Save") || len(u.uncommitted) != 2 {
		t.Errorf("a Save within another: %v", err)
	}

	u = newUser("3")
	err = save(saveTxFunc(func(ctx context.Context, _ *sql.Tx, u *user) error {
		return outbox.NewOutboxEnabledAggregateRepository(store, w).Save(ctx, u)
	}), u)
	if err == nil || !strings.Contains(err.Error(), "another Save") || len(u.uncommitted) != 2 {
		t.Errorf("a Save within SaveTx: %v", err)
	}

	u = newUser("3")
	err = save(saveTxFunc(func(_ context.Context, _ *sql.Tx, u *user) error { u.raise("user.updated"); return nil }), u)
	if err == nil || !strings.Contains(err.Error(), "has more events") || len(u.uncommitted) != 3 {
		t.Errorf("a base that raises events: %v", err)
	}

	// A base that forgets the events does not make the outbox forget them.
	u = newUser("4")
	err = save(repositoryFunc(func(ctx context.Context, u *user) error {
		err := store.Save(ctx, u)
		u.MarkEventsAsCommitted()
		u.uncommitted = append(u.uncommitted, nil, nil)[:0]
		return err
	}), u)
	if err != nil {
		t.Errorf("a base that marks the events itself: %v", err)
	}
	expect(t, db, "select string_agg(aggregate_id, ' ' order by ctid) from event_outbox", "1 1 4 4")
	if tx, ok := outbox.TxFromContext(ctx); tx != nil || ok {
		t.Error("there is a transaction elsewhere")
	}
}
