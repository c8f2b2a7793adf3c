package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// An outbox by day, through a crash, with rows of today, of an old day and of a time that has no partition. The old day's partition goes
// with the next start, once its rows are gone; what was inserted into it and is still on its way arrives all the same.
func TestPartitionedOutbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}, partitioned: true})
	w.exec("select from outbox_make_event_partitions('2020-01-01 00:00Z', 0)")
	old := func(n int, at string) {
		w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'order', 'o-' || i % 7, 'made', json_build_object('i', i), $2::text::timestamptz from generate_series(1, $1::int) i`, n, at)
	}
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(20)
	old(20, "2020-01-01 12:00Z")
	old(10, "1999-01-01 12:00Z")
	w.deliveredAtLeast(10*time.Second, 50)
	c.kill()
	w.snapshot()
	w.insert(20)
	old(20, "2020-01-01 13:00Z")
	w.exec("delete from event_outbox where created_at >= '2020-01-01Z' and created_at < '2020-01-02Z'")
	c.start()
	c.ready("leader")
	w.deliveredAtLeast(10*time.Second, 90)
	eventually(t, 10*time.Second, "the old day's partition is dropped", func() error {
		if w.exec("select from pg_class where relname = 'event_outbox_20200101'") > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 100)
	w.verify(expectation{faults: 1})
	c.term()
}

// Settled days of a partitioned outbox are dropped whole, also while a sink is away that is still owed their events. They stay while a
// transaction that writes into the outbox is open, because PostgreSQL drops no partition beside one.
func TestRetentionDropsWholeDays(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}, partitioned: true})
	w.retention = map[string]any{"outbox": "1d", "ledger": "1d"}
	const days, each, owed, late = 3, 200, 50, 30
	var partitions []string
	insert := func(day, n int) string { // five, four and three days ago
		return fmt.Sprintf(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'order', 'o-' || i %% 7, 'made', json_build_object('i', i), date_trunc('day', now(), 'UTC') - interval '%d days' + i * interval '1 s' from generate_series(1, %d) i`, 5-day, n)
	}
	for day := range days {
		at := time.Now().UTC().AddDate(0, 0, day-5)
		w.exec("select from outbox_make_event_partitions($1::text::timestamptz, 0)", at.Format("2006-01-02 00:00Z"))
		w.exec(insert(day, each))
		partitions = append(partitions, "event_outbox_"+at.Format("20060102"))
	}
	left := func() int { return int(w.exec("select from pg_class where relname = any($1)", partitions)) }
	c := w.connector()
	c.start()
	c.ready("leader")
	w.deliveredAtLeast(10*time.Second, days*each)
	w.hook.status.Store(http.StatusServiceUnavailable)
	w.exec(insert(0, owed))
	w.parksAtLeast(15*time.Second, "webhook", owed)

	open, err := pgx.Connect(t.Context(), w.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close(context.Background())
	for _, statement := range []string{"begin", insert(2, late)} {
		if _, err := open.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	cleaned := func() string {
		t.Helper()
		out, code := c.command(nil, "cleanup", "--once", "--config", c.config)
		if code != 0 {
			t.Fatalf("exit code %d\n%s", code, out)
		}
		return out
	}
	if out := cleaned(); left() != days || !strings.Contains(out, fmt.Sprintf("pid %d", open.PgConn().PID())) {
		t.Errorf("%d days are left beside an open transaction\n%s", left(), out)
	}
	c.kill()
	if _, err := open.Exec(t.Context(), "commit"); err != nil {
		t.Fatal(err)
	}
	c.start()
	c.ready("leader")
	w.parksAtLeast(15*time.Second, "webhook", owed+late)
	eventually(t, 40*time.Second, "all days are dropped", func() error {
		out := cleaned()
		if n := left(); n > 0 {
			w.insert(1) // the slot moves on with what is written
			return fmt.Errorf("%d are left\n%s", n, out)
		}
		return nil
	})
	w.hook.status.Store(0)
	eventually(t, 30*time.Second, "what was dropped and is owed arrives", func() error {
		distinct := map[string]bool{}
		for _, d := range w.received("webhook") {
			if strings.HasPrefix(d.key, "o-") || strings.Contains(d.payload, `"i"`) {
				distinct[d.id] = true
			}
		}
		if n := len(distinct); n != days*each+owed+late {
			return fmt.Errorf("%d of %d have", n, days*each+owed+late)
		}
		return nil
	})
	c.term()
}
