package outbox_test

import (
	"database/sql"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Two ways to the same rows take turns, so that both find the same machine. The ratio is that of their medians, of
// transactions that are committed by a server that waits for no disk: with one that does, it is nearer to 1.

// A transaction with one event through the Wrapper, beside the same with a plain INSERT of that row.
func BenchmarkOverheadOfOneEvent(b *testing.B) {
	for _, driver := range drivers {
		b.Run(driver, func(b *testing.B) {
			ctx := b.Context()
			pool, err := sql.Open(driver, users(b).DSN)
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			pool.SetMaxOpenConns(1)
			w := outbox.NewWrapper(pool)
			work := func(tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "insert into users (id, name) values ($1, 'Anna')", outbox.NewID())
				return err
			}
			e := traced(1)[0]
			compare(b, func() error {
				return w.ExecuteWithOutbox(ctx, outbox.EventProducingOperation{Operation: work, Events: outbox.DomainEvents(e)})
			}, func() error {
				tx, err := pool.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
				if err := work(tx); err != nil {
					return err
				}
				_, err = tx.ExecContext(ctx, `insert into event_outbox (id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata)
					values ($1, $2, $3, $4, $5, $6, $7)`, outbox.NewID(), e.AggregateType, e.AggregateID, e.EventType, 1, string(e.Payload), string(e.Metadata))
				if err != nil {
					return err
				}
				return tx.Commit()
			})
		})
	}
}

// A hundred events, beside COPY of the same rows.
func BenchmarkOverheadOfAHundredEvents(b *testing.B) {
	ctx := b.Context()
	conn := pgtest.New(b).Conn(b)
	events := traced(100)
	columns := []string{"id", "aggregate_type", "aggregate_id", "event_type", "event_version", "payload", "metadata"}
	compare(b, func() error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return outbox.Insert(ctx, tx, events...) })
	}, func() error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"event_outbox"}, columns, pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
				e := &events[i]
				return []any{outbox.NewID(), e.AggregateType, e.AggregateID, e.EventType, 1, e.Payload, e.Metadata}, nil
			}))
			return err
		})
	})
}

// traced are n events of about 600 bytes.
func traced(n int) []outbox.Event {
	events := placed(n)
	for i := range events {
		events[i].Payload = fmt.Appendf(nil, `{"order": %d, "text": "%0500d"}`, i, 0)
		events[i].Metadata = []byte(`{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}`)
	}
	return events
}

func compare(b *testing.B, ours, plain func() error) {
	b.Helper()
	timed := func(f func() error) time.Duration {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	for range 10 { // connections, statements, plans
		timed(ours)
		timed(plain)
	}
	var of, beside []time.Duration
	for b.Loop() {
		if len(of)%2 == 0 { // neither always comes first
			of = append(of, timed(ours))
			beside = append(beside, timed(plain))
		} else {
			beside = append(beside, timed(plain))
			of = append(of, timed(ours))
		}
	}
	slices.Sort(of)
	slices.Sort(beside)
	a, p := of[len(of)/2], beside[len(beside)/2]
	b.ReportMetric(float64(a.Microseconds()), "µs")
	b.ReportMetric(float64(p.Microseconds()), "µs-plain")
	b.ReportMetric(float64(a)/float64(p), "ratio")
}
