package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// shop writes events the way a service does: in the transaction that changes its own tables.
type shop struct {
	dsn          string
	conn         *pgx.Conn
	patience     time.Duration // how long PostgreSQL may be away
	orders       []order       // those not shipped yet
	placed       int
	transactions int      // committed
	rolledBack   []string // ids of events
}

type order struct {
	id     int64
	total  string
	paid   bool
	placed string // the id of its first event
}

const (
	openOrders         = 10
	transactionTimeout = 30 * time.Second
	reconnectPause     = 50 * time.Millisecond
)

// openShop makes the shop's database and its own table, as a service would have one. The connector makes the outbox.
func openShop(ctx context.Context, admin, dsn string) (*shop, error) {
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "create database "+database); err != nil {
		return nil, err
	}
	s := &shop{dsn: dsn, patience: transactionTimeout}
	if s.conn, err = pgx.Connect(ctx, dsn); err != nil {
		return nil, err
	}
	_, err = s.conn.Exec(ctx, `create table orders (id bigint generated always as identity (start 1001) primary key,
		customer text not null, total numeric(10, 2) not null, status text not null)`)
	return s, err
}

// open does business until ctx ends, at a rate of events a second. A transaction that has begun is brought to its end.
func (s *shop) open(ctx, work context.Context, rate int, a *arrivals) error {
	if rate == 0 {
		<-ctx.Done()
		return s.reconnectIfLost(work)
	}
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		n, err := s.transact(work, a)
		if err != nil {
			return fmt.Errorf("shop: %w", err)
		}
		next = next.Add(time.Duration(n) * time.Second / time.Duration(rate))
		if late := time.Since(next); late > time.Second {
			next = next.Add(late) // a shop that was held up does not catch up in a burst
		}
		timer.Reset(time.Until(next))
	}
}

var errDeclined = errors.New("the customer's card was declined")

// transact places an order, has one paid or ships one, and counts the events of that.
func (s *shop) transact(work context.Context, a *arrivals) (int, error) {
	ctx, cancel := context.WithTimeoutCause(work, transactionTimeout, errors.New("the transaction takes too long; is a table locked?"))
	defer cancel()
	before := slices.Clone(s.orders)
	events, err := s.write(ctx, a)
	committed := err == nil
	switch {
	case committed, errors.Is(err, errDeclined):
	case s.conn.IsClosed() && ctx.Err() == nil:
		// PostgreSQL has gone. If that happened during the commit, only the table can say whether the transaction is in it.
		if committed, err = s.comeBack(work, events); err != nil {
			return 0, err
		}
	case context.Cause(ctx) != nil:
		return 0, fmt.Errorf("%w: %w", err, context.Cause(ctx))
	default:
		return 0, err
	}
	if committed {
		s.transactions++
		return len(events), nil
	}
	s.orders = before
	for _, e := range events {
		s.rolledBack = append(s.rolledBack, e.ID)
	}
	return len(events), nil
}

// write runs one transaction and returns its events. They may be those of a transaction that has failed.
func (s *shop) write(ctx context.Context, a *arrivals) (events []outbox.Event, err error) {
	err = pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) (err error) {
		if len(s.orders) < openOrders && rand.IntN(2) == 0 || len(s.orders) == 0 {
			events, err = s.place(ctx, tx)
		} else {
			events, err = s.proceed(ctx, tx, rand.IntN(len(s.orders)))
		}
		if err != nil {
			return err
		}
		for _, e := range events {
			a.expect(e.ID)
		}
		if err := outbox.Insert(ctx, tx, events...); err != nil {
			return err
		}
		if events[0].EventType == "order.created" {
			if s.placed++; s.placed%5 == 0 {
				return errDeclined
			}
		}
		return nil
	})
	return events, err
}

// comeBack connects again after PostgreSQL was lost, and reports whether the transaction with these events has committed.
func (s *shop) comeBack(work context.Context, events []outbox.Event) (committed bool, err error) {
	if err := s.reconnectIfLost(work); err != nil || len(events) == 0 {
		return false, err
	}
	err = s.conn.QueryRow(work, "select exists (select from event_outbox where id = $1)", events[0].ID).Scan(&committed)
	return committed, err
}

// reconnectIfLost waits until PostgreSQL is back.
func (s *shop) reconnectIfLost(work context.Context) error {
	ctx, cancel := context.WithTimeoutCause(work, s.patience, errors.New("PostgreSQL stays away"))
	defer cancel()
	tick := time.NewTicker(reconnectPause)
	defer tick.Stop()
	for s.conn.Ping(ctx) != nil {
		_ = s.conn.Close(ctx) // it is of no use any more
		conn, err := pgx.Connect(ctx, s.dsn)
		if err == nil {
			s.conn = conn
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
	return nil
}

var customers = []string{"ada", "grace", "edsger", "barbara", "donald", "frances"}

func (s *shop) place(ctx context.Context, tx pgx.Tx) ([]outbox.Event, error) {
	customer := customers[rand.IntN(len(customers))]
	o := order{total: fmt.Sprintf("%d.%02d", 5+rand.IntN(200), rand.IntN(100)), placed: outbox.NewID()}
	err := tx.QueryRow(ctx, "insert into orders (customer, total, status) values ($1, $2::numeric, 'placed') returning id",
		customer, o.total).Scan(&o.id)
	if err != nil {
		return nil, err
	}
	s.orders = append(s.orders, o)
	return []outbox.Event{o.event(o.placed, "order.created", map[string]any{"customer": customer, "total": json.Number(o.total)})}, nil
}

// proceed has the order at that index paid, or else ships it.
func (s *shop) proceed(ctx context.Context, tx pgx.Tx, index int) ([]outbox.Event, error) {
	o := &s.orders[index]
	status := "shipped"
	if !o.paid {
		status = "paid"
	}
	if _, err := tx.Exec(ctx, "update orders set status = $1 where id = $2", status, o.id); err != nil {
		return nil, err
	}
	if o.paid {
		done := *o
		s.orders = append(s.orders[:index], s.orders[index+1:]...)
		return []outbox.Event{done.event(outbox.NewID(), "order.shipped", map[string]any{"carrier": "pigeon"})}, nil
	}
	o.paid = true
	payment := outbox.Event{
		ID: outbox.NewID(), AggregateType: "payment", AggregateID: "p-" + strconv.FormatInt(o.id, 10),
		EventType: "payment.received", Payload: payload(map[string]any{"amount": json.Number(o.total), "order": o.id}),
		CorrelationID: o.placed, CausationID: o.placed,
	}
	paid := o.event(outbox.NewID(), "order.paid", map[string]any{"payment": payment.AggregateID})
	paid.CausationID = payment.ID
	return []outbox.Event{payment, paid}, nil
}

func (o *order) event(id, eventType string, details map[string]any) outbox.Event {
	return outbox.Event{
		ID: id, AggregateType: "order", AggregateID: strconv.FormatInt(o.id, 10), EventType: eventType,
		Payload: payload(details), CorrelationID: o.placed,
	}
}

func payload(details map[string]any) []byte {
	b, err := json.Marshal(details)
	if err != nil {
		panic("texts and numbers are always JSON: " + err.Error())
	}
	return b
}
