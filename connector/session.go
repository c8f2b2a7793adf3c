package connector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// recordWait bounds how long a session that ends tries to record the last outcomes.
const recordWait = 5 * time.Second

var (
	errDrainTimeout    = errors.New("delivery.drain_timeout has passed with messages on the wire: their outcome is unknown, they will be delivered again")
	errRecordTimeout   = errors.New("the time for the last outcomes has passed, their events will be delivered again")
	errRecorderStopped = errors.New("the server lets the recorder in no more")
)

// sessionDatabase is PostgreSQL as a session needs it.
type sessionDatabase interface {
	// openStream connects and starts to stream from where the slot stands.
	openStream(ctx context.Context) (sessionStream, replication.Identity, error)
	// takeOver takes ownership of the ledger from the session before. The slot must be ours. changed hears of each batch that changes
	// outbox_parked.
	takeOver(ctx context.Context, changed func([]ledger.RowChange)) (checkpoint.Ledger, ledger.Start, error)
	// slotPosition returns what the slot has confirmed, and how far the server has written.
	slotPosition(ctx context.Context) (confirmed, written pglogrepl.LSN, err error)
	// registerProcessors enters sinks into outbox_processors and returns their ids by name. If other sinks than the known ones still
	// have parked events, it changes nothing and returns how many, by name.
	registerProcessors(ctx context.Context, all []ledger.Processor, known []string) (ids map[string]int32, orphans map[string]int64, err error)
	// reviseParked makes the times of parked rows fit the configuration.
	reviseParked(ctx context.Context, processors []int32, policy ledger.ParkedPolicy) error
	activityReader
	backlogDatabase
	leaseDatabase
	// parkedRows returns what reads one lane's share of a sink's parked rows.
	parkedRows(processor int32, lane, lanes int) parkedReader
	// listen makes a connection that hears what people change.
	listen(ctx context.Context) (listener, error)
	// continueAt writes into the checkpoint of this epoch where the session goes on, and files jobs.
	continueAt(ctx context.Context, epoch int32, c ledger.Continuation) error
	// leave notes that a session has ended; see unsent.go.
	leave(ctx context.Context, d ledger.Departure) error
}

// sessionStream is the replication connection as a session needs it: *replication.Stream, or a test's.
type sessionStream interface {
	stream
	// Track says whose progress is reported from now on.
	Track(p replication.Progress)
	// Fast reports whether the stream is fast. It may be called by all goroutines.
	Fast() bool
	// AskKeepalive makes the stream ask the server for a keepalive. It may be called by all goroutines.
	AskKeepalive()
	// Broken reports whether the connection is lost or closed.
	Broken() bool
	// Close sends the last status, unless the stream is closed already.
	Close()
}

// session is the life of one replication connection.
type session struct {
	c        *Connector
	stream   sessionStream
	tracker  *checkpoint.Tracker
	recorder *checkpoint.Recorder
	reader   *reader
	lanes    []*lane
	bySink   map[int32][]*lane
	sinks    []sinks.Sink
	jobs     []*backlogJob
	checks   []*sinkCheck
	outcomes chan checkpoint.Outcomes
	confirm  *confirmClock
	lease    *lease
	recount  chan struct{} // asks keepCounts to count soon; holds one value
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
		return c.explainRefusal(err)
	}
	// The slot is ours until the stream is closed, which sends the last status. Then another process may have it.
	defer stream.Close()
	c.roleIs(monitoring.RoleLeader)
	s := &session{c: c, stream: stream, lease: newLease(), recount: make(chan struct{}, 1)}
	defer s.closeSinks()
	if err := s.begin(ctx, id, facts); err != nil {
		if s.recorder != nil {
			s.recorder.Close()
		}
		return err
	}
	stream.Track(s.confirm)
	return s.run(ctx)
}

// openStream starts to stream, within answerTimeout.
func (c *Connector) openStream(ctx context.Context) (sessionStream, replication.Identity, error) {
	c.calls.open.begin()
	defer c.calls.open.end()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return c.db.openStream(ctx)
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
	tables, start, err := s.c.db.takeOver(ctx, s.changed)
	s.c.calls.takeOver.end()
	if err != nil {
		return err
	}
	s.confirm = s.c.newConfirmClock(start.Confirmed)
	tables = s.c.traced(watchedLedger{tables, &s.c.calls.record, s.c.newRecordClock(s.confirm)})
	s.recorder = checkpoint.NewRecorder(tables, s.c.recorderConfig(s.stream.Fast))
	s.c.calls.build.begin()
	defer s.c.calls.build.end()
	h, err := s.c.readHistory(ctx, id, start, facts)
	if err != nil {
		return err
	}
	ids, err := s.c.registerProcessors(ctx, start.Prefix)
	if err != nil {
		return err
	}
	if start, err = s.c.settleHistory(ctx, h, start, ids); err != nil {
		return err
	}
	s.awaitPredecessor(start)
	s.confirm.beginAt(start.Confirmed)
	s.written = h.written
	return s.build(ctx, start, facts, ids)
}

// awaitPredecessor lets no Deliver begin before the session before this one has no lease any more, unless it has signed off, or was a
// session of this connector: that one has ended with all of its lanes.
func (s *session) awaitPredecessor(start ledger.Start) {
	p := &s.c.progress
	if !start.Ended && start.Epoch != p.epoch+1 {
		p.aloneFrom = time.Now().Add(leaseFor)
	}
	p.epoch, s.lease.notBefore = start.Epoch, p.aloneFrom // that session may have ended before this time
}

// crew are the goroutines of a session beside the reader's, and what ends them: see the contexts in doc.go.
type crew struct {
	lanes, recorder, keeper         errgroup.Group
	endReading, endDeliver, endWork context.CancelCauseFunc
}

// run starts all goroutines of the session and waits for them: reading, then draining. Its error says why the session has ended.
func (s *session) run(ctx context.Context) error {
	s.announce()
	reading, endReading := context.WithCancelCause(ctx)
	defer endReading(nil)
	apart := context.WithoutCancel(ctx)
	deliver, endDeliver := context.WithCancelCause(apart)
	defer endDeliver(nil)
	work, endWork := context.WithCancelCause(apart)
	defer endWork(nil)
	crew := &crew{endReading: endReading, endDeliver: endDeliver, endWork: endWork}
	s.startKeeper(reading, crew)
	s.startJobs(reading, crew)
	s.startLanes(work, deliver, crew)
	s.startRecorder(work, crew)
	s.c.running.Store(s)
	defer s.c.running.Store(nil)

	err := s.reader.read(reading)
	s.reader.settleBefore(reading, err, s.c.cfg.Delivery.DrainTimeout)
	if reading.Err() != nil {
		err = context.Cause(reading) // why the reading was stopped says more than the error of the interrupted read
	}
	endReading(err)
	s.stopDelivering(err, crew)
	var seen sync.WaitGroup
	seen.Go(func() { s.staySeen(work, crew) })
	s.drain(crew)
	endWork(err)
	seen.Wait()
	_ = crew.keeper.Wait() // its error, if it had one, ended the reading
	recorded := crew.recorder.Wait()
	if crew.lanes.Wait() == nil && recorded == nil {
		s.leave(ctx)
	}
	s.leaveResults(ctx)
	switch {
	case ctx.Err() == nil:
		return err
	case recorded != nil: // this counts even if no Deliver was running, and the lanes waited only for the recorder
		return recorded
	case errors.Is(context.Cause(deliver), errDrainTimeout):
		return errDrainTimeout
	}
	return nil
}

// announce says in Status, health and log that the session streams.
func (s *session) announce() {
	c := s.c
	c.life.streams(s.reader.start.Epoch)
	c.progress.workedBefore, c.progress.streamedNow, c.progress.standingBy = true, true, false
	c.lag.othersRead.Store(false)
	if why, stuck := c.stuck.reason(); stuck { // the lag goes on counting as well
		c.cfg.Health.Set("stream", monitoring.Failed(why))
	} else {
		c.lag.unreadSince.Store(0)
	}
	c.cfg.Health.Set("session", monitoring.OK("streaming"))
	start := &s.reader.start
	c.cfg.Logger.Info("streaming", "slot", c.cfg.Source.Slot, "lsn", start.Confirmed.String(),
		"prefix", start.Prefix.String(), "settled_beyond", len(start.Settled))
}

// startKeeper starts what runs as long as the session reads: the slow rule, the lease, the listener, the counts, the cleanup, the results, the
// publisher and the keeper.
func (s *session) startKeeper(reading context.Context, crew *crew) {
	d := &s.c.cfg.Delivery
	if !d.parksNothing() && len(s.bySink) > 1 {
		slow := newSlowRule(s.tracker, &s.reader.waits, s.bySink, d.ParkAfter)
		slow.lease = s.lease
		crew.keeper.Go(func() error { slow.run(reading); return nil })
	}
	crew.keeper.Go(func() error {
		err := s.keepLease(reading)
		if err != nil {
			crew.endReading(err)
		}
		return err
	})
	crew.keeper.Go(func() error { s.c.listen(reading, s); return nil })
	crew.keeper.Go(func() error { s.c.keepCounts(reading, s); return nil })
	crew.keeper.Go(func() error { s.c.keepOldest(reading, s); return nil })
	crew.keeper.Go(func() error { s.c.keepClean(reading, s); return nil })
	crew.keeper.Go(func() error { s.c.keepResults(reading, s); return nil })
	crew.keeper.Go(func() error { s.c.keepAccounts(reading, s); return nil })
	for _, k := range s.checks {
		crew.keeper.Go(func() error { k.run(reading); return nil })
	}
	crew.keeper.Go(func() error { s.publish(reading); return nil })
	crew.keeper.Go(func() error {
		err := s.c.runKeeper(reading)
		if err != nil {
			crew.endReading(err)
		}
		return err
	})
}

// startLanes starts all lanes. The first one that fails ends the reading.
func (s *session) startLanes(work, deliver context.Context, crew *crew) {
	for _, l := range s.lanes {
		crew.lanes.Go(func() error {
			err := l.run(work, deliver)
			if err != nil {
				crew.endReading(err)
			}
			return err
		})
	}
}

// startJobs starts the unfinished jobs. They end with the reading. They belong to the lanes, because the recorder's channel is closed only
// when all of these have returned.
func (s *session) startJobs(reading context.Context, crew *crew) {
	for _, j := range s.jobs {
		crew.lanes.Go(func() error { j.run(reading); return nil })
	}
}

// startRecorder starts the recorder. If it fails, nothing can go on: a lane may wait to hand it outcomes.
func (s *session) startRecorder(work context.Context, crew *crew) {
	crew.recorder.Go(func() error {
		err := s.recorder.Run(work, s.tracker, s.outcomes)
		if checkpoint.ServerStopping(err) {
			err = fmt.Errorf("%w: %w", errRecorderStopped, err)
		}
		if err != nil {
			crew.endReading(fmt.Errorf("recorder: %w", err))
			crew.endWork(err)
		}
		return err
	})
}

// stopDelivering closes the lanes' channels, so that they start no further Deliver. The running ones go on, unless nothing can come of
// that. err is why the reading has ended.
func (s *session) stopDelivering(err error, crew *crew) {
	for _, l := range s.lanes {
		close(l.in)
	}
	if s.stream.Broken() || errors.Is(err, checkpoint.ErrFenced) { // another process may have the slot now
		crew.endDeliver(err)
	}
	if errors.Is(err, replication.ErrServerStopping) || errors.Is(err, errRecorderStopped) || errors.Is(err, errUnanswered) {
		// The server is shutting down and waits until we close the connection, or another process waits for the slot. Nothing can be
		// recorded any more.
		s.stream.Close()
		crew.endDeliver(err)
		crew.endWork(err)
	}
}

// drain waits until the running Deliver calls have ended and their outcomes are recorded. Meanwhile it reports to the server, also what
// this settles.
func (s *session) drain(crew *crew) {
	patience := s.c.cfg.Delivery.DrainTimeout
	drainTimer := time.AfterFunc(patience, func() { crew.endDeliver(errDrainTimeout) })
	defer drainTimer.Stop()
	// A lane may wait for a recorder that makes no progress.
	late := time.AfterFunc(patience+recordWait, func() { crew.endWork(errRecordTimeout) })
	defer late.Stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = crew.lanes.Wait() // run looks at their errors
		close(s.outcomes)
		t := time.AfterFunc(recordWait, func() { crew.endWork(errRecordTimeout) })
		defer t.Stop()
		_ = crew.recorder.Wait()
	}()
	for !s.stream.Broken() {
		if _, err := waitFor(context.Background(), s.stream, done); err == nil {
			return
		}
	}
	<-done
}

// staySeen makes a connection once the keeper has ended, so that others see that this process is there while it drains. The end of reading
// interrupts the keeper's queries, and with them their connections; the drain has none of the pool.
func (s *session) staySeen(work context.Context, crew *crew) {
	_ = crew.keeper.Wait()
	_ = s.c.db.appear(work)
}

// closeSinks closes the clients; the next session opens them anew.
func (s *session) closeSinks() {
	for i, sink := range s.sinks {
		if err := sink.Close(); err != nil {
			s.c.cfg.Logger.Warn("sink did not close", "sink", s.c.cfg.Sinks[i].Name, "err", err)
		}
	}
}
