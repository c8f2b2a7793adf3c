package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// openShop makes the shop's database and its own table, as a service would have one; the outbox is made by init.
func (d *demo) openShop(ctx context.Context) error {
	admin, err := pgx.Connect(ctx, d.postgres.DSN("postgres"))
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, "create database "+database); err != nil {
		return err
	}
	if d.conn, err = pgx.Connect(ctx, d.dsn()); err != nil {
		return err
	}
	_, err = d.conn.Exec(ctx, `create table orders (id bigint generated always as identity (start 1001) primary key,
		customer text not null, total numeric(10, 2) not null, status text not null)`)
	return err
}

// shop writes events the way a service does: in the transaction that changes its own tables.
type shop struct {
	conn         *pgx.Conn
	orders       []order // that are not shipped
	placed       int
	transactions int // committed
	rolledBack   []string
}

type order struct {
	id     int64
	total  string
	paid   bool
	placed string // the id of its first event
}

func newShop(conn *pgx.Conn) *shop { return &shop{conn: conn} }

const (
	openOrders         = 10
	transactionTimeout = 30 * time.Second
)

// open does business until ctx ends, at a rate of events a second. A transaction that has begun is brought to its end.
func (s *shop) open(ctx, work context.Context, rate int, a *arrivals) error {
	if rate == 0 {
		<-ctx.Done()
		return nil
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
			next = next.Add(late) // what was missed is not made up for
		}
		timer.Reset(time.Until(next))
	}
}

var errDeclined = errors.New("the customer's card was declined")

// transact places an order, has one paid or ships one, and counts the events of that.
func (s *shop) transact(ctx context.Context, a *arrivals) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, transactionTimeout, errors.New("the transaction takes too long; is a table locked?"))
	defer cancel()
	var events []outbox.Event
	err := pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) (err error) {
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
	switch {
	case errors.Is(err, errDeclined):
		// Rolled back, events and all.
		s.orders = s.orders[:len(s.orders)-1]
		for _, e := range events {
			s.rolledBack = append(s.rolledBack, e.ID)
		}
	case err != nil:
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w: %w", err, cause)
		}
		return 0, err
	default:
		s.transactions++
	}
	return len(events), nil
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
	return []outbox.Event{o.event(o.placed, "order.created", map[string]any{"customer": customer, "total": o.total})}, nil
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
		EventType: "payment.received", Payload: payload(o.id, map[string]any{"amount": o.total, "method": "card"}),
		CorrelationID: o.placed, CausationID: o.placed,
	}
	paid := o.event(outbox.NewID(), "order.paid", map[string]any{"payment": payment.AggregateID})
	paid.CausationID = payment.ID
	return []outbox.Event{payment, paid}, nil
}

func (o *order) event(id, eventType string, details map[string]any) outbox.Event {
	return outbox.Event{
		ID: id, AggregateType: "order", AggregateID: strconv.FormatInt(o.id, 10), EventType: eventType,
		Payload: payload(o.id, details), CorrelationID: o.placed,
	}
}

func payload(order int64, details map[string]any) []byte {
	details["order"] = order
	b, err := json.Marshal(details)
	if err != nil {
		panic("texts and numbers are always JSON: " + err.Error())
	}
	return b
}
