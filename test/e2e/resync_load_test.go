package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// openTransaction is a transaction whose events have the time of its begin.
type openTransaction struct {
	t    testing.TB
	tx   pgx.Tx
	name string
	xid  string // if it has written something
}

// begins begins a transaction. As soon as it writes, it has a number, and whoever makes a slot waits for its end.
func (w *world) begins(name string) *openTransaction {
	w.t.Helper()
	conn := connect(w.t, w.dsn)
	w.t.Cleanup(func() { conn.Close(context.Background()) })
	tx, err := conn.Begin(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	o := &openTransaction{t: w.t, tx: tx, name: name}
	if _, err := tx.Exec(w.t.Context(), "select now()"); err != nil {
		w.t.Fatal(err)
	}
	return o
}

// writes writes two events, of aggregates of the load.
func (o *openTransaction) writes() {
	o.t.Helper()
	payload := fmt.Sprintf(`{"of": %q}`, o.name)
	if _, err := o.tx.Exec(o.t.Context(), insertEvents, []string{"order", "invoice"}, []string{"a-1", "a-2"}, []string{payload, payload}); err != nil {
		o.t.Fatal(err)
	}
	if err := o.tx.QueryRow(o.t.Context(), "select pg_current_xact_id()::xid::text").Scan(&o.xid); err != nil {
		o.t.Fatal(err)
	}
}

func (o *openTransaction) commits() {
	o.t.Helper()
	if err := o.tx.Commit(o.t.Context()); err != nil {
		o.t.Fatal(err)
	}
}

// making runs a command that makes a slot. The transactions are committed one after the other while it waits for them.
func (w *world) making(c *connector, open []*openTransaction, args ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.binary, append(args, "--config", c.config)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir}
	ended := make(chan error, 1)
	var out []byte
	go func() {
		var err error
		out, err = cmd.CombinedOutput()
		ended <- err
	}()
	for len(open) > 0 { // the server waits for them in any order
		eventually(w.t, 30*time.Second, "the slot's creation waits for a transaction", func() error {
			select {
			case err := <-ended:
				w.t.Fatalf("%s has not waited for the transaction %s: %v\n%s", args[0], open[0].name, err, out)
			default:
			}
			for i, o := range open {
				if ask[bool](w, "select exists (select from pg_locks where locktype = 'transactionid' and not granted and transactionid = $1::text::xid)", o.xid) {
					o.commits()
					open = slices.Delete(open, i, i+1)
					return nil
				}
			}
			return errors.New("it does not")
		})
	}
	if err := <-ended; err != nil {
		w.t.Fatalf("%s: %v\n%s", args[0], err, out)
	}
}

// The slot is made anew, or for the first time, under load. Transactions are open when it is made, whose events have times that the jobs have long
// passed when they commit. A kill interrupts the jobs.
func TestBacklogUnderLoad(t *testing.T) {
	t.Parallel()
	for name, makes := range map[string][]string{"resync": {"resync", "--yes"}, "init": {"init", "--backlog", "all"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{"stdout", "redis_stream"}})
			c := w.connector()
			load := w.load(load{writers: 4, aggregates: 5, rate: 200})
			if name == "resync" {
				c.start()
				w.deliveredAtLeast(30*time.Second, 100)
				c.kill()
				w.sampler.stop()
				w.exec("select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where slot_name = $1 and active", w.slot)
				w.exec("select pg_drop_replication_slot($1)", w.slot)
			} else {
				w.sampler.stop()
				c.does("destroy", "--yes")
			}
			w.insert(3000)
			early, late, begins, idle := w.begins("early"), w.begins("late"), w.begins("begins"), w.begins("idle")
			early.writes()
			late.writes()
			w.making(c, []*openTransaction{early, late}, makes...)
			begins.writes() // it has its number behind the slot, and its time from before
			w.sampler = startSampler(t, w.dsn, w.slot)
			c.start()
			eventually(t, 30*time.Second, "a job has begun", func() error {
				if n := ask[int](w, "select count(*) from outbox_backlog where walked > 0"); n == 0 {
					return errors.New("none has")
				}
				return nil
			})
			c.kill()
			c.start()
			w.jobDone(30*time.Second, "stdout")
			w.jobDone(30*time.Second, "redis_stream")
			begins.commits()
			idle.writes()
			idle.commits()
			passes(t, 300*time.Millisecond)
			load.stop()
			w.verify(expectation{faults: 2})
			w.jobsInOrder()
			c.does("verify")
			c.ready("leader")
			c.term()
		})
	}
}
