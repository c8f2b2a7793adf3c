package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

func ExampleInsert() {
	ctx := context.Background()
	conn, done := exampleDatabase(ctx)
	defer done()

	// The order and its event are committed together, or neither is.
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "insert into orders (id, total) values ($1, $2)", 42, 1999); err != nil {
			return err
		}
		return outbox.Insert(ctx, tx, outbox.Event{
			AggregateType: "order",
			AggregateID:   "42",
			EventType:     "order.placed",
			Payload:       []byte(`{"total": 1999}`),
		})
	})
	if err != nil {
		log.Fatal(err)
	}

	var event string
	err = conn.QueryRow(ctx, "select concat_ws(' ', aggregate_type, aggregate_id, event_type, event_version, payload, metadata) from event_outbox").Scan(&event)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(event)
	// Output: order 42 order.placed 1 {"total": 1999} {}
}

func ExampleInsertSQL() {
	ctx := context.Background()
	conn, done := exampleDatabase(ctx)
	defer done()
	db, err := sql.Open("pgx", conn.Config().ConnString())
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	placeOrder := func(id, total int) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
		if _, err := tx.ExecContext(ctx, "insert into orders (id, total) values ($1, $2)", id, total); err != nil {
			return err
		}
		payload, err := json.Marshal(map[string]int{"total": total})
		if err != nil {
			return err
		}
		err = outbox.InsertSQL(ctx, tx, outbox.Event{
			AggregateType: "order", AggregateID: fmt.Sprint(id), EventType: "order.placed", Payload: payload,
		})
		if err != nil {
			return err
		}
		return tx.Commit()
	}
	if err := placeOrder(42, 1999); err != nil {
		log.Fatal(err)
	}
	if err := placeOrder(42, 2999); err != nil {
		fmt.Println("an order of this id exists")
	}

	var events int
	if err := db.QueryRowContext(ctx, "select count(*) from event_outbox").Scan(&events); err != nil {
		log.Fatal(err)
	}
	fmt.Println(events, "event")
	// Output:
	// an order of this id exists
	// 1 event
}

// An event that causes another needs its id before it is inserted.
func ExampleNewID() {
	placed := outbox.Event{
		ID: outbox.NewID(), AggregateType: "order", AggregateID: "42", EventType: "order.placed", Payload: []byte("{}"),
	}
	charged := outbox.Event{
		AggregateType: "payment", AggregateID: "7", EventType: "payment.charged", Payload: []byte("{}"), CausationID: placed.ID,
	}
	fmt.Println(charged.CausationID == placed.ID)
	// Output: true
}
