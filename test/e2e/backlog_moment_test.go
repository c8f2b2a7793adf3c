package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// 10,000 events with one created_at lose their slot. Two persons run resync at once, the ledger is locked for 20 s when the job begins, and a cleanup
// runs all the time, for which every row is old enough. It deletes nothing before the job is done, and everything afterwards.
func TestBacklogOfOneMoment(t *testing.T) {
	t.Parallel()
	const events = 10_000
	w := newWorld(t, worldOptions{delivery: map[string]any{"batch_size": 200}})
	w.batchSize = 200
	w.retention = map[string]any{"outbox": "1s"}
	c := w.connector()
	w.insert(events) // in one transaction, so with one time
	w.sampler.stop() // the slot is gone, and then ahead of its checkpoint until resync is done
	w.exec("select pg_drop_replication_slot($1)", w.slot)

	var both sync.WaitGroup
	var outputs [2]string
	var codes [2]exitcode.Code
	for i := range outputs {
		both.Go(func() { outputs[i], codes[i] = c.command(nil, "resync", "--config", c.config, "--yes") })
	}
	both.Wait()
	for i, code := range codes {
		if code != 0 && (codes[1-i] != 0 || !containsAll(outputs[i], []string{"lock"})) {
			t.Fatalf("exit codes %d\n%s\n%s", codes, outputs[0], outputs[1])
		}
	}
	if n := ask[int](w, "select count(*) from outbox_backlog where status <> 'done'"); n != 1 {
		t.Fatalf("%d jobs are to be done, want 1", n)
	}
	w.sampler = startSampler(t, w.dsn, w.slot)

	conn := connect(t, w.dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "begin; lock table outbox_delivery_log, outbox_backlog in share mode"); err != nil {
		t.Fatal(err)
	}
	c.start()
	began := time.Now()
	c.degraded("keeper:backlog", "lock")
	passes(t, 20*time.Second-time.Since(began))
	if n := ask[int](w, "select count(*) from outbox_backlog where status <> 'done'"); n != 1 {
		t.Errorf("the job was done before the ledger was locked, so the lock has tested nothing")
	}
	if _, err := conn.Exec(t.Context(), "rollback"); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the job is done", func() error {
		// One statement, so that both numbers are of one moment.
		got := ask[string](w, `select (select count(*) from outbox_backlog where status <> 'done') || ' jobs, ' || (select count(*) from event_outbox) || ' events'`)
		if got == "1 jobs, 10000 events" {
			return errors.New("it is not")
		}
		if got[0] == '1' {
			t.Fatalf("the cleanup has deleted something during the job: %s", got)
		}
		return nil
	})
	w.insert(5)
	w.verify(expectation{})
	eventually(t, 30*time.Second, "the outbox is empty", func() error {
		if n := ask[int](w, "select count(*) from event_outbox"); n > 0 {
			return fmt.Errorf("it has %d events", n)
		}
		return nil
	})
	c.ready("leader")
	c.term()
}
