//go:build !containers

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// Somebody reads the outbox and the log for long, on the primary and on replicas, with and without hot_standby_feedback, and a replica
// lags. Rows go on being deleted, no insert and no delivery waits for cleanup, and partitions of the log go when their readers are through.
func TestRetentionBesideReaders(t *testing.T) {
	t.Parallel()
	pg := ownPostgres(t, map[string]string{"wal_keep_size": "256MB"})
	w := newRetentionWorld(t, pg)
	w.addOther()
	w.c.start()
	w.other.start()
	w.c.ready("leader")
	w.other.ready("leader")
	replica := func(feedback string) *servers.Postgres {
		t.Helper()
		r, err := servers.StartReplica(t.Context(), pg, map[string]string{"hot_standby_feedback": feedback, "max_standby_streaming_delay": "60s"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closes(t, r) })
		return r
	}
	feedback, plain := replica("on"), replica("off")
	reads := func(dsn string) (end func()) {
		t.Helper()
		conn := connect(t, dsn)
		t.Cleanup(func() { conn.Close(context.Background()) })
		for _, sql := range []string{"begin isolation level repeatable read", "select count(*) from event_outbox", "select count(*) from outbox_delivery_log"} {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		return func() { conn.Close(context.Background()) }
	}
	stop := w.insertsAlone()
	t.Cleanup(stop)
	goesOn := func(what string) {
		t.Helper()
		w.phase("%s", what)
		before := time.Now()
		w.steady(6*time.Second, 20, func(i int) (string, string) { return "order", fmt.Sprintf("steady-%d", i%10) })
		eventually(t, 15*time.Second, "old rows deleted while "+what, func() error {
			if n := ask[int](w.world, "select count(*) from event_outbox where created_at < now() - interval '4 s'"); n > 0 {
				return fmt.Errorf("%d rows are left: %s", n, w.lastReport())
			}
			return nil
		})
		t.Logf("it took %s", time.Since(before))
		w.byHand() // looks for what can be dropped, and the connector does so once a minute only
	}
	droppedSince := func(since int) {
		t.Helper()
		eventually(t, 20*time.Second, "partitions of the log dropped", func() error {
			w.byHand()
			return atLeast(ask[int](w.world, "select count(*) from dropped"), since+2)
		})
	}
	endPrimary := reads(w.dsn)
	drops := ask[int](w.world, "select count(*) from dropped")
	goesOn("a transaction on the primary reads")
	if n := ask[int](w.world, "select count(*) from dropped"); n > drops {
		t.Errorf("%d partitions of the log were dropped beside somebody who has read it", n-drops)
	}
	endPrimary()
	droppedSince(drops)
	endFeedback, endPlain := reads(feedback.DSN(w.database)), reads(plain.DSN(w.database))
	drops = ask[int](w.world, "select count(*) from dropped")
	goesOn("transactions on replicas read")
	droppedSince(drops) // the replicas wait for their readers, and the primary for nobody
	endFeedback()
	endPlain()
	for _, r := range []*servers.Postgres{feedback, plain} {
		conn := connect(t, r.DSN(w.database))
		defer conn.Close(context.Background())
		if _, err := conn.Exec(t.Context(), "select pg_wal_replay_pause()"); err != nil {
			t.Fatal(err)
		}
	}
	goesOn("the replicas lag")
	stop()
	w.ends()
	w.longestInsert(time.Second)
}
