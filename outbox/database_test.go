package outbox_test

import (
	"context"
	"fmt"
	"log"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// exampleDatabase makes a database for an example, which has no testing.T to ask for one. It has a table of orders.
func exampleDatabase(ctx context.Context) (conn *pgx.Conn, done func()) {
	t := &example{}
	conn = pgtest.New(t).Conn(t)
	if _, err := conn.Exec(ctx, "create table orders (id int primary key, total int)"); err != nil {
		t.Fatal(err)
	}
	return conn, t.done
}

// example is as much of a test as pgtest needs.
type example struct {
	testing.TB
	cleanups []func()
}

func (t *example) Helper()                        {}
func (t *example) Cleanup(f func())               { t.cleanups = append(t.cleanups, f) }
func (t *example) Errorf(format string, v ...any) { log.Printf(format, v...) }
func (t *example) Fatal(v ...any)                 { log.Fatal(v...) }
func (t *example) Fatalf(format string, v ...any) { log.Fatalf(format, v...) }

func (t *example) done() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}

// BenchmarkInsert inserts within one transaction that is never committed: the server runs without fsync anyway.
func BenchmarkInsert(b *testing.B) {
	ctx := b.Context()
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tx, err := pgtest.New(b).Conn(b).Begin(ctx)
			if err != nil {
				b.Fatal(err)
			}
			events := traced(n)
			b.ReportAllocs()
			for b.Loop() {
				if err := outbox.Insert(ctx, tx, events...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
