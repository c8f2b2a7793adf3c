package connector

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"go.opentelemetry.io/otel/trace"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/tracing"
)

// Config describes a connector. The caller has validated it. All fields are required unless their comment says otherwise.
type Config struct {
	// Name is the connector's name. outbox_processors lists its sinks under this name.
	Name   string
	Source Source
	Sinks  []Sink
	// Abandoned lists removed sinks whose parked events nobody wants any more. It may be empty.
	Abandoned []string
	// Routes are tried in order; the first match wins. If there are none, every event goes to every sink.
	Routes   []Route
	Delivery DeliveryConfig
	Breaker  BreakerConfig
	// Retention says what the connector deletes.
	Retention cleanup.Retention
	Metrics   *monitoring.Metrics
	Health    *monitoring.Health
	Logger    *slog.Logger
	// Tracer makes a span of each Deliver and of each transaction of the recorder. It is nil if nothing is traced, which then costs nothing.
	Tracer trace.Tracer
	// HTTP is where the process serves /status: host:port, or :port for all addresses. Other processes ask there. It may be empty.
	HTTP string
	// Status returns the state as the process shows it: that of this connector, with what those before it in the process have counted. If
	// it is nil, there were none.
	Status func() monitoring.Status
	// Prepare is called before the first session. If it fails, it is called again before the next try, until it has succeeded.
	// It may be nil.
	Prepare func(context.Context) error
	// Resync makes a slot anew that is lost. It returns provision.ErrSound if the slot is not lost. It is nil if a person has to do it.
	Resync func(context.Context) error
	// Predecessor is the connector before this one in the same process. It is zero for the first one.
	Predecessor Predecessor
	// LoginRefused is called each time when PostgreSQL or a sink refuses our login, from any goroutine. It must return at once. It may
	// be nil.
	LoginRefused func()
}

// Source says where the outbox, its slot and the ledger are.
type Source struct {
	DSN            string
	ReplicationDSN string
	MaxConnections int // of SQL; the replication connection comes on top
	Slot           string
	Publication    string
	Table          string // schema.table
	LedgerSchema   string
	Columns        decoder.Columns
	Failover       bool     // standbys are to have a copy of the slot
	OrderBy        []string // columns by which a backlog is walked
}

// Sink describes one destination.
type Sink struct {
	Name string
	Type string
	// Description is written to outbox_processors, for people. It holds no secrets.
	Description json.RawMessage
	Topic, Key  router.Template
	// Traced is what the spans of its deliveries say of it. It may be empty if nothing is traced.
	Traced tracing.Destination
	// RenamedFrom is the sink's former name, or empty if it had none. The sink takes over what the ledger has under that name.
	RenamedFrom string
	// Backlog says that the sink is given what the outbox holds already when the ledger first hears of the sink.
	Backlog bool
	// MaxRetries replaces Delivery.MaxRetries for this sink, unless it is nil.
	MaxRetries *int
	// Objective says how fast its events should be accepted, and which share of them.
	Objective Objective
	// OneTry means that a message is tried once, and discarded if the sink does not accept it.
	OneTry bool
	// Members returns the state of each member of a composite. It waits for nothing. It is nil for other sinks.
	Members func() []monitoring.MemberStatus
	// Open makes the sink. The connector calls it for each session, and closes the sink at the end of the session.
	Open func() (sinks.Sink, error)
}

// Route sends the events that it matches to the sinks that it names. The topic and key of the route, where it has them,
// replace those of the sink.
type Route struct {
	Match      router.Match
	Sinks      []string
	Topic, Key *router.Template
}

// DeliveryConfig says how events are delivered.
type DeliveryConfig struct {
	BatchSize    int // messages for one call of Deliver, at most
	Lanes        int // of each sink
	Timeout      time.Duration
	DrainTimeout time.Duration
	MaxRetries   int
	Retry        Retry
	// ParkAfter is how long a sink may make the others wait before its arrivals are parked. If it is 0, nothing is ever parked:
	// the lane keeps what its sink does not accept and tries it again, and the slot waits meanwhile.
	ParkAfter time.Duration
	// GiveUpAfter is how long a delivery is tried. 0 means for ever.
	GiveUpAfter time.Duration
	// DeadBlocks means that a dead letter holds its aggregate until a person acts.
	DeadBlocks bool
	// MaxInFlight and MaxInFlightBytes bound the window: how many events may be read and not yet settled, and their size.
	MaxInFlight      int
	MaxInFlightBytes int
	// MaxEventBytes is the size of the largest event. A larger one becomes a dead letter without its payload.
	MaxEventBytes int
}

// parksNothing reports whether the configuration says park_after: never.
func (d *DeliveryConfig) parksNothing() bool { return d.ParkAfter == 0 }

// policyFor says what becomes of messages that this sink does not accept.
func (d *DeliveryConfig) policyFor(s Sink) failurePolicy {
	switch {
	case s.OneTry:
		return discardFailed
	case d.parksNothing():
		return retryInPlace
	}
	return parkFailed
}

// unreachableFor is how long Run tries to reach PostgreSQL for its first session before it gives up.
const unreachableFor = 30 * time.Second

// maxSessionWait is the longest wait between two sessions.
const maxSessionWait = 10 * time.Second

// Connector reads one outbox and delivers its events. Make it with New, run it once.
type Connector struct {
	cfg    Config
	openDB func() (database, error) // Run calls it once
	db     database                 // of Run

	source  monitoring.SourceStatus
	logins  *logins
	sinks   map[string]*lastingSink            // by name; New makes them
	tracker atomic.Pointer[checkpoint.Tracker] // of the running session, or of the last one if none runs
	running atomic.Pointer[session]            // nil if none runs; only tests look at it
	maxHeld int                                // of each lane

	progress  progress
	outbox    outboxState
	lag       lagClock
	life      life
	noSink    noSinkCounts
	stages    stages
	outages   *outageLog
	published chan struct{} // wakes the session's publisher
	measured  measuredDatabase
	kept      keeperState
	calls     *pgCalls

	unroutedLog     unroutedLog
	oddMetadata     oddMetadata
	warned          []string      // the warnings of preflight that are in the log already
	lastStreamError repeatedError // the last error that came with a place in the WAL
	stuck           stuckPlace
}

// keeperState is what the keeper remembers from one session to the next.
type keeperState struct {
	cleaned  atomic.Pointer[monitoring.CleanupStatus] // the last pass
	results  resultsBatch
	accounts accounts
}

// progress is how far Run has come. Only the goroutine of Run uses it.
type progress struct {
	prepared     bool      // Config.Prepare has succeeded
	workedBefore bool      // some session has streamed, or this process has stood by: logins, database and rights were right
	streamedNow  bool      // the running session, or the last one if none runs, has streamed
	epoch        int32     // of the last session of this connector
	aloneFrom    time.Time // no other process has a lease from then on
	standingBy   bool      // the log says that another process has the slot
	resyncs      resyncs
}

// outboxState is what the connector saw when it last looked at the outbox in PostgreSQL's catalog. Preflight writes it before
// a session, the keeper during one; the reader reads only oid.
type outboxState struct {
	oid                uint32       // of the outbox, as preflight found it
	publicationVersion string       // empty before the first look
	publicationChanges atomic.Int64 // since then; Status reads it
	lostName           string       // why the table that is streamed no longer has the outbox's name; empty if it has
}

// New makes a connector. It connects to nothing.
func New(cfg Config) *Connector {
	c := newConnector(cfg, nil)
	c.openDB = func() (database, error) {
		p, err := openPostgres(cfg.Name, cfg.Source)
		if err == nil {
			p.logins, p.retention, p.process.HTTP = c.logins, cfg.Retention, cfg.HTTP
		}
		return p, err
	}
	return c
}

// newConnector makes a connector over another database than PostgreSQL, if the caller wants that.
func newConnector(cfg Config, open func() (database, error)) *Connector {
	c := &Connector{
		cfg: cfg, openDB: open, source: cfg.Source.status(cfg.Name), calls: newPGCalls(), maxHeld: maxHeld, logins: newLogins(cfg.Source), progress: progress{workedBefore: cfg.Predecessor.Worked},
	}
	c.makeSinks()
	return c
}

// lastingSink is the part of a sink's state that outlives a session.
type lastingSink struct {
	breaker   *breaker
	budget    *budget
	paused    atomic.Bool // by a person
	state     *sinkState
	objective *sinkResults
	job       shownJob
}

// makeSinks makes the part of each sink that outlives sessions.
func (c *Connector) makeSinks() {
	c.sinks = map[string]*lastingSink{}
	wake := make(chan struct{}, 1)
	c.published = make(chan struct{}, 1)
	c.outages = &outageLog{logger: c.cfg.Logger, wake: wake, noSink: &deathLog{wake: bells{wake}}}
	for _, s := range c.cfg.Sinks {
		parksNothing := c.cfg.Delivery.parksNothing()
		state := newSinkState(observedSink{
			name: s.Name, kind: s.Type, inPlace: parksNothing || s.OneTry, members: s.Members, health: c.cfg.Health, logger: c.cfg.Logger,
			login: c.cfg.LoginRefused, wake: bells{wake, c.published},
		})
		lasting := &lastingSink{state: state, objective: newSinkResults(s.Objective)}
		lasting.breaker = newBreaker(breakerOwner{name: s.Name, never: parksNothing, logger: c.cfg.Logger, changed: state.breakerIs}, c.cfg.Breaker)
		lasting.budget = newBudget(func(suspect bool) { state.suspectIs(suspicion(suspect)) })
		c.sinks[s.Name] = lasting
		story := newSinkStory(state)
		story.goOn(c.cfg.Predecessor.Outages[s.Name])
		c.outages.sinks = append(c.outages.sinks, story)
	}
}

// Run delivers events until ctx ends. It then waits until the outcomes of the running Deliver calls are recorded, and returns
// nil. When a session ends with an error, Run begins another one, which starts where the slot stands. Run returns an error
// if no further try can help, if PostgreSQL could not be reached for the first session, or if the drain was not clean. Such
// an error may have the method ExitCode() int, which returns one of the exit codes that docs/operations.md lists.
func (c *Connector) Run(ctx context.Context) error {
	db, err := c.openDB()
	if err != nil {
		return err
	}
	defer db.close()
	c.db = db
	for _, s := range c.cfg.Sinks {
		// The first scrape shows the series, before there is a session: a rate misses the events with which a series appears.
		newLaneMeasures(c.cfg.Metrics, s.Name)
	}
	// unroutedLog reports once a minute at most. What it has counted since its last report goes into the log now.
	defer func() { c.unroutedLog.report(time.Now().Add(unroutedEvery), c.cfg.Logger) }()
	defer func() {
		for _, s := range c.sinks {
			s.breaker.close()
		}
	}()
	c.cfg.Health.SetOnly("session", c.cfg.Predecessor.firstHealth())
	started := time.Now()
	c.life.begins()
	defer c.life.roleIs("")
	c.lag.unreadSince.Store(started.UnixNano())
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx)) // a drain comes after ctx, and may hang as well
	var watch sync.WaitGroup
	watch.Go(func() { c.watch(watching) })
	watch.Go(func() { c.outages.run(watching) })
	defer watch.Wait()
	defer stopWatching()
	failures := 0
	for {
		c.progress.streamedNow = false
		began, stood := time.Now(), c.confirmed()
		err := c.prepare(ctx)
		if err == nil {
			err = c.explainStreamError(ctx, c.runSession(ctx))
		}
		err = c.explainLock(ctx, err)
		c.sessionEnded(err)
		c.noteLogin(err)
		if ctx.Err() != nil {
			return c.stopped(err)
		}
		if c.progress.streamedNow && (c.confirmed() > stood || time.Since(began) > maxSessionWait) {
			failures = 0 // the session has moved the slot, or has lasted: wait only briefly before the next one
		}
		if again, err := c.resync(ctx, err); again {
			if err != nil {
				return nil // asked to stop
			}
			continue
		}
		if c.fatal(err) {
			c.cfg.Health.SetOnly("session", monitoring.Failed(err.Error()))
			return err
		}
		if errors.Is(err, replication.ErrSlotInUse) {
			if c.slotIsOnItsWay(time.Since(started)) {
				_ = wait.For(ctx, slotRetry) // the next session sees that ctx has ended
				continue
			}
			if err := c.standBy(ctx, err); err != nil {
				return nil // asked to stop while standing by
			}
			continue
		}
		if !c.progress.workedBefore && replication.Unreachable(err) && time.Since(started) > unreachableFor {
			return exitcode.Errorf(exitcode.Unavailable, "PostgreSQL was not reachable for %s: %w; start it, or correct host and port of source.dsn", unreachableFor, err)
		}
		failures++
		pause := Retry{Initial: 200 * time.Millisecond, Max: maxSessionWait}
		if advisory.LockTimeout(err) {
			pause.Max = lockRetry
		}
		wait := pause.delay(failures)
		c.cfg.Health.SetOnly("session", monitoring.Failed(err.Error()))
		c.cfg.Logger.Warn("session ended; starting another", "slot", c.cfg.Source.Slot, "err", err, "wait", wait.String())
		c.db.reset() // the pool's connections may be as dead as the session's
		if c.waitSeen(ctx, wait) != nil {
			return nil
		}
	}
}

// waitSeen waits for d, or until other logins are there. It makes a connection meanwhile, so that others see that this process is there although
// it has no session. If ctx ends before, it returns an error that says why.
func (c *Connector) waitSeen(ctx context.Context, d time.Duration) error {
	until := time.Now().Add(d)
	connecting, cancel := context.WithDeadline(ctx, until)
	_ = c.db.appear(connecting) // if PostgreSQL is away, the next session says so
	cancel()
	return c.logins.sleep(ctx, time.Until(until))
}

// confirmed returns the LSN that the running session, or the last one, has confirmed. It is 0 before the first session.
func (c *Connector) confirmed() pglogrepl.LSN {
	if t := c.tracker.Load(); t != nil {
		return t.Confirmed()
	}
	return 0
}

// prepare calls Config.Prepare unless it has succeeded before.
func (c *Connector) prepare(ctx context.Context) error {
	if c.progress.prepared || c.cfg.Prepare == nil {
		return nil
	}
	c.calls.prepare.begin()
	defer c.calls.prepare.end()
	err := c.cfg.Prepare(ctx)
	c.progress.prepared = err == nil
	return err
}

// stopped logs how the last session ended after ctx had ended, and returns the error of Run. err is the session's error.
func (c *Connector) stopped(err error) error {
	switch {
	case err == nil || errors.Is(err, context.Canceled):
		c.cfg.Logger.Info("drained and stopped", "slot", c.cfg.Source.Slot)
		return nil
	case !c.progress.streamedNow:
		return nil // stopped before a session was under way: nothing to drain
	}
	c.cfg.Logger.Error("stopped without a clean drain", "slot", c.cfg.Source.Slot, "err", err)
	return err
}

// standBy notes that another process has the slot, and waits between half a second and a second. Run then tries to get the slot
// again, for ever: PostgreSQL gives a slot to one process at a time, so the slot is the lock between processes. The error
// is that of ctx.
func (c *Connector) standBy(ctx context.Context, why error) error {
	c.roleIs(monitoring.RoleStandby)
	c.lag.othersRead.Store(true)
	c.lag.unreadSince.Store(time.Now().UnixNano())
	c.progress.workedBefore = true
	if !c.progress.standingBy {
		c.progress.standingBy = true
		for _, sink := range c.sinks {
			sink.state.owedUnknown()
			sink.objective.forget()
		}
		c.cfg.Logger.Info("standing by", "slot", c.cfg.Source.Slot, "why", why)
	}
	c.cfg.Health.SetOnly("session", monitoring.OK("standing by: "+why.Error()))
	return wait.For(ctx, time.Second/2+rand.N(time.Second/2)) //nolint:gosec // a jitter: not all instances at the same time
}
