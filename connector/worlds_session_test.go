package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

// worldSession is a session over the world's PostgreSQL. It builds, runs and ends the same parts as session.go, without its connections.
type worldSession struct {
	w        *simulation
	n        int
	killed   atomic.Bool
	stopping atomic.Bool // the server shuts down: nothing can be recorded any more
	stream   *worldStream
	tracker  *checkpoint.Tracker
	recorder *checkpoint.Recorder
	reader   *reader
	lanes    []*lane
	bySink   map[int32][]*lane
	states   []*sinkState
	outcomes chan checkpoint.Outcomes
	// seenBefore is what the reader of the session has under this name.
	seenBefore pglogrepl.LSN

	stopReading, endDeliver, endWork context.CancelCauseFunc
}

var (
	errWorldKill   = errors.New("kill -9")
	errWorldBroken = errors.New("the replication connection is lost")
)

func (w *simulation) logger() *slog.Logger {
	if *worldsTrace {
		return slog.New(slog.NewTextHandler(os.Stdout, nil))
	}
	return slog.New(slog.DiscardHandler)
}

// sessions makes one session after the other.
func (w *simulation) sessions(ctx context.Context) {
	for n := 1; ctx.Err() == nil; n++ {
		r := w.random("session", n)
		if w.up() {
			w.newSession(ctx, n, r)
		}
		slept(ctx, r.between(timeUnit, 60*timeUnit))
	}
}

func (w *simulation) newSession(ctx context.Context, n int, r random) {
	s := &worldSession{w: w, n: n, bySink: map[int32][]*lane{}}
	w.mu.Lock()
	start := w.slot.confirmed // START_REPLICATION 0/0: the slot knows
	if start > w.ledger.confirmed {
		w.violation("slot", "it stands at %s, the checkpoint at %s", start, w.ledger.confirmed)
	}
	w.mu.Unlock()
	if !slept(ctx, r.between(timeUnit/5, 3*timeUnit)) {
		return
	}
	conn, from, err := w.ledger.open(n, &s.killed)
	if err != nil {
		return
	}
	if !slept(ctx, r.between(timeUnit/5, 2*timeUnit)) {
		return
	}
	if w.mu.Lock(); !from.Clean && len(w.wal) > 0 {
		s.seenBefore = w.wal[len(w.wal)-1].commit + 1
	}
	w.mu.Unlock()
	s.build(conn, from, start, r)
	w.trace("SESSION %d: slot %s, prefix %s, %d settled beyond, lanes %v", n, start, from.Prefix, len(from.Settled), w.lanes)
	s.run()
	s.countUnknown()
}

// countUnknown is called when a session has ended, in whatever way. What the session knew of a delivery and did not record, nobody knows
// from here on.
func (s *worldSession) countUnknown() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, k := range s.w.sinks {
		for _, a := range k.acceptances {
			if a.known == s.n && !a.committed {
				a.unknown++
			}
		}
	}
	s.w.trace("SESSION %d has ended", s.n)
}

func (s *worldSession) build(conn *worldConn, from ledger.Start, start pglogrepl.LSN, r random) {
	w, c := s.w, &s.w.cfg
	logger := w.logger()
	s.tracker = checkpoint.NewTracker(c.ring, 1<<30, from.Prefix, from.Confirmed)
	s.stream = newWorldStream(w, s.tracker, start, s.n)
	s.recorder = checkpoint.NewRecorder(conn, checkpoint.RecorderConfig{Fast: func() bool { return c.fast }, State: func(error) {}, Logger: logger})
	delivery := DeliveryConfig{
		BatchSize: c.batch, Timeout: 200 * timeUnit, DrainTimeout: 25 * time.Second, MaxRetries: c.maxRetries,
		Retry: Retry{Initial: time.Second, Max: 5 * time.Minute}, ParkAfter: 10 * time.Second, GiveUpAfter: c.giveUpAfter, DeadBlocks: c.block,
	}
	if c.never {
		delivery.ParkAfter = 0
	}
	total := 0
	for i := range w.sinks {
		if c.laneChange && r.chance(0.4) {
			w.lanes[i] = 1 + r.IntN(3)
		}
		total += w.lanes[i]
	}
	s.outcomes = make(chan checkpoint.Outcomes, total*maxUnrecorded+64)
	byProcessor := map[int32][]*laneInput{}
	metrics, health := monitoring.NewMetrics("", nil), &monitoring.Health{}
	for i := range w.sinks {
		id, name := processor(i), fmt.Sprint("sink", i)
		state := newSinkState(observedSink{name: name, inPlace: c.never || w.sinks[i].oneTry, health: health, logger: logger})
		state.begin(w.lanes[i])
		if len(w.breakers) <= i {
			owner := breakerOwner{name: name, never: c.never || w.sinks[i].oneTry, logger: logger, changed: func(to breakerState) {
				if to == breakerOpen {
					w.opened.Add(1)
				}
			}}
			w.breakers = append(w.breakers, newBreaker(owner, BreakerConfig{Enabled: c.breaker, MaxFailures: c.maxFailures, ResetTimeout: time.Minute}))
			w.budgets = append(w.budgets, newBudget(name, logger, func(bool) {}))
		}
		t := &sharedSink{
			sink: &worldClient{w.sinks[i], s}, name: name, id: id, policy: delivery.policyFor(Sink{OneTry: w.sinks[i].oneTry}), delivery: delivery, breaker: w.breakers[i], budget: w.budgets[i], paused: w.paused[i],
			state: state, duration: metrics.EventDuration.WithLabelValues(name), fast: func() bool { return c.fast }, logger: logger,
		}
		for n := range w.lanes[i] {
			table := &worldTable{w.ledger.parked.table(id, n, w.lanes[i]), w, w.random("table", s.n, i, n)}
			table.limit = c.readLimit
			table.large = func(r *memRow) bool { return w.random("large", r.id).chance(c.large) }
			l := newLane(t, n, rowSource{parked: table, address: ofTestEvent, seenBefore: s.seenBefore}, s.outcomes)
			l.rules.maxHeld = c.maxHeld
			s.bySink[id] = append(s.bySink[id], l)
			byProcessor[id] = append(byProcessor[id], &laneInput{lane: l.in, processor: id})
		}
		s.lanes = append(s.lanes, s.bySink[id]...)
		s.states = append(s.states, state)
		w.breakers[i].attach(s.bySink[id])
		w.budgets[i].attach(s.bySink[id])
	}
	s.reader = &reader{
		foreignTables: map[uint32]struct{}{}, unroutedLog: &unroutedLog{}, checkDrift: func(context.Context) error { return nil },
		stream: s.stream, tracker: s.tracker, start: from, seenBefore: s.seenBefore, lanes: byProcessor, outcomes: s.outcomes,
		decoder: decoder.New(decoder.Table{OID: worldOID, Columns: worldColumns}, 1<<20), router: worldRouter(c.sinks), logger: logger,
		noSink: &noSinkCounts{},
	}
}

// worldRouter sends an event to the sinks that its type names: each 1 in the type stands for one sink.
func worldRouter(sinks int) *router.Router {
	template, err := router.ParseTemplate("{aggregate_id}")
	if err != nil {
		panic(err)
	}
	var routes []router.Route
	for set := 1; set < 1<<sinks; set++ {
		r := router.Route{Match: router.Match{EventType: []string{fmt.Sprintf("%03b", set)}}}
		for i := range sinks {
			if set&(1<<i) != 0 {
				r.Sinks = append(r.Sinks, router.Sink{Processor: processor(i), Topic: template, Key: template})
			}
		}
		routes = append(routes, r)
	}
	return router.New(routes)
}

// run does what session.run and session.drain do.
func (s *worldSession) run() {
	var reading, deliver, work context.Context
	reading, s.stopReading = context.WithCancelCause(context.Background())
	deliver, s.endDeliver = context.WithCancelCause(context.Background())
	work, s.endWork = context.WithCancelCause(context.Background())
	var lanes, recorder, keeper errgroup.Group
	if !s.w.cfg.never && len(s.bySink) > 1 {
		slow := newSlowRule(s.tracker, &s.reader.waits, s.bySink, 10*time.Second)
		keeper.Go(func() error { slow.run(reading); return nil })
		keeper.Go(func() error { s.watch(reading); return nil })
	}
	for _, l := range s.lanes {
		lanes.Go(s.guarded("lane", func() error { return l.run(work, deliver) }))
	}
	recorder.Go(s.guarded("recorder", func() error { return s.recorder.Run(work, s.tracker, s.outcomes) }))
	s.w.mu.Lock()
	s.w.session = s
	s.w.stats.Sessions++
	s.w.mu.Unlock()

	err := s.guarded("reader", func() error { return s.reader.read(reading) })()
	s.stopReading(err)
	for _, l := range s.lanes {
		close(l.in)
	}
	if s.stream.isBroken() {
		s.endDeliver(errWorldBroken)
	}
	if s.stopping.Load() {
		s.endDeliver(err)
		s.endWork(err)
	}
	timer := time.AfterFunc(25*time.Second, func() { s.endDeliver(errDrainTimeout) })
	defer timer.Stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = lanes.Wait()
		close(s.outcomes)
		t := time.AfterFunc(recordWait, func() { s.endWork(errRecordTimeout) })
		defer t.Stop()
		_ = recorder.Wait()
	}()
	<-done
	s.w.mu.Lock()
	s.w.session = nil
	s.w.mu.Unlock()
	s.endDeliver(nil)
	s.endWork(nil)
	_ = keeper.Wait()
	if !s.killed.Load() {
		if lanes.Wait() == nil && recorder.Wait() == nil && leavesNothing(s.lanes, s.tracker, s.seenBefore) {
			s.w.ledger.leave(s.n, s.seenBefore)
		}
		s.stream.report()
	}
}

// guarded returns do so that its error ends the session, and a panic is a violation.
func (s *worldSession) guarded(part string, do func() error) func() error {
	return func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				s.w.violation("panic", "%s: %v", part, p)
				s.kill("panic")
			}
			if err != nil {
				s.w.trace("%s of session %d ends: %v", part, s.n, err)
				s.stopReading(err)
			}
		}()
		return do()
	}
}

// fail ends the session with this error.
func (s *worldSession) fail(why error) {
	s.w.trace("SESSION %d fails: %v", s.n, why)
	switch {
	case errors.Is(why, errWorldBroken):
		s.stream.cut()
		return
	case errors.Is(why, replication.ErrServerStopping):
		s.stopping.Store(true)
	}
	s.stopReading(why)
}

// kill ends the session as kill -9 does: nothing that it does from here on has an effect.
func (s *worldSession) kill(why string) {
	w := s.w
	w.mu.Lock()
	if s.killed.Swap(true) {
		w.mu.Unlock()
		return
	}
	w.trace("SESSION %d dies: %s", s.n, why)
	w.stats.Kills++
	for i, k := range w.sinks {
		lanes := map[int]int{}
		for e, a := range k.acceptances {
			// A message that was discarded while it was being delivered, and was accepted then, is recorded.
			if a.known == s.n && !a.committed && w.ledger.last[worldDelivery{processor(i), e}] != "discarded" {
				lanes[router.Lane(e.hash, w.lanes[i])]++
			}
		}
		for lane, n := range lanes {
			if n > maxUnrecorded*w.cfg.batch {
				w.violation("unrecorded", "%d messages of lane %d of sink%d were accepted and are not recorded", n, lane, i)
			}
		}
	}
	for _, b := range w.breakers {
		b.close()
	}
	w.breakers, w.budgets = nil, nil
	w.mu.Unlock()
	s.endWork(errWorldKill)
	s.endDeliver(errWorldKill)
	s.stopReading(errWorldKill)
}

// watch finds a sink that makes the reader wait for most of twice park_after while another sink has nothing to do. The slow rule must prevent that.
func (s *worldSession) watch(ctx context.Context) {
	rule := newSlowRule(s.tracker, &s.reader.waits, s.bySink, 10*time.Second)
	held := map[int32][]bool{}
	for slept(ctx, rule.interval) {
		blocks := rule.blocks()
		for id := range s.bySink {
			h := append(held[id], id == blocks && rule.anotherIdle(id))
			h = h[max(0, len(h)-2*slowTicks):]
			n := 0
			for _, is := range h {
				if is {
					n++
				}
			}
			if held[id] = h; n > 2*slowTicks*3/4 {
				s.w.violation("held back", "the reader waited for processor %d in %d of %d ticks while another had nothing to do", id, n, len(h))
				held[id] = nil
			}
		}
	}
}

// live reports whether all lanes of a sink are live and have nothing to do.
func (s *worldSession) live(sink int) bool {
	for _, l := range s.bySink[processor(sink)] {
		if !l.shown.idle.Load() {
			return false
		}
	}
	return s.states[sink].status().CatchingUp == 0
}
