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
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Config is a connector. It was validated by whoever made it; all fields are required unless they say otherwise.
type Config struct {
	// Name of the connector, under which its sinks are known in outbox_processors.
	Name   string
	Source Source
	Sinks  []Sink
	// Abandoned are sinks of before whose parked events nobody wants.
	Abandoned []string
	// Routes are tried in their order, the first that fits an event is taken; none: every event goes to every sink.
	Routes   []Route
	Delivery DeliveryConfig
	Breaker  BreakerConfig
	Metrics  *monitoring.Metrics
	Health   *monitoring.Health
	Logger   *slog.Logger
	// Prepare is called before the first session, again until it has succeeded; it may be nil.
	Prepare func(context.Context) error
}

// Source is the outbox and its slot.
type Source struct {
	DSN            string
	ReplicationDSN string
	MaxConnections int // SQL connections; the replication connection is one more
	Slot           string
	Publication    string
	Table          string // schema.table
	LedgerSchema   string
	Columns        decoder.Columns
}

// Sink is a destination.
type Sink struct {
	Name string
	Type string
	// Description is kept in outbox_processors for people. It holds no secrets.
	Description json.RawMessage
	Topic, Key  router.Template
	// RenamedFrom is the name under which it was known before, or empty.
	RenamedFrom string
	// MaxRetries is Delivery's where it is nil.
	MaxRetries *int
	// OneTry: what is not accepted at the first try is discarded.
	OneTry bool
	// Open makes the sink; the connector closes it at the end of the session.
	Open func() (sinks.Sink, error)
}

// Route sends the events that it matches to sinks, under their names; Topic and Key of a sink are its own unless the
// route has some.
type Route struct {
	Match      router.Match
	Sinks      []string
	Topic, Key *router.Template
}

// DeliveryConfig says how events are delivered.
type DeliveryConfig struct {
	BatchSize    int // messages a Deliver at most
	Lanes        int // a sink
	Timeout      time.Duration
	DrainTimeout time.Duration
	MaxRetries   int
	Retry        Retry
	// ParkAfter is how long a sink may make the others wait before its arrivals are parked. 0: nothing is ever parked, and
	// what is not accepted is tried again in place, while the slot waits.
	ParkAfter time.Duration
	// GiveUpAfter is how long a delivery is tried; 0: for ever.
	GiveUpAfter time.Duration
	// Block: a dead letter holds its aggregate until a person acts.
	Block bool
	// What may be read and not settled: events, and bytes of them.
	MaxInFlight      int
	MaxInFlightBytes int
	// A larger event becomes a dead letter without its payload.
	MaxEventBytes int
}

func (d *DeliveryConfig) parksNothing() bool { return d.ParkAfter == 0 }

// unreachableFor is how long Run waits for PostgreSQL before the first session.
const unreachableFor = 30 * time.Second

// maxSessionWait is the longest wait between two sessions.
const maxSessionWait = 10 * time.Second

// Connector reads one outbox and delivers its events. Make it with New, run it once.
type Connector struct {
	cfg  Config
	pool *pgxpool.Pool

	sinks   map[string]*lastingSink            // by name
	tracker atomic.Pointer[checkpoint.Tracker] // of the running session, or of the last one if none runs

	progress progress
	outbox   outboxState
	lag      lagClock
	calls    *pgCalls

	walsender       walsenderState // only the keeper uses it
	unroutedLog     unroutedLog
	warned          []string      // the warnings of preflight that are in the log already
	lastStreamError repeatedError // the last error that came with a place in the WAL
}

// progress is how far Run has come. Only the goroutine of Run uses it.
type progress struct {
	prepared       bool // Config.Prepare has succeeded
	streamedBefore bool // some session has streamed
	streamedNow    bool // the running session, or the last one if none runs, has streamed
	standingBy     bool // the log says that another process has the slot
}

// outboxState is what the connector saw when it last looked at the outbox in PostgreSQL's catalog. Preflight writes it before
// a session, the keeper during one; the reader reads only oid.
type outboxState struct {
	oid                uint32 // of the outbox, as preflight found it
	publicationVersion string // empty before the first look
	lostName           string // why the table that is streamed no longer has the outbox's name; empty if it has
}

// lagClock holds the moments from which the lag is counted while the tracker alone cannot know it. Times are Unix nanoseconds,
// and 0 means that the state has not come up.
type lagClock struct {
	unreadSince atomic.Int64 // since when no session reads the stream
	othersRead  atomic.Bool  // another process was seen to read it since then
	silentSince atomic.Int64 // since when the walsender has taken none of our status messages
}

// New makes a connector. It connects to nothing.
func New(cfg Config) *Connector { return &Connector{cfg: cfg, calls: newPGCalls()} }

// lastingSink is the part of a sink's state that outlives a session.
type lastingSink struct {
	breaker *breaker
	paused  atomic.Bool // by a person
	state   *sinkState
}

func (c *Connector) makeSinks() {
	c.sinks = map[string]*lastingSink{}
	for _, s := range c.cfg.Sinks {
		never := c.cfg.Delivery.parksNothing()
		state := newSinkState(observedSink{
			name: s.Name, inPlace: never || s.OneTry, health: c.cfg.Health, metrics: c.cfg.Metrics.Sink(s.Name), logger: c.cfg.Logger,
		})
		life := &lastingSink{state: state}
		life.breaker = newBreaker(breakerOwner{name: s.Name, never: never, logger: c.cfg.Logger, changed: state.breakerIs}, c.cfg.Breaker)
		c.sinks[s.Name] = life
	}
}

// Run delivers until ctx ends and what is on the wire has been recorded: then its error is nil. A session that ends with
// an error is followed by another, from where the slot stands. Run itself ends with an error only for what no
// further try can mend; such an error has the method ExitCode() int, which returns one of the exit codes that the README lists.
func (c *Connector) Run(ctx context.Context) error {
	pool, err := c.openPool()
	if err != nil {
		return err
	}
	defer pool.Close()
	c.pool = pool
	// Events that the last minute's silence has kept from the log.
	defer func() { c.unroutedLog.report(time.Now().Add(unroutedEvery), c.cfg.Logger) }()
	c.makeSinks()
	defer func() {
		for _, s := range c.sinks {
			s.breaker.close()
		}
	}()
	c.cfg.Health.SetOnly("session", monitoring.Component{Detail: "starting"})
	started := time.Now()
	c.lag.unreadSince.Store(started.UnixNano())
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx)) // a drain may hang as well
	var watch sync.WaitGroup
	watch.Go(func() { c.watch(watching) })
	defer watch.Wait()
	defer stopWatching()
	failures := 0
	for {
		c.progress.streamedNow = false
		began, stood := time.Now(), c.confirmed()
		err := c.prepare(ctx)
		if err == nil {
			err = c.explainStreamError(ctx, c.session(ctx))
		}
		c.cfg.Metrics.Leader.Set(0)
		c.lag.unreadSince.CompareAndSwap(0, time.Now().UnixNano())
		c.showLag(time.Now())
		if ctx.Err() != nil {
			return c.stopped(err)
		}
		if c.progress.streamedNow && (c.confirmed() > stood || time.Since(began) > maxSessionWait) {
			failures = 0 // it did some good
		}
		if c.fatal(err) {
			c.cfg.Health.SetOnly("session", monitoring.Component{Detail: err.Error()})
			return err
		}
		if errors.Is(err, replication.ErrSlotInUse) {
			if err := c.standBy(ctx, err); err != nil {
				return nil // asked to stop while standing by
			}
			continue
		}
		if !c.progress.streamedBefore && Unreachable(err) && time.Since(started) > unreachableFor {
			return exitcode.Errorf(exitcode.Unavailable, "PostgreSQL was not reachable for %s: %w; start it, or correct host and port of source.dsn", unreachableFor, err)
		}
		failures++
		wait := Retry{Initial: 200 * time.Millisecond, Max: maxSessionWait}.delay(failures)
		c.cfg.Health.SetOnly("session", monitoring.Component{Detail: err.Error()})
		c.cfg.Logger.Warn("session ended; starting another", "slot", c.cfg.Source.Slot, "err", err, "wait", wait.String())
		c.pool.Reset() // its connections may be as dead as the session's
		if pause(ctx, wait) != nil {
			return nil
		}
	}
}

// confirmed is how far the last session has come; 0 before the first.
func (c *Connector) confirmed() pglogrepl.LSN {
	if t := c.tracker.Load(); t != nil {
		return t.Confirmed()
	}
	return 0
}

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

// stopped says how a stop went that was asked for.
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

// standBy waits a little before it asks for the slot again, for ever: PostgreSQL's slot is the lock.
func (c *Connector) standBy(ctx context.Context, why error) error {
	c.cfg.Health.SetRole(monitoring.RoleStandby)
	c.lag.othersRead.Store(true)
	c.lag.unreadSince.Store(time.Now().UnixNano())
	if !c.progress.standingBy {
		c.progress.standingBy = true
		c.cfg.Logger.Info("standing by", "slot", c.cfg.Source.Slot, "why", why)
	}
	c.cfg.Health.SetOnly("session", monitoring.Component{OK: true, Detail: "standing by: " + why.Error()})
	return pause(ctx, time.Second/2+rand.N(time.Second/2))
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
