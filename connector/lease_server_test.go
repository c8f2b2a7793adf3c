package connector

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// These tests show on a real server what PostgreSQL answers to the lease's question.

// hasLease reports whether the lanes of the running session may begin to deliver.
func (r *running) hasLease() bool {
	s := r.connector.running.Load()
	return s != nil && s.lease.wait(time.Now()) == 0
}

// An outbox without events writes nothing, so that only the lease can find that another process has taken over.
func TestIdleSessionFindsThatItIsFenced(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	r := b.run()
	b.waitFor("a lease", r.hasLease)
	b.exec("update outbox_checkpoints set epoch = epoch + 1") // as a successor does, and nothing else
	b.waitFor("another session", func() bool { return r.connector.Status().Sessions == 2 })
	if e := r.connector.Status().LastError; !strings.Contains(e, "another session has taken over") {
		t.Errorf("the session before ended with %q", e)
	}
	r.stop()
}

// A transaction that holds the checkpoint's row does not hold up the lease. A lock on the whole table does, and so does the end of the
// connection until there is another one: without a lease nothing is delivered and nothing is parked, and the session goes on.
func TestLeaseWhileTheLedgerIsLocked(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.cfg.Delivery.ParkAfter = time.Second
	r := b.run()
	b.waitFor("a lease", r.hasLease)
	b.exec("begin")
	b.exec("select from outbox_checkpoints for update")
	for until := time.Now().Add(leaseFor + time.Second); time.Now().Before(until); {
		if !r.hasLease() {
			t.Fatal("a locked row holds up the lease")
		}
		time.Sleep(10 * time.Millisecond) // between two checks
	}
	b.exec("rollback")

	b.exec("select pg_terminate_backend(pid) from pg_stat_activity where query like 'select epoch from %outbox_checkpoints%' and pid <> pg_backend_pid() and datname = current_database()")
	b.exec("begin")
	b.exec("lock table outbox_checkpoints")
	b.waitFor("no lease", func() bool { return !r.hasLease() })
	for i := range 20 {
		b.exec("savepoint one")
		b.event(fmt.Sprint(i), "e")
	}
	b.exec("commit")
	b.waitFor("a lease again", r.hasLease)
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "20")
	if parked, sessions := b.query("select count(*) from outbox_parked"), r.connector.Status().Sessions; parked != "0" || sessions != 1 {
		t.Errorf("%s parked, %d sessions", parked, sessions)
	}
	r.stop()
}

// A session that follows one that was killed delivers nothing for two seconds after it has raised the epoch. If it ends before that,
// its successor waits as well.
func TestFirstDeliverAfterAnUncleanEnd(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	began := make(chan time.Time, 10)
	b.setSink(func(context.Context, []sinks.Message) []error {
		began <- time.Now()
		return nil
	})
	b.event("a", "one")
	b.exec("update outbox_checkpoints set epoch = 6, recorder_pid = 1, recorder_started = now()") // of a process that did not sign off
	r := b.run()
	b.waitFor("a session", func() bool { return r.connector.running.Load() != nil })
	r.stop()
	if len(began) > 0 {
		t.Fatal("an event was delivered at once")
	}
	started := time.Now()
	r = b.run()
	b.waitFor("a session", func() bool { return r.connector.running.Load() != nil })
	alone := r.connector.running.Load().lease.notBefore
	if first := <-began; first.Before(alone) || first.Sub(started) < leaseFor {
		t.Errorf("the first event was delivered %s after the start, %s too early", first.Sub(started), alone.Sub(first))
	}
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "1")
	r.stop()
	b.event("a", "two")
	r = b.run()
	b.waitFor("a session", func() bool { return r.connector.running.Load() != nil })
	if s := r.connector.running.Load(); !s.lease.notBefore.IsZero() {
		t.Error("a session that follows one that has signed off waits")
	}
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "2")
	r.stop()
}
