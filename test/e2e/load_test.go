package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// loader writes events as several services would, until it is stopped.
type loader struct {
	cancel  context.CancelFunc
	writers sync.WaitGroup
}

type load struct {
	writers    int // concurrent transactions
	aggregates int // of each type
	rate       int // transactions a second, of all writers together
}

func (w *world) load(l load) *loader {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	running := &loader{cancel: cancel}
	w.t.Cleanup(running.stop)
	random := testrand.New(w.t)
	for i := range l.writers {
		writer := writer{
			dsn: w.dsn, name: i, aggregates: l.aggregates, random: rand.New(rand.NewPCG(random.Uint64(), 0)),
			every: time.Second * time.Duration(l.writers) / time.Duration(l.rate),
		}
		running.writers.Go(func() { writer.run(ctx) })
	}
	return running
}

// stop lets every writer finish its transaction.
func (l *loader) stop() {
	l.cancel()
	l.writers.Wait()
}

// writer commits one transaction after the other. When PostgreSQL is away it comes again; what became of a commit
// whose answer was lost is not its business but the oracle's.
type writer struct {
	dsn        string
	name       int
	aggregates int
	random     *rand.Rand
	every      time.Duration
	written    int
}

func (w *writer) run(ctx context.Context) {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, w.dsn)
		for err == nil && ctx.Err() == nil {
			if err = w.transaction(conn); err != nil {
				conn.Close(context.Background())
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				conn.Close(context.Background())
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// transaction is one row mostly; otherwise many, none because it is rolled back, or some between savepoints.
func (w *writer) transaction(conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	switch kind := w.random.IntN(10); {
	case kind < 6:
		err = w.insert(ctx, tx, 1)
	case kind < 8:
		err = w.insert(ctx, tx, 2+w.random.IntN(8))
	case kind < 9:
		if err = w.insert(ctx, tx, 1+w.random.IntN(5)); err == nil {
			return tx.Rollback(ctx)
		}
	default:
		err = w.savepoints(ctx, tx)
	}
	if err != nil {
		return err
	}
	return tx.Commit(ctx)
}

func (w *writer) savepoints(ctx context.Context, tx pgx.Tx) error {
	if err := w.insert(ctx, tx, 1); err != nil {
		return err
	}
	for range 1 + w.random.IntN(3) {
		inner, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		if err := w.insert(ctx, inner, 1+w.random.IntN(3)); err != nil {
			return err
		}
		if w.random.IntN(2) == 0 {
			err = inner.Rollback(ctx)
		} else {
			err = inner.Commit(ctx)
		}
		if err != nil {
			return err
		}
	}
	return w.insert(ctx, tx, 1)
}

// insert writes n events, each to an aggregate at random, so that writers meet at the same ones.
func (w *writer) insert(ctx context.Context, tx pgx.Tx, n int) error {
	var types, ids, payloads []string
	for range n {
		w.written++
		types = append(types, aggregateTypes[w.random.IntN(len(aggregateTypes))])
		ids = append(ids, "a-"+strconv.Itoa(w.random.IntN(w.aggregates)))
		payloads = append(payloads, payload(w.random, fmt.Sprintf("%d/%d", w.name, w.written)))
	}
	_, err := tx.Exec(ctx, insertEvents, types, ids, payloads)
	return err
}

const insertEvents = `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
	select t, a, t || '.changed', p::json from unnest($1::text[], $2::text[], $3::text[]) as e (t, a, p)`

// payload is JSON that does not survive being parsed and written again.
func payload(random *rand.Rand, name string) string {
	oddities := []string{
		`1e400`, `9007199254740993`, `1.10`, `-0`, `"\u0000"`, `"\ud83d lone"`, `"zażółć gęślą jaźń 🐘"`, `"it''s \"quoted\" \\ here"`,
		`{"b":1,"a":2,"b":3}`, "[ ]", "{ \t\n }", `"</script>&"`,
	}
	return fmt.Sprintf(`{"n" : %q,  "odd":%s}`, name, oddities[random.IntN(len(oddities))])
}

// insert commits n events at once, of aggregates that take turns, and returns when they are committed.
func (w *world) insert(n int) {
	w.t.Helper()
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
		select case i % 2 when 0 then 'order' else 'invoice' end, 'b-' || i % 7, 'made', json_build_object('i', i)
		from generate_series(1, $1::int) i`, n)
}
