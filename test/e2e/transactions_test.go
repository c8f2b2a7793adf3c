package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A transaction is all or nothing to PostgreSQL: after a crash in its middle all of it comes again, and the ledger
// knows what was delivered.
func TestLargeTransaction(t *testing.T) {
	t.Parallel()
	const events = 100_000
	w := newWorld(t, worldOptions{})
	w.batchSize = 200
	w.delivery["batch_size"] = w.batchSize
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(events)
	w.deliveredAtLeast(time.Minute, events/10)
	c.kill()
	w.snapshot()
	if n := w.delivered(); n == events {
		t.Fatalf("all were delivered before the kill")
	}
	c.start()
	w.verify(expectation{faults: 1})
	c.term()
}

// The rows of one COPY share an LSN.
func TestCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connector()
	c.start()
	c.ready("leader")
	conn := connect(t, w.dsn)
	defer conn.Close(context.Background())
	const rounds, rows = 3, 2000
	for round := range rounds {
		_, err := conn.CopyFrom(t.Context(), pgx.Identifier{"event_outbox"}, []string{"aggregate_type", "aggregate_id", "event_type", "payload"},
			pgx.CopyFromSlice(rows, func(i int) ([]any, error) {
				return []any{aggregateTypes[i%2], fmt.Sprint("c-", i%9), "copied", fmt.Sprintf(`{"i": %d}`, i)}, nil
			}))
		if err != nil {
			t.Fatal(err)
		}
		w.deliveredAtLeast(20*time.Second, round*rows+100)
		c.kill()
		c.start()
		w.deliveredAtLeast(20*time.Second, (round+1)*rows)
	}
	w.verify(expectation{faults: rounds})
	c.term()
}

// What was rolled back never happened; what happened in whichever way did.
func TestSavepointsAndRollbacks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.exec("create unique index on event_outbox (correlation_id)")
	columns := "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, correlation_id) "
	merge := "merge into event_outbox o using (values ('m1'), ('m2')) as v (c) on o.correlation_id = v.c " +
		"when not matched then insert (aggregate_type, aggregate_id, event_type, payload, correlation_id) values ('invoice', '8', 'merged', '{}', v.c)"
	if w.version() < 15 {
		merge = "select" // MERGE is of 15
	}
	for _, sql := range []string{
		// Half of a thousand subtransactions fail, some of them inside of others.
		`do $$ begin
			for i in 1 .. 1000 loop
				begin
					` + columns + `values ('order', i % 5, 'sub', json_build_object('i', i), 's' || i);
					if i % 2 = 0 then
						begin
							` + columns + `values ('order', i % 5, 'inner', '{}', 'i' || i);
							raise exception 'no';
						exception when raise_exception then
							if i % 4 = 0 then raise; end if;
						end;
					end if;
				exception when raise_exception then null;
				end;
			end loop;
		end $$`,
		"begin; " + columns + "values ('order', '1', 'never', '{}', 'r1'); rollback",
		"begin; " + columns + "values ('order', '1', 'first', '{}', 'x1'); savepoint a; " + columns + "values ('order', '1', 'never', '{}', 'x2'); " +
			"rollback to a; " + columns + "values ('order', '1', 'second', '{}', 'x3'); release a; commit",
		// Of twenty rows ten are there already.
		columns + "select 'invoice', i % 3, 'upserted', '{}', 'u' || i % 10 from generate_series(1, 20) i on conflict do nothing",
		"with kept as (" + columns + "values ('invoice', '7', 'cte', '{}', 'w1') returning id) select count(*) from kept",
		merge,
		// Deleted, truncated or changed later: they were committed all the same.
		"begin; " + columns + "values ('order', '9', 'gone at once', '[1,  2]', 'd1'); delete from event_outbox where correlation_id = 'd1'; commit",
		columns + "values ('order', '9', 'gone later', '[1,  3]', 'd2')",
		"delete from event_outbox where correlation_id = 'd2'",
		"update event_outbox set metadata = '{\"late\": true}' where correlation_id = 'x1'",
	} {
		w.exec(sql)
	}
	w.verify(expectation{})
	c.term()
}

// A transaction that began before others and commits after them, and after a crash.
func TestInterleavedTransactions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connector()
	c.start()
	c.ready("leader")
	late := make([]pgx.Tx, 3)
	for i := range late {
		conn := connect(t, w.dsn)
		defer conn.Close(context.Background())
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		late[i] = tx
	}
	total := 0
	for i, tx := range late {
		for j, tx := range late { // all of them write between the commits of the others
			if j < i {
				continue
			}
			types, ids, payloads := []string{"order", "invoice"}, []string{"b-1", "b-2"}, []string{fmt.Sprintf(`{"late":%d}`, j), `{}`}
			if _, err := tx.Exec(t.Context(), insertEvents, types, ids, payloads); err != nil {
				t.Fatal(err)
			}
			total += 2
		}
		for range 20 {
			w.insert(2)
			total += 2
		}
		open := 2 * (i + 1) * (len(late) - i) // written by those that have not committed
		w.deliveredAtLeast(20*time.Second, total-open)
		c.kill()
		w.snapshot()
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.start()
	}
	w.verify(expectation{faults: len(late)})
	if n := w.delivered(); n != total {
		t.Errorf("%d delivered, want %d", n, total)
	}
	c.term()
}
