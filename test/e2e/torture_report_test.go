package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// progress prints a line a minute.
func (r *torture) progress() {
	r.t.Helper()
	if time.Since(r.told) < time.Minute {
		return
	}
	r.told = time.Now()
	n := r.count()
	r.t.Logf("%s: %d of %d kills, %d of %d crashes, %d of %d lost slots, epoch %d", time.Since(r.began).Round(time.Second), n[killed], *tortureKills,
		n[crashed]+n[bothAtOnce], *tortureCrashes, n[lost], *tortureLosses, r.faults[len(r.faults)-1].epoch)
}

// count returns how often each fault has happened.
func (r *torture) count() map[fault]int {
	n := map[fault]int{}
	for _, m := range r.faults[1:] {
		n[m.kind]++
	}
	return n
}

// report prints how much was delivered between the faults. The ledger says which session has recorded a delivery.
func (r *torture) report(took time.Duration) {
	r.t.Helper()
	conn := connect(r.t, r.dsn)
	defer conn.Close(context.Background())
	rows, err := conn.Query(r.t.Context(), "select epoch, count(*) from outbox_delivery_log where status = 'delivered' group by epoch")
	if err != nil {
		r.t.Fatal(err)
	}
	between := make([]int, len(r.faults)-1) // between[i] counts what was delivered before fault i+1, and after fault i
	total, after := 0, 0
	var epoch int32
	var n int
	_, err = pgx.ForEachRow(rows, []any{&epoch, &n}, func() error {
		total += n
		i, _ := slices.BinarySearchFunc(r.faults, epoch, func(m mark, epoch int32) int { return int(m.epoch - epoch) })
		if i == len(r.faults) {
			after += n
		} else {
			between[i-1] += n
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	onJobs := 0 // sessions that have delivered nothing because they walked the outbox
	var each []int
	for i, n := range between {
		if n == 0 && r.faults[i+1].onJob {
			onJobs++
		} else {
			each = append(each, n)
		}
	}
	slices.Sort(each)
	count := r.count()
	r.t.Logf("PostgreSQL %s: %d kills, %d crashes and %d lost slots in %s; delivered between them: %d at least, median %d, %d at most; %d after the last one, %d in all",
		r.pg.Version(), count[killed], count[crashed]+count[bothAtOnce], count[lost], took.Round(time.Second), each[0], each[len(each)/2], each[len(each)-1], after, total)
	for _, m := range slices.Sorted(maps.Keys(r.moments)) {
		r.t.Logf("killed %s: %d", m, r.moments[m])
	}
	for _, l := range slices.Sorted(maps.Keys(r.losses)) {
		r.t.Logf("slot %s: %d", l, r.losses[l])
	}
	if count[lost] > 0 {
		r.t.Logf("%d of resync were killed; %d sessions ended before their job had found anything", r.resyncKills, onJobs)
	}
	if each[0] == 0 {
		r.t.Errorf("a session has delivered nothing, so its end has tested little")
	}
}

// keepEvidence keeps logs of a run that failed.
func (r *torture) keepEvidence() {
	if !r.t.Failed() {
		return
	}
	r.t.Logf("logs and events are in %s; they stay there if -artifacts was given", r.artifacts)
	for n, i := range r.instances {
		if i.running() {
			i.kill()
		}
		if err := os.CopyFS(filepath.Join(r.artifacts, fmt.Sprintf("connector-%d", n)), os.DirFS(i.dir)); err != nil {
			r.t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.artifacts, "postgres.log"), []byte(r.pg.Log()), 0o600); err != nil {
		r.t.Error(err)
	}
}

// keepEvents keeps what was compared, if something is wrong with it.
func (r *torture) keepEvents(e evidence) {
	r.t.Helper()
	if !r.t.Failed() {
		return
	}
	errs := []error{
		keep(filepath.Join(r.artifacts, "truth.txt"), e.truth), keep(filepath.Join(r.artifacts, "ledger.txt"), e.ledger),
		keep(filepath.Join(r.artifacts, "samples.txt"), e.samples), keep(filepath.Join(r.artifacts, "faults.txt"), r.faults),
	}
	for sink, all := range e.deliveries {
		errs = append(errs, keep(filepath.Join(r.artifacts, sink+".txt"), all))
	}
	if err := errors.Join(errs...); err != nil {
		r.t.Error(err)
	}
}

// keep writes a line for each.
func keep[T any](file string, all []T) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	out := bufio.NewWriter(f)
	for _, one := range all {
		fmt.Fprintf(out, "%+v\n", one)
	}
	return errors.Join(out.Flush(), f.Close())
}

// slowWriter keeps a transaction open for seconds before it commits, again and again: its rows are old when they come.
type slowWriter struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (r *torture) loadSlowly() *slowWriter {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &slowWriter{cancel: cancel}
	r.t.Cleanup(s.stop)
	w := writer{dsn: r.dsn, name: 99, aggregates: 20, random: rand.New(rand.NewPCG(r.random.Uint64(), 0))}
	s.done.Go(func() {
		for ctx.Err() == nil {
			_ = w.slowTransaction(ctx) // PostgreSQL crashes; the oracle knows what was committed
		}
	})
	return s
}

func (s *slowWriter) stop() {
	s.cancel()
	s.done.Wait()
}

// slowTransaction writes some events, waits, and writes some more.
func (w *writer) slowTransaction(ctx context.Context) error {
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	conn, err := pgx.Connect(ctx, w.dsn)
	if err != nil {
		wait(100 * time.Millisecond)
		return err
	}
	defer conn.Close(context.Background())
	until, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tx, err := conn.Begin(until)
	if err != nil {
		return err
	}
	if err := w.insert(until, tx, 1+w.random.IntN(3)); err != nil {
		return err
	}
	wait(time.Duration(w.random.IntN(5000)) * time.Millisecond)
	if err := w.insert(until, tx, 1+w.random.IntN(3)); err != nil {
		return err
	}
	return tx.Commit(until)
}
