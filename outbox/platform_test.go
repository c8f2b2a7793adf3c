package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// What services of the platform do today, with the import path changed.

// DomainEvent is the line that their package of shared domain types changes.
type DomainEvent = outbox.DomainEvent

// account is an aggregate of such a service, and accounts the repository that it has had.
type account struct {
	owner  string
	events []DomainEvent
}

func (a *account) GetUncommittedEvents() []DomainEvent { return a.events }
func (a *account) MarkEventsAsCommitted()              { a.events = nil }

type accounts struct{ db *sql.DB }

func (r *accounts) Save(ctx context.Context, a *account) error {
	// These lines are new. Outside of the outbox's transaction, statements go to the database as before.
	exec := r.db.ExecContext
	if tx, ok := outbox.TxFromContext(ctx); ok {
		exec = tx.ExecContext
	}
	_, err := exec(ctx, "insert into users (id, name) values ($1, $1)", a.owner)
	return err
}

func ExampleNewOutboxEnabledAggregateRepository() {
	ctx := context.Background()
	db, done := exampleUsers(ctx)
	defer done()

	base := &accounts{db: db}
	repository := outbox.NewOutboxEnabledAggregateRepository(base, outbox.NewWrapper(db))

	anna := &account{owner: "anna", events: outbox.DomainEvents(userEventOf("anna", "user.registered"))}
	if err := repository.Save(ctx, anna); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(anna.events), "events are uncommitted")
	printOutbox(ctx, db)
	// Output:
	// 0 events are uncommitted
	// anna user.registered
}

func ExampleWrapper_ExecuteWithOutbox() {
	ctx := context.Background()
	db, done := exampleUsers(ctx)
	defer done()
	wrapper := outbox.NewWrapper(db)

	registered, welcomed := newUser("anna").uncommitted[0], newUser("anna").uncommitted[1]
	operation := outbox.EventProducingOperation{
		Operation: func(tx *sql.Tx) error { return insertUser(tx, "anna") },
		Events:    []DomainEvent{registered, welcomed},
	}
	if err := wrapper.ExecuteWithOutbox(ctx, operation); err != nil {
		log.Fatal(err)
	}
	if err := wrapper.ExecuteWithOutbox(ctx, operation); err != nil {
		fmt.Println("anna is registered already")
	}
	printOutbox(ctx, db)
	// Output:
	// anna is registered already
	// anna user.registered
	// anna user.activated
}

func ExampleCombineOperations() {
	ctx := context.Background()
	db, done := exampleUsers(ctx)
	defer done()
	wrapper := outbox.NewWrapper(db)

	operations := []outbox.EventProducingOperation{
		{
			Operation: func(tx *sql.Tx) error { return insertUser(tx, "anna") },
			Events:    outbox.DomainEvents(userEventOf("anna", "user.registered")),
		},
		{
			Operation: func(tx *sql.Tx) error { return insertUser(tx, "ben") },
			Events:    outbox.DomainEvents(userEventOf("ben", "user.registered")),
		},
	}
	batch := outbox.CombineOperations(operations...)
	if err := wrapper.ExecuteBatch(ctx, batch); err != nil {
		log.Fatal(err)
	}
	printOutbox(ctx, db)
	// Output:
	// anna user.registered
	// ben user.registered
}

func ExampleOutboxSagaManager_ExecuteSagaStep() {
	ctx := context.Background()
	db, done := exampleUsers(ctx)
	defer done()
	saga := outbox.NewOutboxSagaManager(outbox.NewWrapper(db))

	cancelled := outbox.DomainEvents(userEventOf("anna", "registration.cancelled"))
	completed := outbox.DomainEvents(userEventOf("anna", "registration.completed"))
	for range 2 { // somebody tries again
		err := saga.ExecuteSagaStep(
			outbox.WithSagaStep(ctx, "charge"),
			"registration-7",
			func(*sql.Tx) error { return errors.New("the card is refused") },
			cancelled,
			completed,
		)
		fmt.Println(err)
	}
	printOutbox(ctx, db)
	// Output:
	// the card is refused
	// the card is refused
	// anna registration.cancelled
}

func ExampleWithCorrelationID() {
	ctx := context.Background()
	db, done := exampleUsers(ctx)
	defer done()

	// What the middleware of a service knows, every event that its handlers write gets.
	ctx = outbox.WithCorrelationID(ctx, "request-1")
	ctx = outbox.WithTenantID(ctx, "tenant-1")
	ctx = outbox.WithTraceParent(ctx, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "")

	err := outbox.NewWrapper(db).ExecuteWithOutbox(ctx, outbox.EventProducingOperation{
		Events: outbox.DomainEvents(userEventOf("anna", "user.registered")),
	})
	if err != nil {
		log.Fatal(err)
	}
	var event string
	err = db.QueryRowContext(ctx, "select concat_ws(' ', correlation_id, tenant_id, metadata) from event_outbox").Scan(&event)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(event)
	// Output: request-1 tenant-1 {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
}

// exampleUsers makes a database with a table of users, for lib/pq.
func exampleUsers(ctx context.Context) (db *sql.DB, done func()) {
	conn, drop := exampleDatabase(ctx)
	if _, err := conn.Exec(ctx, "create table users (id text primary key, name text not null)"); err != nil {
		log.Fatal(err)
	}
	db, err := sql.Open("postgres", conn.Config().ConnString())
	if err != nil {
		log.Fatal(err)
	}
	return db, func() { db.Close(); drop() }
}

func userEventOf(user, eventType string) outbox.Event {
	return outbox.Event{ID: outbox.NewID(), AggregateType: "user", AggregateID: user, EventType: eventType, Payload: []byte("{}")}
}

func printOutbox(ctx context.Context, db *sql.DB) {
	rows, err := db.QueryContext(ctx, "select aggregate_id, event_type from event_outbox order by ctid")
	if err != nil {
		log.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, eventType string
		if err := rows.Scan(&id, &eventType); err != nil {
			log.Fatal(err)
		}
		fmt.Println(id, eventType)
	}
	if err := rows.Err(); err != nil {
		log.Fatal(err)
	}
}
