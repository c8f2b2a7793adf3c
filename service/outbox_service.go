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
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// firstSessionWait is how long Start waits for the first session once tables, publication and slot exist. If the session takes
// longer, Start returns nil all the same, and the connector goes on trying.
const firstSessionWait = 10 * time.Second

// OutboxService is a connector that runs within a service, together with the Wrapper by which the service writes its
// events. Its methods may be called concurrently.
type OutboxService struct {
	// Wrapper writes events in the transactions of the service's own database handle. It works whether the connector is started
	// or not.
	Wrapper *Wrapper
	// Outbox and WorkerManager report the state of the connector.
	Outbox        *Outbox
	WorkerManager *WorkerManager
	// EventBus is the event bus within the process. It is nil unless one was configured. Subscribe before Start: an event that
	// nobody has subscribed to counts as delivered.
	EventBus *EventBus

	db         *sql.DB
	cfg        config.Config
	sinks      []connector.Sink
	options    BuildOptions
	metrics    *prometheus.Registry
	registerer prometheus.Registerer // nil if metrics are off

	tally  tally // of the connector of the last Start, and those before
	recent *monitoring.Recent

	mu      sync.Mutex
	current *connectorRun // the one that runs, else the last one; nil before the first Start
}

// connectorRun begins with a Start and ends when the connector that it has started has ended.
type connectorRun struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when none of its goroutines runs any more
	err    error         // of the connector; set before done is closed
}

var errStopped = errors.New("stopped")

// NewOutboxService makes the service that c describes. It connects to nothing, and starts nothing before Start. db must lead to
// the same database as c. It stays the caller's, who closes it after Stop. The error lists all that is wrong with c, a line for
// each mistake.
func NewOutboxService(db *sql.DB, c OutboxServiceConfig) (*OutboxService, error) {
	return assemble(db, c, c.explicitEnviron())
}

// assemble is NewOutboxService with an environment, and with the mistakes that were found before. A variable OUTBOX_* of
// the environment prevails over the field of c, which prevails over DATABASE_URL and SERVICE_NAME.
func assemble(db *sql.DB, c OutboxServiceConfig, env environment, mistakes ...config.Mistake) (*OutboxService, error) {
	e, err := c.load(env, mistakes...)
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
	s.options = BuildOptions{
		Logger: logger, Health: &monitoring.Health{}, Stdout: os.Stdout, InProcess: e.openers, TracerProvider: c.TracerProvider,
		Metrics: monitoring.NewMetrics(e.config.Metrics.Prefix, s.metrics, withins(e.config)...), Status: s.status,
	}
	s.recent = monitoring.NewRecent(s.status, s.options.Health)
	s.metrics.MustRegister(monitoring.NewCollector(e.config.Metrics.Prefix, s.recent.Status))
	s.sinks, err = buildSinks(s.cfg, s.options)
	return s, err
}

// Start makes those of tables, publication and slot that are missing, as "outbox-cdc init" does, and starts the connector. It
// returns when the connector streams, or when it stands by because another replica streams. What the service commits from
// then on is delivered. If Start returns an error, nothing runs, and Start may be called again. The error may have a method
// ExitCode() int.
//
// After Start has returned nil, sinks and PostgreSQL may come and go: the connector tries again until Stop. It ends by itself
// only when no further try can help, for example when the slot is lost. GetStatus then says so.
func (s *OutboxService) Start() error {
	ctx, stop := context.WithCancelCause(context.Background())
	r := &connectorRun{cancel: stop, done: make(chan struct{})}
	if err := s.begin(r); err != nil {
		stop(nil)
		return err
	}
	logDatabase(s.options.Logger, s.cfg)
	if err := s.checkAndInit(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		s.end(r, nil)
		return err
	}
	c, err := Build(s.cfg, s.options)
	if err == nil && s.registerer != nil {
		if err = s.registerer.Register(s.metrics); err != nil {
			err = fmt.Errorf("register metrics: %w; give each connector of a process a Registerer of its own", err)
		}
	}
	if err != nil {
		s.end(r, nil)
		return err
	}
	s.tally.follow(c)
	go func() {
		var watching sync.WaitGroup
		watching.Go(func() { s.recent.Run(ctx) })
		err := c.Run(ctx)
		if s.registerer != nil {
			s.registerer.Unregister(s.metrics)
		}
		if err != nil && ctx.Err() == nil { // it ended by itself, so no Stop returns the error
			s.options.Logger.Error("the connector has ended", "err", err)
		}
		stop(nil)
		watching.Wait()
		s.end(r, err)
	}()
	return s.awaitSession(r)
}

// begin makes r the current run. It returns an error if another one has not ended.
func (s *OutboxService) begin(r *connectorRun) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isRunning() {
		return errors.New("the outbox is started already")
	}
	s.current = r
	s.options.Health.SetOnly("session", monitoring.Failed("starting"))
	return nil
}

// isRunning reports whether the current run has not ended. The caller holds mu.
func (s *OutboxService) isRunning() bool {
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

// end marks the run as ended, with the error of its connector.
func (s *OutboxService) end(r *connectorRun, err error) {
	r.cancel(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.err = err
	s.options.Health.SetRole("")
	why := "stopped"
	if err != nil {
		why = err.Error()
	}
	s.options.Health.SetOnly("session", monitoring.Failed(why))
	close(r.done)
}

// awaitSession waits for the first session, at most for firstSessionWait. It returns the error of a connector that ends before.
func (s *OutboxService) awaitSession(r *connectorRun) error {
	timer := time.NewTimer(firstSessionWait)
	defer timer.Stop()
	for {
		changed := s.options.Health.Changed()
		if s.options.Health.Report().Components["session"].Status == monitoring.LevelOK {
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

// checkAndInit makes sure that the service and the connector mean the same outbox, and makes what is missing in the database.
func (s *OutboxService) checkAndInit(ctx context.Context) error {
	if err := s.sameOutbox(ctx); err != nil {
		return replication.ExplainUnreachable(err)
	}
	err := replication.ExplainUnreachable(initialize(ctx, s.cfg, s.options.Logger))
	var pg *pgconn.PgError
	if exitcode.Of(err) == exitcode.Privilege || errors.As(err, &pg) && pg.Code == "42501" {
		return exitcode.Errorf(exitcode.Privilege, `%w; let "outbox-cdc init" make it all once, with an owner's login`, err)
	}
	return err
}

// sameOutbox refuses a service that writes its events into another database or another table than the connector reads.
// The two are configured apart from each other, and such events would never be delivered. If the service's search_path
// finds no event_outbox (yet), that is no error here: its Insert will report it. A view of that name is not checked, as
// it may lead to any table.
func (s *OutboxService) sameOutbox(ctx context.Context) error {
	// This statement runs with the service's own search_path. Names of PostgreSQL are written with their schema, so
	// that it cannot find something else under them.
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

// Stop ends the connector and waits for its end. First the connector waits, for at most 25 s (the default of
// delivery.drain_timeout), until what is being delivered is settled. If that takes longer, or if the connector has
// ended with an error before, Stop returns an error. Nothing is lost then, but some events may be delivered again.
//
// When Stop returns, no goroutine is left, except for a Publisher or a handler that goes on after its context has
// ended. Stop does nothing if the connector was never started or is stopped already.
func (s *OutboxService) Stop() error {
	s.mu.Lock()
	r := s.current
	s.mu.Unlock()
	if r == nil {
		return nil
	}
	r.cancel(errStopped)
	<-r.done
	return r.err
}
