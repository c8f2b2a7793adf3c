//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

const (
	rate        = 2000 // one-row transactions a second
	warmUp      = 2 * rate
	loadSeconds = 20
)

type latencyResult struct {
	Sink   string  `json:"sink"`
	Events int     `json:"events"`
	Rate   float64 `json:"transactions_per_second"` // reached
	// P50, P99 and Max are the milliseconds from an event's commit to its acceptance, by PostgreSQL's clock. PostgreSQL takes
	// the time of a commit before it waits for the disk.
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
	// DeliverP50 and DeliverP99 are the part of it that the call of Deliver took.
	DeliverP50 float64 `json:"deliver_p50_ms"`
	DeliverP99 float64 `json:"deliver_p99_ms"`
	// InsertP50 and InsertP99 are how long the writers waited for their inserts. They show how slow disk and machine are.
	InsertP50  float64 `json:"insert_p50_ms"`
	InsertP99  float64 `json:"insert_p99_ms"`
	CPU        cpu     `json:"cpu_us_per_event"`
	PeakMemory int64   `json:"peak_memory_bytes"`
	Others     float64 `json:"others"`
	Quiet      bool    `json:"quiet"`
	Counts     counts  `json:"counts"`
}

// latency measures each sink in turn. If others use too much of the CPU meanwhile, it measures again: twice at most, or once
// if there are several sinks. The quietest measurement counts.
func (b *bench) latency(ctx context.Context) ([]latencyResult, error) {
	process.Note("latency: %d one-row transactions a second for %d s", rate, loadSeconds)
	best := make([]latencyResult, len(b.sinks))
	tries := 3
	if len(b.sinks) > 1 {
		tries = 2
	}
	for i := range tries {
		for s, sink := range b.sinks {
			if best[s].Quiet {
				continue
			}
			l, err := b.latencyOnce(ctx, sink)
			if err != nil {
				return best, fmt.Errorf("%s: %w", sink, err)
			}
			process.Note("  %s: p50 %.2f ms, p99 %.2f ms, others used %.1f %%", sink, l.P50, l.P99, 100*l.Others)
			all := l.Counts.add(best[s].Counts)
			if i == 0 || l.Others < best[s].Others {
				best[s] = l
			}
			best[s].Counts, best[s].Quiet = all, best[s].Others < b.others
		}
	}
	return best, nil
}

func (b *bench) latencyOnce(ctx context.Context, sink string, args ...string) (l latencyResult, err error) {
	l.Sink, l.Events = sink, rate*loadSeconds
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("it takes too long"))
	defer cancel()
	d, err := b.newDatabase(ctx, "latency", "ours")
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	to, err := b.start(ctx, sink, warmUp+l.Events)
	if err != nil {
		return l, err
	}
	defer to.Kill()
	if err := d.configure("ours", to.sink()); err != nil {
		return l, err
	}
	conns := make([]*pgx.Conn, process.Writers)
	for i := range conns {
		if conns[i], err = pgx.Connect(ctx, b.postgres.DSN(d.name)); err != nil {
			return l, err
		}
		defer conns[i].Close(ctx)
	}
	if err := d.settle(ctx); err != nil {
		return l, err
	}
	c, err := process.Start(filepath.Join(b.dir, "connector.log"), b.connector, append([]string{"run", "--config", d.config("ours")}, args...)...)
	if err != nil {
		return l, err
	}
	defer c.Kill()
	p := progress{database: d, name: "ours"}
	if err := p.await(ctx, c, func() bool { return p.recorder != nil && p.walsender != nil }); err != nil {
		return l, err
	}
	if _, err := load(ctx, conns, span{1, warmUp, rate}); err != nil {
		return l, err
	}
	then, err := p.used(c, to)
	if err != nil {
		return l, err
	}
	before, err := takeUsage()
	if err != nil {
		return l, err
	}
	waits, err := load(ctx, conns, span{warmUp + 1, warmUp + l.Events, rate})
	if err != nil {
		return l, err
	}
	after, err := takeUsage()
	if err != nil {
		return l, err
	}
	l.Others = after.othersSince(before)
	l.Rate = float64(l.Events) / after.at.Sub(before.at).Seconds()
	l.InsertP50, l.InsertP99 = quantile(waits, 0.5), quantile(waits, 0.99)

	for recorded := 0; recorded < warmUp+l.Events; {
		const ask = "select count(*) from outbox_delivery_log where status = 'delivered'"
		if err := d.conn.QueryRow(ctx, ask).Scan(&recorded); err != nil {
			return l, err
		}
		if err := process.Pause(ctx, 50*time.Millisecond); err != nil {
			return l, fmt.Errorf("%d events are in the ledger: %w\n%s", recorded, err, c.Log())
		}
	}
	now, err := p.used(c, to)
	if err != nil {
		return l, err
	}
	l.CPU = now.since(then).perEvent(l.Events)
	if l.PeakMemory, err = process.Memory(c.PID(), "VmHWM"); err != nil {
		return l, err
	}
	if err := c.Stop(ctx); err != nil {
		return l, err
	}
	const ask = `with deliveries as (
			select extract(epoch from l.completed_at - pg_xact_commit_timestamp(e.xmin)) * 1000 as ms, l.duration_ms
			from event_outbox e join outbox_delivery_log l on l.event_id = e.id and l.status = 'delivered'
			where (e.payload ->> 'seq')::int > $1)
		select percentile_cont(0.5) within group (order by ms), percentile_cont(0.99) within group (order by ms), max(ms),
			percentile_cont(0.5) within group (order by duration_ms), percentile_cont(0.99) within group (order by duration_ms)
		from deliveries`
	if err := d.conn.QueryRow(ctx, ask, warmUp).Scan(&l.P50, &l.P99, &l.Max, &l.DeliverP50, &l.DeliverP99); err != nil {
		return l, fmt.Errorf("read the latencies: %w", err)
	}
	l.Counts, err = d.check(ctx, to)
	return l, err
}

// insertOne writes the same columns as bench_insert. The writers share the machine with what is measured, so the statement
// computes nothing that an application would not compute in SQL: ids are made of the number, and the payload is a parameter.
const insertOne = `insert into event_outbox (aggregate_type, aggregate_id, event_type, event_version, payload, metadata, max_retries,
		tenant_id, correlation_id, causation_id)
	values ('order', 'order-' || $1::int % 5000, 'order.changed', 2, ('{"seq": ' || $1::int || $2::text)::json,
		'{"source": "bench"}', 5, 'tenant-' || $1::int % 20, 'correlation-' || $1::int, 'causation-' || $1::int)`

// span is the events with the numbers first to last, at a rate a second.
type span struct{ first, last, rate int }

// load inserts the events of a span, and returns how many milliseconds each insert took.
func load(ctx context.Context, conns []*pgx.Conn, s span) ([]float64, error) {
	g, ctx := errgroup.WithContext(ctx)
	queues := make([]chan int, len(conns))
	waits := make([]float64, s.last-s.first+1)
	payloads := process.Payloads()
	for i, conn := range conns {
		queues[i] = make(chan int, s.rate) // a server that falls a second behind does not stop the pacer
		g.Go(func() error {
			for n := range queues[i] {
				begin := time.Now()
				if _, err := conn.Exec(ctx, insertOne, n, payloads[n%len(payloads)]); err != nil {
					return fmt.Errorf("insert: %w", err)
				}
				waits[n-s.first] = float64(time.Since(begin)) / float64(time.Millisecond)
			}
			return nil
		})
	}
	g.Go(func() error {
		defer func() {
			for _, queue := range queues {
				close(queue)
			}
		}()
		return process.Pace(ctx, s.rate, len(waits), func(i int) error {
			n := s.first + i
			select {
			case queues[n%len(queues)] <- n:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	return waits, g.Wait()
}

// quantile sorts the values and returns their q-quantile. There must be at least one value.
func quantile(values []float64, q float64) float64 {
	slices.Sort(values)
	return values[int(q*float64(len(values)-1)+0.5)]
}

// median sorts the values and returns their median. There must be at least one value.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
