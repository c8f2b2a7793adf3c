//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

const (
	// retentionRate is how many events a second the retention part writes by default, one a transaction.
	retentionRate = 2000
	// retentionAge is retention.outbox and retention.ledger. The latter cannot be less.
	retentionAge = time.Minute
	sampleEvery  = 10 * time.Second
	// settledAfter is when the sizes have to be constant.
	settledAfter = 3 * time.Minute
	// mostGrowth is how much larger than the smallest the largest of the sizes may be.
	mostGrowth = 1.2
)

// minutePartitions stands in for the function that makes partitions of the log by day: this one makes them by minute, for the
// minute of first and the fifteen after it. The connector calls it as it calls the other, and this program does as well.
const minutePartitions = `create or replace function public.outbox_make_partitions(first timestamptz default now(), days_ahead int default 7) returns int
	language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO' as $$
declare
	log  oid := 'public.outbox_delivery_log'::regclass;
	low  timestamptz;
	name text;
	made int := 0;
begin
	perform pg_advisory_xact_lock('pg_class'::regclass::oid::int, log::int);
	for i in 0 .. 15 loop
		low := date_trunc('minute', first) + i * interval '1 minute';
		name := 'outbox_delivery_log_' || to_char(low, 'YYYYMMDD_HH24MI');
		continue when to_regclass('public.' || name) is not null;
		execute format('create table public.%I (like public.outbox_delivery_log including constraints including storage)', name);
		execute format('alter table public.outbox_delivery_log attach partition public.%I for values from (%L) to (%L)', name, low, low + interval '1 minute');
		made := made + 1;
	end loop;
	return made;
end
$$`

// startRetention makes a database whose connector delivers to Redis and deletes what is a minute old.
func (s *soak) startRetention(ctx context.Context, name string, age time.Duration) (d *database, r *servers.Redis, err error) {
	r, err = servers.StartRedis(ctx, servers.RedisOptions{Settings: map[string]string{"appendonly": "no"}, Dir: s.dir})
	if err != nil {
		return nil, nil, err
	}
	configuration := fmt.Sprintf("retention: {outbox: %[1]s, ledger: %[1]s}\nsinks: [{name: redis, type: redis_stream, url: %[2]q}]\n", age, r.URL())
	if d, err = s.newDatabase(ctx, name, configuration); err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	if _, err := d.conn.Exec(ctx, "create extension pg_stat_statements"); err != nil {
		return nil, nil, errors.Join(err, r.Close(), d.close(ctx))
	}
	return d, r, nil
}

// retention lets a connector delete what is a minute old while events come at a steady rate.
func (s *soak) retention(ctx context.Context) (err error) {
	d, redis, err := s.startRetention(ctx, "retention", retentionAge)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(ctx), redis.Close()) }()
	for _, statement := range []string{
		`do $$ declare old regclass; begin
			for old in select inhrelid::regclass from pg_inherits where inhparent = 'outbox_delivery_log'::regclass loop
				execute format('drop table %s', old);
			end loop;
		end $$`, minutePartitions, "select outbox_make_partitions()",
	} {
		if _, err := d.conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	arrived := consume(reading, redis.Addr())
	c, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer c.Kill()
	l, err := d.load(ctx, s.retentionRate)
	if err != nil {
		return err
	}
	defer l.cancel()
	run := retentionRun{database: d}
	if err := run.watch(ctx, s.duration); err != nil {
		return fmt.Errorf("%w\n%s", err, c.Log())
	}
	s.report.least("retention", "delivered a second", arrived.rate(s.duration), "1/s", 0.95*float64(s.retentionRate))
	if err := errors.Join(l.stop(), arrived.await(ctx, l.count)); err != nil {
		return err
	}
	arrived.tell(&s.report, "retention", l.count)
	if err := run.tell(ctx); err != nil {
		return err
	}
	if err := run.empty(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, c.Log())
	}
	return c.Stop(ctx)
}

// retentionRun is what was measured every ten seconds.
type retentionRun struct {
	*database
	samples   []retentionSample
	latencies []float64
}

type retentionSample struct {
	at                          time.Duration // since the beginning
	outbox, log, parked, events int64         // bytes; rows of the outbox as the statistics have them
	dead                        int64         // rows
	vacuums                     int64
	wal                         int64 // bytes since the server's start
	p50, p99                    float64
}

func (r *retentionRun) watch(ctx context.Context, duration time.Duration) error {
	began := time.Now()
	from, err := r.now(ctx)
	if err != nil {
		return err
	}
	for time.Since(began) < duration {
		if err := process.Pause(ctx, time.Until(began.Add(time.Duration(len(r.samples)+1)*sampleEvery))); err != nil {
			return err
		}
		if _, err := r.conn.Exec(ctx, "select outbox_make_partitions()"); err != nil {
			return err
		}
		now := retentionSample{at: time.Since(began).Round(time.Second)}
		err := r.conn.QueryRow(ctx, `select pg_total_relation_size('event_outbox'),
				(select coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint from pg_inherits where inhparent = 'outbox_delivery_log'::regclass),
				pg_total_relation_size('outbox_parked'), n_live_tup, n_dead_tup, autovacuum_count, (select wal_bytes::bigint from pg_stat_wal)
			from pg_stat_user_tables where relname = 'event_outbox'`).
			Scan(&now.outbox, &now.log, &now.parked, &now.events, &now.dead, &now.vacuums, &now.wal)
		if err != nil {
			return err
		}
		to := from.Add(sampleEvery)
		ms, err := r.database.latencies(ctx, from, to)
		if err != nil {
			return err
		}
		from = to
		now.p50, now.p99 = quantile(ms, 0.5), quantile(ms, 0.99)
		r.latencies, r.samples = append(r.latencies, ms...), append(r.samples, now)
		process.Note("  %5s  outbox %6.1f MiB (%d rows, %d dead, vacuumed %d times)  log %5.1f MiB  parked %.1f MiB  p50 %.1f ms  p99 %.1f ms", now.at,
			mebibytes(now.outbox), now.events, now.dead, now.vacuums, mebibytes(now.log), mebibytes(now.parked), now.p50, now.p99)
	}
	return nil
}

// tell judges the sizes. A partition of a minute is dropped as a whole, so the log's size goes up and down each minute: what
// must be constant is the highest of each minute. The outbox is judged in the same way.
func (r *retentionRun) tell(ctx context.Context) error {
	const name = "retention"
	p := &r.report
	p.tell(name, "measured for", r.samples[len(r.samples)-1].at.Seconds(), "s")
	for _, size := range []struct {
		name string
		of   func(retentionSample) int64
	}{
		{"outbox", func(s retentionSample) int64 { return s.outbox }},
		{"log", func(s retentionSample) int64 { return s.log }},
	} {
		var minutes []int64 // the highest size of each minute that has begun and ended after settledAfter
		count := 0
		for _, s := range r.samples {
			if s.at <= settledAfter {
				continue
			}
			if count%int(time.Minute/sampleEvery) == 0 {
				minutes = append(minutes, 0)
			}
			count++
			minutes[len(minutes)-1] = max(minutes[len(minutes)-1], size.of(s))
		}
		if count%int(time.Minute/sampleEvery) != 0 {
			minutes = minutes[:len(minutes)-1]
		}
		if len(minutes) < 2 {
			process.Note("  too short to compare sizes: -duration must be at least %s", settledAfter+2*time.Minute)
			continue
		}
		p.tell(name, size.name+", highest in the first minute after the third", mebibytes(minutes[0]), "MiB")
		p.tell(name, size.name+", highest in the last minute", mebibytes(minutes[len(minutes)-1]), "MiB")
		p.most(name, size.name+": largest over smallest of the minutes' highest", float64(slices.Max(minutes))/float64(slices.Min(minutes)), "", mostGrowth)
	}
	first, last := r.samples[0], r.samples[len(r.samples)-1]
	p.tell(name, "most dead rows of the outbox", float64(slices.MaxFunc(r.samples, func(a, b retentionSample) int { return cmp.Compare(a.dead, b.dead) }).dead), "")
	p.tell(name, "autovacuums of the outbox", float64(last.vacuums), "")
	p.tell(name, "outbox_parked, at the end", mebibytes(last.parked), "MiB")
	p.tell(name, "WAL, full-page images with it", float64(last.wal-first.wal)/(last.at-first.at).Seconds()/float64(r.retentionRate), "B/event")
	p.tell(name, "p50 of delivery", quantile(r.latencies, 0.5), "ms")
	p.tell(name, "p99 of delivery", quantile(r.latencies, 0.99), "ms")
	return r.tellStatements(ctx, name)
}

// tellStatements reports what the statements cost that delete rows of the outbox.
func (d *database) tellStatements(ctx context.Context, part string) error {
	var calls, ms, rows, wal float64
	err := d.conn.QueryRow(ctx, `select coalesce(sum(calls), 0)::float8, coalesce(sum(total_exec_time), 0)::float8, coalesce(sum(wal_bytes), 0)::float8,
			(select n_tup_del::float8 from pg_stat_user_tables where relname = 'event_outbox')
		from pg_stat_statements s join pg_database b on b.oid = s.dbid where datname = current_database() and query ~ 'delete from .*event_outbox'`).
		Scan(&calls, &ms, &wal, &rows)
	if err != nil {
		return err
	}
	d.report.tell(part, "rows of the outbox deleted", rows, "")
	d.report.tell(part, "statements that delete them", calls, "")
	if rows > 0 {
		d.report.tell(part, "their time for a row", 1000*ms/rows, "µs")
		d.report.tell(part, "their WAL for a row", wal/rows, "B")
	}
	return nil
}

// empty waits until nothing is left of the outbox: every row was accounted for, and no row is beyond the prefix for good.
func (r *retentionRun) empty(ctx context.Context) error {
	began := time.Now()
	left := 0
	for time.Since(began) < 3*time.Minute {
		var err error
		if left, err = value[int](ctx, r.database, "select count(*) from event_outbox"); err != nil {
			return err
		}
		if left == 0 {
			break
		}
		if err := process.Pause(ctx, time.Second); err != nil {
			return err
		}
	}
	r.report.tell("retention", "end of the load until the outbox was empty", time.Since(began).Seconds(), "s")
	r.report.most("retention", "rows left in the outbox", float64(left), "", 0)
	return nil
}

// quantile sorts the values and returns their q-quantile; 0 if there are none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[int(q*float64(len(values)-1)+0.5)]
}
