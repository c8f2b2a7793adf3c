package e2e

import (
	"context"
	"testing"
	"time"
)

// Somebody locks a table of the ledger while a session begins, and while a job is at work. Health and log say who it is, and all goes on soon after
// the lock is gone.
func TestLockedTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	c := w.connector()
	w.insert(20)
	conn := connect(t, w.dsn)
	defer conn.Close(context.Background())
	sql := func(text string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	sql("set application_name = 'somebody'")
	sql("begin; lock table outbox_parked in access exclusive mode")
	c.start()
	c.failed("session", `application "somebody"`, "AccessExclusiveLock of public.outbox_parked")
	passes(t, 10*time.Second) // so that the waits between two tries have grown
	sql("rollback")
	c.readyWithin(12*time.Second, "leader")
	c.says("session ended; starting another", "AccessExclusiveLock of public.outbox_parked")
	c.term()

	w.sampler.stop() // the slot is made anew
	c.does("resync", "--yes")
	w.sampler = startSampler(t, w.dsn, w.slot)
	w.insert(20)
	sql("begin; lock table outbox_backlog in share mode")
	c.start()
	c.degraded("keeper:backlog of stdout", `application "somebody"`, "ShareLock of public.outbox_backlog")
	sql("rollback")
	c.ready("leader")
	w.jobDone(20*time.Second, "stdout")
	w.verify(expectation{})
	c.term()
}
