package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// order is what a customer sends, and what the event tells.
type order struct {
	ID       string  `json:"id"`
	Customer string  `json:"customer"`
	Amount   float64 `json:"amount"`
}

// store keeps orders.
type store struct {
	db     *sql.DB
	outbox *outbox.Wrapper
	logger *slog.Logger
}

func newStore(db *sql.DB, logger *slog.Logger) *store {
	return &store{db: db, outbox: outbox.NewWrapper(db), logger: logger}
}

func (s *store) migrate(ctx context.Context) error {
	_, err := s.db.ExecContext(ctx, "create table if not exists orders (id uuid primary key, customer text not null, amount numeric not null)")
	return err
}

// add stores the order and its event in one transaction: there is never one without the other.
func (s *store) add(ctx context.Context, o order) error {
	payload, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return s.outbox.ExecuteWithOutbox(ctx, outbox.EventProducingOperation{
		Operation: func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "insert into orders (id, customer, amount) values ($1, $2, $3)", o.ID, o.Customer, o.Amount)
			return err
		},
		Events: outbox.DomainEvents(outbox.Event{
			AggregateType: "order", AggregateID: o.ID, EventType: "order.placed", EventVersion: 1, Payload: payload,
		}),
	})
}

// place is POST /orders.
func (s *store) place(w http.ResponseWriter, r *http.Request) {
	var o order
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&o); err != nil || o.Customer == "" || o.Amount <= 0 {
		http.Error(w, `want {"customer": "…", "amount": more than 0}`, http.StatusBadRequest)
		return
	}
	o.ID = outbox.NewID()
	// A trace that the request belongs to goes on in the event.
	ctx := outbox.WithTraceParent(r.Context(), r.Header.Get("Traceparent"), r.Header.Get("Tracestate"))
	if err := s.add(ctx, o); err != nil {
		s.logger.Error("order not placed", "err", err)
		http.Error(w, "not placed, please try again", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = fmt.Fprintf(w, "{\"id\": %q}\n", o.ID)
}
