package service

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// settleTime is how long Start waits for the first session once everything is in place. One that takes longer is tried
// again as any.
const settleTime = 10 * time.Second

// OutboxService is a connector within a service, and what the service writes its events with. Its methods may be called
// concurrently.
type OutboxService struct {
	// Wrapper writes events in the transactions of the service's own database handle. It works whether the service is started
	// or not.
	Wrapper *Wrapper
	// Outbox and WorkerManager tell how the connector does.
	Outbox        *Outbox
	WorkerManager *WorkerManager
	// EventBus is the one within the process; nil unless it was configured. Subscribe before Start: what nobody has subscribed
	// to counts as delivered.
	EventBus *EventBus

	db         *sql.DB
	cfg        config.Config
	sinks      []connector.Sink
	parts      Parts
	metrics    *prometheus.Registry
	registerer prometheus.Registerer // nil where metrics are off

	mu      sync.Mutex
	current *run // the last one
}

// run is from a Start to the end of what it started.
type run struct {
	stop context.CancelCauseFunc
	done chan struct{} // closed when nothing of it runs any more
	err  error         // with what the connector ended; not before done is closed
}

var errStopped = errors.New("stopped")

// NewOutboxService makes the service that c describes. Nothing is connected to and nothing runs before Start. The caller keeps
// db, which leads to the same database as the configuration, and closes it after Stop. The error tells all that is wrong with
// the configuration, a line each.
func NewOutboxService(db *sql.DB, c OutboxServiceConfig) (*OutboxService, error) {
	return newOutboxService(db, c, c.explicit())
}

func newOutboxService(db *sql.DB, c OutboxServiceConfig, environ []string, mistakes ...config.Mistake) (*OutboxService, error) {
	e, err := c.load(environ, mistakes...)
	if db == nil {
		err = errors.Join(errors.New("db: is nil; open the service's database first"), err)
	}
	if err != nil {
		return nil, err
	}
	logger := c.Logger
	if logger == nil {
		logger = slog.Default()
	}
	for _, w := range e.warnings {
		logger.Warn("configuration", "warning", w)
	}
	s := &OutboxService{
		Wrapper: outbox.NewWrapper(db), EventBus: e.bus,
		db: db, cfg: e.config, metrics: prometheus.NewRegistry(),
	}
	s.Outbox, s.WorkerManager = &Outbox{s}, &WorkerManager{s}
	if e.config.Metrics.Enabled {
		if s.registerer = c.Registerer; s.registerer == nil {
			s.registerer = prometheus.DefaultRegisterer
		}
	}
	s.parts = Parts{
		Logger: logger, Health: &monitoring.Health{}, Stdout: os.Stdout, InProcess: e.opens,
		Metrics: monitoring.NewMetrics(e.config.Metrics.Prefix, s.metrics),
	}
	s.sinks, err = buildSinks(s.cfg, s.parts)
	return s, err
}

// Start makes what is missing of tables, publication and slot, as "outbox-cdc init" does, and starts the connector. It
// returns when that streams, or stands by for another replica that does, so that what the service commits from
// then on is delivered. Its error may have ExitCode() int; then nothing runs, and Start may be called again.
//
// Once it has returned nil, sinks and PostgreSQL may come and go: the connector tries again, until Stop.
// What no further try can mend, such as a lost slot, ends it; then GetStatus says so.
func (s *OutboxService) Start() error {
	ctx, stop := context.WithCancelCause(context.Background())
	r := &run{stop: stop, done: make(chan struct{})}
	if err := s.enter(r); err != nil {
		stop(nil)
		return err
	}
	if err := s.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		s.end(r, nil)
		return err
	}
	c, err := Build(s.cfg, s.parts)
	if err == nil && s.registerer != nil {
		if err = s.registerer.Register(s.metrics); err != nil {
			err = fmt.Errorf("register metrics: %w; give each connector of a process a Registerer of its own", err)
		}
	}
	if err != nil {
		s.end(r, nil)
		return err
	}
	go func() {
		err := c.Run(ctx)
		if s.registerer != nil {
			s.registerer.Unregister(s.metrics)
		}
		if err != nil && ctx.Err() == nil { // nobody waits for it
			s.parts.Logger.Error("the connector has ended", "err", err)
		}
		s.end(r, err)
	}()
	return s.settle(r)
}

// enter lets one run at a time in.
func (s *OutboxService) enter(r *run) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running() {
		return errors.New("the outbox is started already")
	}
	s.current = r
	s.parts.Health.SetOnly("session", false, "starting")
	return nil
}

// running is called with mu held.
func (s *OutboxService) running() bool {
	if s.current == nil {
		return false
	}
	select {
	case <-s.current.done:
		return false
	default:
		return true
	}
}

func (s *OutboxService) end(r *run, err error) {
	r.stop(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.err = err
	s.parts.Health.SetRole("")
	why := "stopped"
	if err != nil {
		why = err.Error()
	}
	s.parts.Health.SetOnly("session", false, why)
	close(r.done)
}

// settle waits for the first session.
func (s *OutboxService) settle(r *run) error {
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	for {
		changed := s.parts.Health.Changed()
		if s.parts.Health.Report().Components["session"].OK {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil
		case <-r.done:
			if r.err != nil {
				return r.err
			}
			return errStopped
		}
	}
}

// prepare makes what a run needs.
func (s *OutboxService) prepare(ctx context.Context) error {
	if err := s.sameOutbox(ctx); err != nil {
		return unreachable(err)
	}
	err := unreachable(initialize(ctx, s.cfg, s.parts.Logger))
	var pg *pgconn.PgError
	if exitcode.Of(err) == exitcode.Privilege || errors.As(err, &pg) && pg.Code == "42501" {
		return exitcode.Errorf(exitcode.Privilege, `%w; let "outbox-cdc init" make it all once, with an owner's login`, err)
	}
	return err
}

// sameOutbox compares what the service writes with what the connector reads: they are configured apart from each other, and
// events in another database or table would never be delivered. Where the service's search_path finds no outbox (yet), its
// Insert will say so; where it finds a view, that leads wherever it does.
func (s *OutboxService) sameOutbox(ctx context.Context) error {
	// The search_path is the service's own, so what is PostgreSQL's is named with its schema.
	const where = `select pg_catalog.current_database(), system_identifier, coalesce((select oid::pg_catalog.int8 from pg_catalog.pg_class
			where oid operator(pg_catalog.=) pg_catalog.to_regclass($1::pg_catalog.text)
				and relkind operator(pg_catalog.=) any ('{r,p}'::pg_catalog."char"[])), 0)
		from pg_catalog.pg_control_system()`
	type place struct {
		database string
		system   int64
	}
	var ours, theirs place
	var table, streamed int64 // oids
	if err := s.db.QueryRowContext(ctx, where, "event_outbox").Scan(&ours.database, &ours.system, &table); err != nil {
		return fmt.Errorf("ask the service's database where it is: %w", err)
	}
	err := provision.WithConn(ctx, string(s.cfg.Source.DSN), source(s.cfg), func(conn *pgx.Conn) error {
		name := pgx.Identifier(strings.Split(s.cfg.Source.Table, ".")).Sanitize()
		return conn.QueryRow(ctx, where, name).Scan(&theirs.database, &theirs.system, &streamed)
	})
	switch {
	case err != nil:
		return err
	case ours != theirs:
		return exitcode.Errorf(exitcode.Config, "the service's *sql.DB leads to database %q of cluster %d, DatabaseURL (DATABASE_URL) to %q of %d: "+
			"what the service commits would not be delivered; let both lead to the same", ours.database, ours.system, theirs.database, theirs.system)
	case table != 0 && table != streamed:
		return exitcode.Errorf(exitcode.Config, "the search_path of the service's *sql.DB leads to another event_outbox than %s, which is streamed: "+
			"what the service commits would not be delivered; put its schema first", s.cfg.Source.Table)
	}
	return nil
}

// Stop ends the connector and waits until it has: what is being delivered is settled first, for at most the daemon's
// delivery.drain_timeout, 25 s. The error says that this was not to be had, or with what error the connector had ended before;
// nothing is lost, but some events may be delivered again. When it returns no goroutine is left, but for a Publisher's or a
// handler's that does not end with its context. Stop on what was never started, or is stopped, does nothing.
func (s *OutboxService) Stop() error {
	s.mu.Lock()
	r := s.current
	s.mu.Unlock()
	if r == nil {
		return nil
	}
	r.stop(errStopped)
	<-r.done
	return r.err
}
