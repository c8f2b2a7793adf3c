package connector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// recordWait bounds how long a session that ends tries to record the last outcomes.
const recordWait = 5 * time.Second

var (
	errDrainTimeout    = errors.New("delivery.drain_timeout has passed with messages on the wire: their outcome is unknown, they will be delivered again")
	errRecordTimeout   = errors.New("the time for the last outcomes has passed, their events will be delivered again")
	errRecorderStopped = errors.New("the server lets the recorder in no more")
)

// session is the life of one replication connection.
type session struct {
	c        *Connector
	stream   *replication.Stream
	tracker  *checkpoint.Tracker
	recorder *checkpoint.Recorder
	reader   *reader
	lanes    []*lane
	bySink   map[int32][]*lane
	sinks    []sinks.Sink
	outcomes chan checkpoint.Outcomes
	written  pglogrepl.LSN // how far the server had written when the slot was ours
}

// runSession runs one session, from preflight to the last standby status. Its error says why the session has ended; it is nil after a
// clean drain.
func (c *Connector) runSession(ctx context.Context) error {
	facts, err := c.preflight(ctx)
	if err != nil {
		return err
	}
	stream, id, err := c.openStream(ctx)
	if err != nil {
		return c.explainRefusal(err, replication.ReplicationDSNKey)
	}
	// The slot is ours until the stream is closed, which sends the last status. Then another process may have it.
	defer stream.Close()
	c.cfg.Health.SetRole(monitoring.RoleLeader)
	s := &session{c: c, stream: stream}
	defer s.closeSinks()
	if err := s.begin(ctx, id, facts); err != nil {
		if s.recorder != nil {
			s.recorder.Close()
		}
		return err
	}
	stream.Track(s.tracker)
	return s.run(ctx)
}

// openStream starts to stream.
func (c *Connector) openStream(ctx context.Context) (*replication.Stream, replication.Identity, error) {
	c.calls.open.begin()
	defer c.calls.open.end()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return replication.Open(ctx, replication.StreamConfig{
		DSN: c.cfg.Source.ReplicationDSN, Slot: c.cfg.Source.Slot, Publication: c.cfg.Source.Publication,
	})
}

// begin makes everything that run needs, and reports to the server meanwhile: the ledger may be locked, and a read may have to look at
// millions of parked rows.
func (s *session) begin(ctx context.Context, id replication.Identity, facts provision.Facts) error {
	var making sync.WaitGroup
	defer making.Wait() // we have to close what it has made
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	making.Go(func() { done <- s.makeReady(ctx, id, facts) })
	failure, err := waitFor(ctx, s.stream, done)
	return cmp.Or(err, failure)
}

// makeReady takes ownership of the ledger, then reads from it what the session needs.
func (s *session) makeReady(ctx context.Context, id replication.Identity, facts provision.Facts) error {
	s.c.calls.takeOver.begin()
	tables, start, err := ledger.Open(ctx, s.c.ledgerConfig())
	s.c.calls.takeOver.end()
	if err != nil {
		return err
	}
	s.recorder = checkpoint.NewRecorder(watchedLedger{tables, &s.c.calls.record}, s.c.recorderConfig(s.stream.Fast))
	s.c.calls.build.begin()
	defer s.c.calls.build.end()
	if s.written, err = s.c.checkHistory(ctx, id, start); err != nil {
		return err
	}
	return s.build(ctx, start, facts)
}

// checkHistory refuses a slot whose history is not the checkpoint's: what lies between the two may never have been delivered, or may be on
// another timeline. It returns how far the server has written.
func (c *Connector) checkHistory(ctx context.Context, id replication.Identity, start ledger.Start) (pglogrepl.LSN, error) {
	slot := c.cfg.Source.Slot
	const remedy = "; " + provision.StartAnew
	if id.SystemID != start.SystemIdentifier {
		return 0, exitcode.Errorf(exitcode.SlotLost, "slot %q belongs to the cluster with system identifier %s, the checkpoint to %s"+remedy, slot, id.SystemID, start.SystemIdentifier)
	}
	if id.Timeline != start.Timeline {
		return 0, exitcode.Errorf(exitcode.SlotLost, "slot %q is on timeline %d, the checkpoint on %d: the server was promoted"+remedy, slot, id.Timeline, start.Timeline)
	}
	var confirmed, written pglogrepl.LSN
	err := c.pool.QueryRow(ctx, "select confirmed_flush_lsn, pg_current_wal_insert_lsn() from pg_replication_slots where slot_name = $1", slot).
		Scan(&confirmed, &written)
	if err != nil {
		return 0, fmt.Errorf("ask where slot %q stands: %w", slot, err)
	}
	if confirmed > start.Confirmed {
		return 0, exitcode.Errorf(exitcode.SlotLost, "slot %q stands at %s, ahead of the checkpoint's %s: somebody else has moved or made it"+remedy, slot, confirmed, start.Confirmed)
	}
	// The server does not check what is reported to it: the slot would jump to this LSN, past all events to come.
	if start.Confirmed > written {
		return 0, exitcode.Errorf(exitcode.SlotLost, "the checkpoint of slot %q stands at %s, ahead of the server's %s: it is of another history"+remedy, slot, start.Confirmed, written)
	}
	return written, nil
}

// build makes everything that run starts. Nothing runs yet.
func (s *session) build(ctx context.Context, start ledger.Start, facts provision.Facts) error {
	c := s.c
	d := c.cfg.Delivery
	origin, err := c.origin()
	if err != nil {
		return err
	}
	seenBefore := s.written
	if start.Clean {
		seenBefore = 0
	}
	ids, err := c.registerProcessors(ctx)
	if err != nil {
		return err
	}
	s.tracker = checkpoint.NewTracker(d.MaxInFlight, d.MaxInFlightBytes, start.Prefix, start.Confirmed)
	c.tracker.Store(s.tracker)
	total := len(c.cfg.Sinks) * d.Lanes
	// There is room for the outcomes of all the Deliver calls that lanes may have unrecorded, so that a lane waits for the recorder only
	// when it parks.
	s.outcomes = make(chan checkpoint.Outcomes, total*maxUnrecorded+64)
	policy := ledger.ParkedPolicy{Longest: d.Retry.Max, DeadBlocks: d.DeadBlocks}
	if err := c.schema().ReviseParked(ctx, c.pool, slices.Collect(maps.Values(ids)), policy); err != nil {
		return err
	}
	routes := c.cfg.RouterRoutes(ids)
	byProcessor := map[int32][]*laneInput{}
	s.bySink = map[int32][]*lane{}
	for _, sc := range c.cfg.Sinks {
		id := ids[sc.Name]
		if err := s.openSink(sc, id, origin, seenBefore, routes); err != nil {
			return err
		}
		for _, l := range s.bySink[id] {
			byProcessor[id] = append(byProcessor[id], &laneInput{lane: l.in, processor: id})
		}
	}
	if err := c.readPaused(ctx, c.pool, s); err != nil {
		return err
	}
	s.reader = &reader{
		stream: s.stream, tracker: s.tracker, start: start, seenBefore: seenBefore, lanes: byProcessor, outcomes: s.outcomes,
		eventOverhead: len(c.cfg.Sinks) * deliverySize,
		decoder:       decoder.New(decoder.Table{OID: facts.Table.OID, Columns: c.cfg.Source.Columns}, d.MaxEventBytes),
		router:        router.New(routes),
		logger:        c.cfg.Logger,
		checkDrift:    c.checkDriftForReader,
		foreignTables: map[uint32]struct{}{}, unroutedLog: &c.unroutedLog,
		// These count events of no sink: the row was no event, or no route matches it.
		invalidRows: c.cfg.Metrics.EventsProcessed.WithLabelValues("none", "dead"),
		unrouted:    c.cfg.Metrics.EventsProcessed.WithLabelValues("none", "discarded"),
	}
	return nil
}

// openSink opens a sink and makes its lanes.
func (s *session) openSink(sc Sink, id int32, origin string, seenBefore pglogrepl.LSN, routes []router.Route) error {
	c, d := s.c, s.c.cfg.Delivery
	sink, err := sc.Open()
	if err != nil {
		return fmt.Errorf("open sink %q: %w", sc.Name, err)
	}
	s.sinks = append(s.sinks, sink)
	lasting := c.sinks[sc.Name]
	lasting.state.begin()
	shared := &sharedSink{
		sink: sink, name: sc.Name, id: id, origin: origin, oneTry: sc.OneTry, delivery: d,
		breaker: lasting.breaker, budget: lasting.budget, paused: &lasting.paused, state: lasting.state,
		metrics: c.cfg.Metrics.Sink(sc.Name), fast: s.stream.Fast, logger: c.cfg.Logger,
	}
	if sc.MaxRetries != nil {
		shared.delivery.MaxRetries = *sc.MaxRetries
	}
	own := router.Sink{Processor: id, Topic: sc.Topic, Key: sc.Key}
	for i := range d.Lanes {
		rows := rowSource{
			parked:  c.schema().NewParkedReader(c.pool, id, i, d.Lanes),
			address: addressOf(router.New(routes), own), seenBefore: seenBefore,
		}
		s.bySink[id] = append(s.bySink[id], newLane(shared, i, rows, s.outcomes))
	}
	s.lanes = append(s.lanes, s.bySink[id]...)
	shared.metrics.CatchingUp.Set(float64(d.Lanes))
	shared.metrics.Held.Set(0)
	lasting.breaker.attach(s.bySink[id])
	lasting.budget.attach(s.bySink[id])
	return nil
}

// run starts all goroutines of the session and waits for them: reading, then draining, then the last status.
func (s *session) run(ctx context.Context) error {
	c := s.c
	c.cfg.Metrics.Sessions.Inc()
	c.cfg.Metrics.Leader.Set(1)
	c.progress.streamedBefore, c.progress.streamedNow, c.progress.standingBy = true, true, false
	c.lag.othersRead.Store(false)
	c.lag.unreadSince.Store(0)
	c.cfg.Health.Set("session", monitoring.Component{OK: true, Detail: "streaming"})
	c.cfg.Logger.Info("streaming", "slot", c.cfg.Source.Slot, "lsn", s.reader.start.Confirmed.String(),
		"prefix", s.reader.start.Prefix.String(), "settled_beyond", len(s.reader.start.Settled))
	reading, stopReading := context.WithCancelCause(ctx)
	defer stopReading(nil)
	apart := context.WithoutCancel(ctx)
	deliver, endDeliver := context.WithCancelCause(apart)
	defer endDeliver(nil)
	work, endWork := context.WithCancelCause(apart)
	defer endWork(nil)

	var lanes, recorder, keeper errgroup.Group
	if !c.cfg.Delivery.parksNothing() && len(s.bySink) > 1 {
		slow := newSlowRule(s.tracker, &s.reader.waits, s.bySink, c.cfg.Delivery.ParkAfter)
		keeper.Go(func() error { slow.run(reading); return nil })
	}
	keeper.Go(func() error { c.listen(reading, s); return nil })
	for _, l := range s.lanes {
		lanes.Go(func() error {
			err := l.run(work, deliver)
			if err != nil {
				stopReading(err)
			}
			return err
		})
	}
	recorder.Go(func() error {
		err := s.recorder.Run(work, s.tracker, s.outcomes)
		if checkpoint.ServerStopping(err) {
			err = fmt.Errorf("%w: %w", errRecorderStopped, err)
		}
		if err != nil {
			stopReading(fmt.Errorf("recorder: %w", err))
			endWork(err) // a lane may wait to hand it outcomes
		}
		return err
	})
	keeper.Go(func() error {
		err := c.runKeeper(reading)
		if err != nil {
			stopReading(err)
		}
		return err
	})

	err := s.reader.read(reading)
	if reading.Err() != nil {
		err = context.Cause(reading) // why the reading was stopped says more than the error of the interrupted read
	}
	stopReading(err)
	for _, l := range s.lanes {
		close(l.in)
	}
	if s.stream.Broken() { // another process may have the slot now
		endDeliver(err)
	}
	if errors.Is(err, replication.ErrServerStopping) || errors.Is(err, errRecorderStopped) {
		// The server is shutting down and waits until we close the connection. Nothing can be recorded any more.
		s.stream.Close()
		endDeliver(err)
		endWork(err)
	}
	drainTimer := time.AfterFunc(c.cfg.Delivery.DrainTimeout, func() { endDeliver(errDrainTimeout) })
	defer drainTimer.Stop()
	s.drain(&lanes, &recorder, endWork)
	endWork(err)
	_ = keeper.Wait() // its error, if it had one, ended the reading
	if lanes.Wait() == nil && recorder.Wait() == nil {
		s.leave(ctx)
	}
	if ctx.Err() == nil {
		return err
	}
	if err := recorder.Wait(); err != nil { // this counts even if no Deliver was running, and the lanes waited only for the recorder
		return err
	}
	if errors.Is(context.Cause(deliver), errDrainTimeout) {
		return errDrainTimeout
	}
	return nil
}

// drain waits until the running Deliver calls have ended and their outcomes are recorded. Meanwhile it reports to the server, also what
// this settles.
func (s *session) drain(lanes, recorder *errgroup.Group, endWork context.CancelCauseFunc) {
	done := make(chan struct{})
	// A lane may wait for a recorder that makes no progress.
	late := time.AfterFunc(s.c.cfg.Delivery.DrainTimeout+recordWait, func() { endWork(errRecordTimeout) })
	defer late.Stop()
	go func() {
		defer close(done)
		_ = lanes.Wait() // as above
		close(s.outcomes)
		t := time.AfterFunc(recordWait, func() { endWork(errRecordTimeout) })
		defer t.Stop()
		_ = recorder.Wait()
	}()
	for !s.stream.Broken() {
		if _, err := waitFor(context.Background(), s.stream, done); err == nil {
			return
		}
	}
	<-done
}

// closeSinks closes the clients; the next session opens them anew.
func (s *session) closeSinks() {
	for i, sink := range s.sinks {
		if err := sink.Close(); err != nil {
			s.c.cfg.Logger.Warn("sink did not close", "sink", s.c.cfg.Sinks[i].Name, "err", err)
		}
	}
}
