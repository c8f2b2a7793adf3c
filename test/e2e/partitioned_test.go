package e2e

import (
	"context"
	"errors"
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

// Settled days of a partitioned outbox are dropped whole, also while a sink is away that is still owed their events. A day stays while a
// transaction that writes into it is open.
func TestRetentionDropsWholeDays(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}, partitioned: true})
	w.retention = map[string]any{"outbox": "1d", "ledger": "1d"}
	const days = 3 // five, four and three days ago
	day := func(n int) string { return time.Now().UTC().AddDate(0, 0, n-5).Format("2006-01-02") }
	partition := func(n int) string { return "event_outbox_" + strings.ReplaceAll(day(n), "-", "") }
	const insert = `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
		select 'order', 'o-' || i % 7, 'made', json_build_object('i', i), ($2::text || ' 12:00Z')::timestamptz + i * interval '1 s' from generate_series(1, $1::int) i`
	there := func(n int) bool { return w.exec("select from pg_class where relname = $1", partition(n)) > 0 }
	for n := range days {
		w.exec("select from outbox_make_event_partitions($1::text::timestamptz, 0)", day(n)+" 00:00Z")
	}
	c := w.connector()
	c.start()
	c.ready("leader")
	for n := range days {
		w.exec(insert, 200, day(n))
	}
	w.deliveredAtLeast(10*time.Second, 200*days)
	w.hook.status.Store(http.StatusServiceUnavailable)
	w.exec(insert, 50, day(0))
	w.parksAtLeast(15*time.Second, "webhook", 50)
	w.allPassedNow(20 * time.Second)

	open, err := pgx.Connect(t.Context(), w.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close(context.Background())
	for _, statement := range []string{"begin", strings.NewReplacer("$1::int", "30", "$2::text", "'"+day(2)+"'").Replace(insert)} {
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
	out := cleaned()
	if there(0) || there(1) || !there(2) || !strings.Contains(out, partition(0)) {
		t.Errorf("%s is there: %t, %s: %t, %s: %t\n%s", partition(0), there(0), partition(1), there(1), partition(2), there(2), out)
	}
	c.kill()
	if _, err := open.Exec(t.Context(), "commit"); err != nil {
		t.Fatal(err)
	}
	c.start()
	c.ready("leader")
	w.hook.status.Store(0)
	w.deliveredAtLeast(30*time.Second, 200*days+50+30)
	w.allPassedNow(20 * time.Second)
	if out := cleaned(); there(2) {
		t.Errorf("%s is there\n%s", partition(2), out)
	}
	if n := ask[int](w, "select count(*) from event_outbox"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	distinct := map[string]bool{}
	for _, d := range w.received("webhook") {
		distinct[d.id] = true
	}
	if len(distinct) != 200*days+50+30 {
		t.Errorf("the webhook got %d events, want %d", len(distinct), 200*days+50+30)
	}
	c.term()
}
