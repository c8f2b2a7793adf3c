//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

const (
	// cleanupRate is how many events a second are delivered while old rows are deleted, one a transaction.
	cleanupRate = 500
	// cleanupPairs is how often the latency is measured with deletion and without.
	cleanupPairs = 4
	// cleanupAge is retention.outbox: none of the events of the load gets so old.
	cleanupAge = time.Hour
	// shortestPhase is enough for a p99.
	shortestPhase = 10 * time.Second
	// shortestDeletion, in seconds, is how long the deletion of a share of the rows takes at least.
	shortestDeletion = 5
	// mostDisturbance is how many times the p99 without deletion the one with deletion may be.
	mostDisturbance = 1.5
)

// oldRows fills outbox and log with what was delivered two days ago.
const oldRows = `with e as (
		insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, metadata, created_at)
		select 'order', 'order-' || n % 5000, 'order.changed', ('{"seq": 0, "data": "' || repeat(md5(n::text), 15) || '"}')::json, '{"source": "soak"}',
			now() - interval '2 days' + n * interval '10 ms'
		from generate_series(1, $1::int) n returning id, created_at)
	insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, started_at, completed_at, duration_ms, commit_lsn, tx_index, epoch)
	select id, 1, 1, 'delivered', created_at, created_at, 1, '0/1', row_number() over (), 1 from e`

// startOld makes a database whose outbox has old rows that are settled. They were written before the slot was made, so no stream
// carries them.
func (s *soak) startOld(ctx context.Context) (d *database, r *servers.Redis, err error) {
	d, r, err = s.startRetention(ctx, "cleanup", cleanupAge)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close(ctx), r.Close())
		}
	}()
	if err := d.command(ctx, "destroy", "--yes"); err != nil {
		return nil, nil, err
	}
	process.Note("  writing %d old rows", s.rows)
	for day := 1; day <= 2; day++ {
		if _, err := d.conn.Exec(ctx, "select outbox_make_partitions(now() - $1::int * interval '1 day', 0)", day); err != nil {
			return nil, nil, err
		}
	}
	if _, err := d.conn.Exec(ctx, oldRows, s.rows); err != nil {
		return nil, nil, fmt.Errorf("write old rows: %w", err)
	}
	for _, statement := range []string{"vacuum analyze event_outbox", "vacuum analyze outbox_delivery_log", "checkpoint"} {
		if _, err := d.conn.Exec(ctx, statement); err != nil {
			return nil, nil, err
		}
	}
	return d, r, d.command(ctx, "init", "--backlog", "none")
}

func (d *database) command(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, d.cli, append(args, "--config", d.config())...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", args[0], err, out)
	}
	return nil
}

// cleanup measures the latency of a steady load while a million old rows are deleted, and while that pauses, in turn.
func (s *soak) cleanup(ctx context.Context) (err error) {
	d, redis, err := s.startOld(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(ctx), redis.Close()) }()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	arrived := consume(reading, redis.Addr())
	run := cleanupRun{database: d}
	if err := run.pause(ctx); err != nil {
		return err
	}
	c, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer c.Kill()
	l, err := d.load(ctx, cleanupRate)
	if err != nil {
		return err
	}
	defer l.cancel()
	if err := process.Pause(ctx, shortestPhase); err != nil {
		return err
	}
	if err := run.pairs(ctx, c); err != nil {
		return fmt.Errorf("%w\n%s", err, c.Log())
	}
	if err := errors.Join(l.stop(), arrived.await(ctx, l.count)); err != nil {
		return err
	}
	arrived.tell(&s.report, "cleanup", l.count)
	if err := run.tell(ctx); err != nil {
		return err
	}
	return c.Stop(ctx)
}

// phase is a stretch of time in which old rows were deleted, or were not.
type phase struct {
	seconds  float64
	deleted  int64
	p50, p99 float64
	cpu      time.Duration // of the connector and of its backends
	wal      int64
	vacuums  int64
}

type cleanupRun struct {
	*database
	with, without []phase
}

// cleanupLock is the lock under which each chunk is deleted (ledger/outbox_delete.go). Whoever holds it keeps everybody from deleting.
const cleanupLock = "('pg_attribute'::regclass::oid::int, 'event_outbox'::regclass::oid::bigint::int)"

func (r *cleanupRun) pause(ctx context.Context) error {
	_, err := r.conn.Exec(ctx, "select pg_advisory_lock"+cleanupLock)
	return err
}

func (r *cleanupRun) goOn(ctx context.Context) error {
	_, err := r.conn.Exec(ctx, "select pg_advisory_unlock"+cleanupLock)
	return err
}

// begin lets deletion go on, and waits until it has: the connector looks once a minute.
func (r *cleanupRun) begin(ctx context.Context, c *process.Child) error {
	then, err := r.reading(ctx, c)
	if err != nil {
		return err
	}
	if err := r.goOn(ctx); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < 3*time.Minute; {
		if err := process.Pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		now, err := r.reading(ctx, c)
		if err != nil || now.deleted > then.deleted {
			return err
		}
	}
	return errors.New("nothing is deleted")
}

// pairs has a share of the rows deleted, and then lets as much time pass without deletion.
func (r *cleanupRun) pairs(ctx context.Context, c *process.Child) error {
	total := int64(r.rows)
	for i := range int64(cleanupPairs) {
		if err := r.begin(ctx, c); err != nil {
			return err
		}
		until := total * (i + 1) / cleanupPairs
		with, err := r.measure(ctx, c, func(_ time.Time, deleted int64) bool { return deleted >= until })
		if err != nil {
			return err
		}
		if err := r.pause(ctx); err != nil {
			return err
		}
		if with.seconds < shortestDeletion {
			return fmt.Errorf("%d rows were deleted within %.1f s, too short for a p99: take more -rows", with.deleted, with.seconds)
		}
		length := max(time.Duration(with.seconds*float64(time.Second)), shortestPhase)
		without, err := r.measure(ctx, c, func(began time.Time, _ int64) bool { return time.Since(began) >= length })
		if err != nil {
			return err
		}
		if without.deleted > with.deleted/4 { // some are in the statistics late
			return fmt.Errorf("%d rows were deleted while that was to pause: is the lock of ledger/outbox_delete.go another one now?", without.deleted)
		}
		process.Note("  %d of %d deleted, %.0f/s; p99 with %.1f ms (p50 %.1f), without %.1f ms (p50 %.1f); %.0f s; vacuumed %d and %d times", until, total,
			float64(with.deleted)/with.seconds, with.p99, with.p50, without.p99, without.p50, with.seconds, with.vacuums, without.vacuums)
		r.with, r.without = append(r.with, with), append(r.without, without)
	}
	return r.goOn(ctx)
}

// measure measures until done says so, which hears of how many rows have been deleted in all.
func (r *cleanupRun) measure(ctx context.Context, c *process.Child, done func(began time.Time, deleted int64) bool) (p phase, err error) {
	began := time.Now()
	start, err := r.reading(ctx, c)
	if err != nil {
		return p, err
	}
	var end cleanupReading
	for {
		if err := process.Pause(ctx, 250*time.Millisecond); err != nil {
			return p, err
		}
		if end, err = r.reading(ctx, c); err != nil {
			return p, err
		}
		if done(began, end.deleted) {
			break
		}
		if time.Since(began) > 10*time.Minute {
			return p, fmt.Errorf("%d rows were deleted within 10 minutes", end.deleted-start.deleted)
		}
	}
	p.seconds = end.at.Sub(start.at).Seconds()
	p.deleted, p.cpu, p.wal, p.vacuums = end.deleted-start.deleted, end.cpu-start.cpu, end.wal-start.wal, end.vacuums-start.vacuums
	if err := process.Pause(ctx, time.Second); err != nil { // what was written last is being delivered
		return p, err
	}
	ms, err := r.latencies(ctx, start.at, end.at)
	p.p50, p.p99 = quantile(ms, 0.5), quantile(ms, 0.99)
	return p, err
}

type cleanupReading struct {
	at                    time.Time
	deleted, wal, vacuums int64
	cpu                   time.Duration
}

func (r *cleanupRun) reading(ctx context.Context, c *process.Child) (now cleanupReading, err error) {
	var backends []int
	err = r.conn.QueryRow(ctx, `select clock_timestamp(), n_tup_del, autovacuum_count, (select wal_bytes::bigint from pg_stat_wal),
			(select array_agg(pid) from pg_stat_activity where datname = current_database() and application_name like 'outbox-cdc%')
		from pg_stat_user_tables where relname = 'event_outbox'`).Scan(&now.at, &now.deleted, &now.vacuums, &now.wal, &backends)
	if err != nil {
		return now, err
	}
	for _, pid := range append(backends, c.PID()) {
		if used, err := process.CPUTime(pid); err == nil { // a connection may have ended meanwhile
			now.cpu += used
		}
	}
	return now, nil
}

func (r *cleanupRun) tell(ctx context.Context) error {
	const name = "cleanup"
	var ratios []float64
	var with, without phase
	for i := range r.with {
		ratios = append(ratios, r.with[i].p99/r.without[i].p99)
		with.add(r.with[i])
		without.add(r.without[i])
		r.report.tell(name, fmt.Sprintf("pair %d: p99 with deletion over without", i+1), ratios[i], "")
	}
	p := &r.report
	p.most(name, "p99 with deletion over without, median of the pairs", median(ratios), "", mostDisturbance)
	p.tell(name, "rows deleted", float64(with.deleted), "")
	p.tell(name, "that took", with.seconds, "s")
	p.tell(name, "at", float64(with.deleted)/with.seconds, "1/s")
	share := with.seconds / without.seconds
	rows := float64(with.deleted)
	p.tell(name, "CPU of connector and backends for a deleted row", (with.cpu.Seconds()-share*without.cpu.Seconds())*1e6/rows, "µs")
	p.tell(name, "WAL for a deleted row, vacuum not always with it", (float64(with.wal)-share*float64(without.wal))/rows, "B")
	p.tell(name, "CPU while deleting, of one core", 100*with.cpu.Seconds()/with.seconds, "%")
	p.tell(name, "CPU otherwise, of one core", 100*without.cpu.Seconds()/without.seconds, "%")
	return r.tellStatements(ctx, name)
}

func (p *phase) add(o phase) {
	p.seconds += o.seconds
	p.deleted += o.deleted
	p.cpu += o.cpu
	p.wal += o.wal
}

// median sorts the values and returns their median. There must be at least one value.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
