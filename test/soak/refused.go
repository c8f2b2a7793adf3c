//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// refuserCommand makes this program a connector, with the defaults of the product, whose one sink takes a millisecond and
// refuses every hundredth message once.
const refuserCommand = "refuser"

const refusedRate = 2000

// refused measures the latency of those that are not refused.
func (s *soak) refused(ctx context.Context) (err error) {
	const warmUp, seconds = 3, 30
	d, err := s.newDatabase(ctx, "refused", "sinks: [{name: events, type: stdout}]\n")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c, err := process.Start(filepath.Join(s.temporary, "refuser.log"), self, refuserCommand, "-dsn", s.postgres.DSN(d.name), "-name", d.name)
	if err != nil {
		return err
	}
	defer c.Kill()
	if err := d.streams(ctx, c); err != nil {
		return err
	}
	l, err := d.load(ctx, refusedRate)
	if err != nil {
		return err
	}
	defer l.cancel()
	if err := process.Pause(ctx, (warmUp+seconds)*time.Second); err != nil {
		return err
	}
	if err := l.stop(); err != nil {
		return err
	}
	for range 300 {
		done, err := value[int](ctx, d, "select count(*) from outbox_delivery_log where status = 'delivered'")
		if err != nil {
			return err
		}
		if done == l.count {
			break
		}
		if err := process.Pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	var count, refused int
	var p50, p99, all, each float64
	// The others: all that were not refused themselves, those that had to wait behind a refused one included.
	err = d.conn.QueryRow(ctx, `with deliveries as (
			select (e.payload ->> 'seq')::int % 100 = 0 as refused, l.duration_ms,
				extract(epoch from l.completed_at - pg_xact_commit_timestamp(e.xmin)) * 1000 as ms
			from event_outbox e join outbox_delivery_log l on l.event_id = e.id and l.status = 'delivered' where (e.payload ->> 'seq')::int > $1)
		select count(*), count(*) filter (where refused), percentile_cont(0.5) within group (order by ms) filter (where not refused),
			percentile_cont(0.99) within group (order by ms) filter (where not refused), max(ms) filter (where not refused),
			percentile_cont(0.99) within group (order by duration_ms) from deliveries`, warmUp*refusedRate).Scan(&count, &refused, &p50, &p99, &all, &each)
	if err != nil {
		return err
	}
	const name = "refused"
	s.report.most(name, "events missing", float64(l.count-warmUp*refusedRate-count), "", 0)
	s.report.tell(name, "refused once", float64(refused), "")
	s.report.tell(name, "p50 of the others", p50, "ms")
	s.report.most(name, "p99 of the others", p99, "ms", 40)
	s.report.tell(name, "the slowest of the others", all, "ms")
	s.report.tell(name, "p99 of a Deliver", each, "ms")
	return c.Stop(ctx)
}

// refuser refuses every hundredth message once.
type refuser struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

var errRefused = errors.New("not this time")

func (r *refuser) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if err := process.Pause(ctx, time.Millisecond); err != nil {
		return failAll(batch, fmt.Errorf("%w: %w", sinks.ErrUnavailable, err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	failed := map[sinks.Aggregate]struct{}{}
	for i := range batch {
		m := &batch[i]
		var err error
		if _, behind := failed[m.Aggregate()]; behind {
			err = sinks.ErrNotAttempted
		} else if r.refuses(m) {
			err = errRefused
			failed[m.Aggregate()] = struct{}{}
		}
		if err != nil && errs == nil {
			errs = make([]error, len(batch))
		}
		if err != nil {
			errs[i] = err
		}
	}
	return errs
}

func (r *refuser) refuses(m *sinks.Message) bool {
	number, _, _ := bytes.Cut(m.Event.Payload, []byte(","))
	if !bytes.HasSuffix(number, []byte("00")) {
		return false
	}
	_, again := r.seen[m.Event.ID]
	r.seen[m.Event.ID] = struct{}{}
	return !again
}

func failAll(batch []sinks.Message, err error) []error {
	errs := make([]error, len(batch))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

func (r *refuser) Close() error { return nil }

// runRefuser is the main function of the child.
func runRefuser(args []string) error {
	flags := flag.NewFlagSet(refuserCommand, flag.ContinueOnError)
	dsn := flags.String("dsn", "", "the database")
	name := flags.String("name", "", "of connector, slot and publication")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	key, err := router.ParseTemplate("{aggregate_id}")
	if err != nil {
		return err
	}
	r := &refuser{seen: map[string]struct{}{}}
	return connector.New(connector.Config{
		Name: *name,
		Source: connector.Source{
			DSN: *dsn, ReplicationDSN: *dsn, MaxConnections: 6, Slot: *name, Publication: *name,
			Table: "public.event_outbox", LedgerSchema: "public", Columns: decoder.DefaultColumns(),
		},
		Sinks: []connector.Sink{{Name: "events", Type: "stdout", Key: key, Topic: key, Open: func() (sinks.Sink, error) { return r, nil }}},
		Delivery: connector.DeliveryConfig{
			BatchSize: 500, Lanes: 4, Timeout: 30 * time.Second, DrainTimeout: 25 * time.Second,
			MaxRetries: 3, Retry: connector.Retry{Initial: time.Second, Max: 5 * time.Minute}, ParkAfter: 10 * time.Second,
			MaxInFlight: 32768, MaxInFlightBytes: 32 << 20, MaxEventBytes: 64 << 20,
		},
		Breaker: connector.BreakerConfig{Enabled: true, MaxFailures: 5, ResetTimeout: time.Minute},
		Metrics: monitoring.NewMetrics("pyairtable_outbox_", monitoring.NewRegistry()),
		Health:  &monitoring.Health{},
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}).Run(ctx)
}
