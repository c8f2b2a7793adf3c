package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// loss is what happens to the slot.
type loss string

const (
	dropped   loss = "dropped"
	recreated loss = "dropped and made anew"
	advanced  loss = "advanced"
)

// loses kills both instances and does something to the slot, while events are written and transactions are open. Where a session cannot go on by
// itself, resync makes the slot anew. It is killed at random moments before it is let through.
func (r *torture) loses() {
	r.t.Helper()
	how := []loss{dropped, recreated, advanced}[r.random.IntN(3)]
	r.losses[how]++
	r.leader()
	passes(r.t, time.Duration(r.random.IntN(300))*time.Millisecond)
	// From here on until a session has reconciled slot and checkpoint the slot may be ahead.
	r.samples = append(r.samples, r.sampler.stop()...)
	for _, i := range r.instances {
		if i.running() {
			i.kill()
		}
		i.tap.disarm()
	}
	r.note(lost)
	eventually(r.t, time.Minute, "the slot is free", func() error {
		var free bool
		if err := r.query("select not active from pg_replication_slots where slot_name = $1", []any{r.slot}, &free); err != nil {
			return err
		}
		if !free {
			return errors.New("a session still streams")
		}
		return nil
	})
	passes(r.t, time.Duration(r.random.IntN(1000))*time.Millisecond) // with events that nobody has
	if how == advanced {
		r.exec("select pg_replication_slot_advance($1, pg_current_wal_insert_lsn())", r.slot)
	} else {
		r.exec("select pg_drop_replication_slot($1)", r.slot)
		if how == recreated {
			r.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", r.slot)
		}
		passes(r.t, time.Duration(r.random.IntN(500))*time.Millisecond)
		r.resync()
	}
	r.revive()
	r.session()
	r.progress()
	r.sampler = startSampler(r.t, r.dsn, r.slot)
}

// resync makes the slot anew. Most often it is killed first, perhaps more than once.
func (r *torture) resync() {
	r.t.Helper()
	for r.random.IntN(3) > 0 {
		_, _ = r.runResync(time.Duration(r.random.IntN(1500)) * time.Millisecond) // it was killed, or was faster than that
		r.resyncKills++
	}
	eventually(r.t, 3*time.Minute, "resync", func() error { // the one that was killed may still hold the lock
		if out, err := r.runResync(time.Minute); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

// runResync runs resync, and kills it after a while.
func (r *torture) runResync(after time.Duration) (output string, err error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), after)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.binary, "resync", "--config", r.instances[0].config, "--yes")
	cmd.Env = []string{"HOME=" + r.instances[0].dir}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// jobsDone waits until no job is left to do.
func (r *torture) jobsDone(patience time.Duration) {
	r.t.Helper()
	eventually(r.t, patience, "all jobs done", func() error {
		if n := ask[int](r.world, "select count(*) from outbox_backlog where status <> 'done'"); n > 0 {
			return fmt.Errorf("%d are not", n)
		}
		return nil
	})
}
