//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// park inserts parked rows of a sink as the recorder does, at positions before everything that is streamed. If tries is 0
// they are untried, else they are due in an hour.
func (d *database) park(ctx context.Context, sink string, rows, tries int) error {
	_, err := d.conn.Exec(ctx, `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, tried_at, next_attempt_at,
			event, payload)
		select p.id, '0/1', n, i.id, hashint8extended(n % 5000, 0), 'parked', $3::int, case when $3 > 0 then now() end,
			case when $3 > 0 then now() + interval '1 hour' end,
			json_build_object('id', i.id, 'aggregate_type', 'order', 'aggregate_id', 'order-' || n % 5000, 'event_type', 'order.changed',
				'event_version', 1, 'metadata', json_build_object('source', 'soak')),
			convert_to('{"seq": ' || n || ', "data": "' || repeat(md5(n::text), 15) || '"}', 'UTF8')
		from outbox_processors p, generate_series(1, $2::int) n, lateral (select gen_random_uuid() as id, n as number) i
		where p.processor_name = $1`, sink, rows, tries)
	return err
}

// still starts a connector once, so that its sinks are registered, and ends it.
func (d *database) still(ctx context.Context) error {
	c, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer c.Kill()
	for range 500 {
		n, err := value[int](ctx, d, "select count(*) from outbox_processors where processor_name = 'redis'")
		if err != nil || n == 1 {
			return errors.Join(err, c.Stop(ctx))
		}
		if err := process.Pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("the connector does not register its sinks")
}

// memory compares the peak memory of a connector that catches up with few rows and of one that catches up with many.
func (s *soak) memory(ctx context.Context) error {
	const few = 10_000
	var peaks [2]int64
	for i, rows := range []int{few, s.rows} {
		var err error
		if peaks[i], err = s.peak(ctx, fmt.Sprintf("memory_%d", i), rows); err != nil {
			return err
		}
	}
	s.report.tell("memory", fmt.Sprintf("peak with %d parked rows", few), mebibytes(peaks[0]), "MiB")
	s.report.tell("memory", fmt.Sprintf("peak with %d parked rows", s.rows), mebibytes(peaks[1]), "MiB")
	s.report.most("memory", "the one over the other", float64(peaks[1])/float64(peaks[0]), "", 1.25)
	return nil
}

func (s *soak) peak(ctx context.Context, name string, rows int) (_ int64, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("it does not catch up"))
	defer cancel()
	p, err := s.startPair(ctx)
	if err != nil {
		return 0, err
	}
	defer p.close()
	d, err := s.newDatabase(ctx, name, p.configuration(s.reset))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	if err := errors.Join(d.still(ctx), d.park(ctx, "redis", rows, 0)); err != nil {
		return 0, err
	}
	began := time.Now()
	c, err := d.start(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Kill()
	for {
		left, err := value[bool](ctx, d, "select exists (select from outbox_parked)")
		if err != nil {
			return 0, err
		}
		if !left {
			break
		}
		if err := process.Pause(ctx, 500*time.Millisecond); err != nil {
			return 0, fmt.Errorf("%w\n%s", err, c.Log())
		}
	}
	s.report.tell("memory", fmt.Sprintf("caught up with %d rows at", rows), float64(rows)/time.Since(began).Seconds(), "1/s")
	peak, err := process.Memory(c.PID(), "VmHWM")
	return peak, errors.Join(err, c.Stop(ctx))
}

// idle counts the statements of a connector that gets no events and whose parked rows are not due.
func (s *soak) idle(ctx context.Context) (err error) {
	const seconds, rows, lanes, sinks = 120, 5000, 4, 2
	p, err := s.startPair(ctx)
	if err != nil {
		return err
	}
	defer p.close()
	d, err := s.newDatabase(ctx, "idle", p.configuration(s.reset)+"delivery: {retry: {initial: 1s, max: 2h}}\n")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	if _, err := d.conn.Exec(ctx, "create extension pg_stat_statements"); err != nil {
		return err
	}
	if err := errors.Join(d.still(ctx), d.park(ctx, "redis", rows, 1)); err != nil {
		return err
	}
	c, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer c.Kill()
	for { // until all lanes are live
		catching, err := d.metric(ctx, "lanes_catching_up", "redis")
		if err == nil && catching == 0 {
			break
		}
		if err := process.Pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	if _, err := d.conn.Exec(ctx, "select pg_stat_statements_reset()"); err != nil {
		return err
	}
	if err := process.Pause(ctx, seconds*time.Second); err != nil {
		return err
	}
	all, err := d.conn.Query(ctx, `select s.calls, regexp_replace(left(s.query, 200), '\s+', ' ', 'g') from pg_stat_statements s join pg_database b on b.oid = s.dbid
		where b.datname = current_database() and s.query ~ 'outbox_parked|event_outbox|outbox_delivery_log' and s.query !~ 'pg_stat_statements' order by 1 desc`)
	if err != nil {
		return err
	}
	defer all.Close()
	most := 0.0
	for all.Next() {
		var calls float64
		var query string
		if err := all.Scan(&calls, &query); err != nil {
			return err
		}
		process.Note("  %4.0f × %s", calls, query)
		most = max(most, calls)
	}
	if err := all.Err(); err != nil {
		return err
	}
	// Each lane of each sink may look five times in 120 s: at both ends as well.
	s.report.most("idle", fmt.Sprintf("the most frequent statement within %d s, %d lanes", seconds, lanes*sinks), most, "calls", (seconds/30+1)*lanes*sinks)
	total, err := value[float64](ctx, d, `select coalesce(sum(calls), 0)::float8 from pg_stat_statements s join pg_database b on b.oid = s.dbid
		where b.datname = current_database() and query !~ 'pg_stat_statements'`)
	s.report.tell("idle", "all statements", total, "calls")
	return errors.Join(err, c.Stop(ctx))
}
