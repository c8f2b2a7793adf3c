package connector

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// bells wake those who look at Status after a change: outageLog and publisher. Each channel has room for one.
type bells []chan<- struct{}

func (b bells) ring() {
	for _, bell := range b {
		select {
		case bell <- struct{}{}:
		default: // it was rung already
		}
	}
}

// observedSink is a sink whose state is shown, and where.
type observedSink struct {
	name    string
	kind    string                           // the sink's type
	inPlace bool                             // the lanes keep what was not accepted, so that each failure makes other events wait
	members func() []monitoring.MemberStatus // of a composite; else nil
	health  *monitoring.Health
	logger  *slog.Logger
	login   loginWatch
	wake    bells // rung after a change
}

// sinkState holds the state of a sink, for all of its lanes together, and shows it in the log, in /readyz and in Status. The lanes, the breaker,
// the budget and the listener call it, from their own goroutines. It outlives sessions.
//
// All of it changes under one mutex, and one copy is taken under it, so that the numbers of a copy belong together. The log is written
// without the mutex; outageLog writes what it says of outages, in a goroutine of its own. The component of /readyz is set under the mutex: Health.Set
// neither logs nor waits, and two changes of the state must not reach /readyz in the wrong order.
type sinkState struct {
	observedSink

	mu           sync.Mutex
	inSession    bool // a session uses the sink; else /readyz shows nothing of it
	lanes        []laneState
	tracker      *checkpoint.Tracker // of the session
	failing      map[int]struct{}    // lanes whose last batch was not accepted
	failingSince time.Time           // when the first of them failed; zero if there is none
	failedAt     time.Time           // when a batch was not accepted last
	deliveredAt  time.Time           // when a message was accepted last
	answeredAt   time.Time           // when the sink was last seen to work
	cause        error               // the last failure
	breaker      breakerState
	since        time.Time // when the breaker opened
	asksAt       time.Time // when the open breaker asks next
	suspectSince time.Time // when the death budget was used up; zero if it is not
	pausedSince  time.Time // when the connector heard that a person has paused the sink; zero if nobody has
	owed         owedRows
	unread       error // why the parked rows cannot be read
	counts       monitoring.Counts
	membersAway  string // the members that /readyz says are away

	work     sinkWork
	dead     deathLog
	topics   topicsAway
	refusals refusals
	check    checkState
}

func newSinkState(of observedSink) *sinkState {
	return &sinkState{observedSink: of, failing: map[int]struct{}{}, dead: deathLog{wake: of.wake}}
}

// begin begins a session with this many lanes, and forgets what the lanes of the session before have reported. Every lane begins
// with a look into outbox_parked.
func (s *sinkState) begin(lanes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inSession = true
	s.lanes = make([]laneState, lanes)
	for i := range s.lanes {
		s.lanes[i].said.CatchingUp = true
	}
	clear(s.failing)
	s.failingSince = time.Time{}
	s.unread = nil
	s.check.acceptedAt.Store(0)
	s.show()
}

// end notes that no session uses the sink any more. After it returns, /readyz hears nothing of the sink until the next begin.
func (s *sinkState) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inSession, s.lanes, s.tracker = false, nil, nil
}

// laneState is what is known of a lane.
type laneState struct {
	said        monitoring.LaneStatus // what the lane has said: CatchingUp and Held
	shown       *laneShown            // what it shows at each moment; nil until it is attached
	refusedAll  bool                  // LaneStatus.RefusedAll
	deliveredAt time.Time
}

// attach notes where the lanes of the session show how they stand.
func (s *sinkState) attach(lanes []*lane, tracker *checkpoint.Tracker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tracker = tracker
	for i, l := range lanes {
		s.lane(i).shown = &l.shown
	}
}

// lane returns the state of a lane. The caller holds mu.
func (s *sinkState) lane(number int) *laneState {
	for len(s.lanes) <= number {
		s.lanes = append(s.lanes, laneState{})
	}
	return &s.lanes[number]
}

// status returns what Status shows of the lane, but for LaneStatus.Failing.
func (l *laneState) status() monitoring.LaneStatus {
	st := l.said
	st.RefusedAll, st.DeliveredAt = l.refusedAll, l.deliveredAt
	if l.shown != nil {
		st.InFlight = int(l.shown.inFlight.Load())
	}
	return st
}

// laneIs notes what Status shows of a lane. The lane calls it at each change.
func (s *sinkState) laneIs(number int, view monitoring.LaneStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lane(number).said = view
}

// failedBefore notes that the sink did not accept at that time, when another connector asked it.
func (s *sinkState) failedBefore(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failedAt, s.answeredAt = at, time.Time{}
}

// answer is how one Deliver of a lane went.
type answer struct {
	lane   int
	counts monitoring.Counts // what became of its messages
	cause  error             // its last failure, or nil
	ended  bool              // the session has ended the call, which says nothing of the sink
}

// answered notes how a Deliver went. A lane calls it once for each. A sink that refuses single messages, which are then parked, holds
// nobody back, so that it does not count as failing. Neither does one of whose topics one is away.
func (s *sinkState) answered(a answer) {
	s.login.note(a.cause)
	if a.counts.Delivered > 0 {
		s.acceptedSome()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts = s.counts.Plus(a.counts)
	if s.members != nil {
		s.showMembers()
	}
	if a.ended || a.counts.Delivered == 0 && a.cause == nil {
		return // nothing was learnt of the sink
	}
	if a.cause != nil {
		s.cause = a.cause
	}
	lane := s.lane(a.lane)
	if lane.refusedAll = a.counts.Delivered == 0; !lane.refusedAll {
		s.deliveredAt = time.Now()
		lane.deliveredAt = s.deliveredAt
	}
	was := len(s.failing)
	if a.cause == nil || !s.inPlace && (a.counts.Delivered > 0 || !errors.Is(a.cause, sinks.ErrUnavailable)) {
		delete(s.failing, a.lane)
		s.answeredAt = time.Now()
	} else {
		s.failing[a.lane] = struct{}{}
		s.failedAt = time.Now()
	}
	switch {
	case len(s.failing) > 0 && was == 0:
		s.failingSince = s.failedAt
		s.show()
	case len(s.failing) == 0 && was > 0:
		s.failingSince = time.Time{}
		s.show()
	case a.cause != nil && (len(s.failing) > 0 || s.breaker != breakerClosed || !s.suspectSince.IsZero() || s.refusals.some.Load()):
		s.show() // the cause is part of it
	}
}

// works reports whether the sink has answered since it last failed.
func (s *sinkState) works() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.answeredAt.Before(s.failedAt)
}

// discarded counts a message that a lane has given up without asking the sink.
func (s *sinkState) discarded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Discarded++
}

// parked counts the deliveries that a lane parks or discards without asking the sink.
func (s *sinkState) parked(outcomes []checkpoint.Outcome) {
	var n int64
	for i := range outcomes {
		if outcomes[i].Status == checkpoint.Parked {
			n++
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Parked += n
}

// breakerIs notes the state of the breaker, which calls it at each change, and when an open one asks next.
func (s *sinkState) breakerIs(state breakerState, asksAt time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == breakerOpen && s.breaker != breakerHalfOpen {
		s.since = time.Now() // a failed probe opens the breaker again, but the outage began earlier
	}
	s.breaker, s.asksAt = state, asksAt
	if state == breakerClosed {
		clear(s.failing)
		s.failingSince, s.answeredAt = time.Time{}, time.Now()
		s.reachable()
	}
	s.show()
}

// suspicion says whether a sink is suspect: see budget.
type suspicion bool

// suspectIs notes whether the sink is suspect. The budget calls it at each change.
func (s *sinkState) suspectIs(now suspicion) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.suspectSince = (time.Time{}); now {
		s.suspectSince = time.Now()
	}
	s.show()
}

// isPaused notes whether a person has paused the sink.
func (s *sinkState) isPaused(activity ledger.Activity) {
	paused := activity == ledger.Paused
	s.mu.Lock()
	was := !s.pausedSince.IsZero()
	switch {
	case !paused:
		s.pausedSince = time.Time{}
	case !was:
		s.pausedSince = time.Now()
	}
	s.show()
	s.mu.Unlock()
	switch {
	case paused && !was:
		s.logger.Info("sink paused", "sink", s.name)
	case !paused && was:
		s.logger.Info("sink resumed", "sink", s.name)
	}
}

// read notes how a read of the parked rows went.
func (s *sinkState) read(err error) {
	s.login.note(err)
	s.mu.Lock()
	changed := (err == nil) != (s.unread == nil)
	if changed {
		s.unread = err
		s.show()
	}
	s.mu.Unlock()
	if changed && err != nil {
		s.logger.Warn("parked rows cannot be read; trying again", "sink", s.name, "err", err)
	}
}

// showMembers shows which members are away, if that has changed. The caller holds mu.
func (s *sinkState) showMembers() {
	var names []string
	for _, m := range s.members() {
		if m.Away {
			names = append(names, m.Name)
		}
	}
	if away := strings.Join(names, " "); away != s.membersAway {
		s.membersAway = away
		s.show()
	}
}

// show sets the sink's component of /readyz, and wakes the log. The caller holds mu.
func (s *sinkState) show() {
	s.wake.ring()
	if s.inSession {
		s.health.Set("sink:"+s.name, s.snapshot().Component())
	}
}

// showAgain is show for a caller that does not hold mu.
func (s *sinkState) showAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.show()
}

// status returns the state of now. Safe for all goroutines.
func (s *sinkState) status() monitoring.SinkStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.snapshot()
	if st.KnowsWhatWaits() {
		st.Events.OldestCommittedAt = s.oldestCommitted()
	}
	return st
}

// oldestCommitted returns the commit time of the oldest event that waits in a lane or is parked. The caller holds mu.
func (s *sinkState) oldestCommitted() (at time.Time) {
	at = s.owed.oldestCommitted()
	var first uint64 // the tracker's number of the first event in a lane, plus one
	for i := range s.lanes {
		if shown := s.lanes[i].shown; shown != nil {
			if n := shown.oldest.Load(); n != 0 && (first == 0 || n < first) {
				first = n
			}
		}
	}
	if first == 0 {
		return at
	}
	if inLane := s.tracker.CommittedAt(first - 1); at.IsZero() || !inLane.IsZero() && inLane.Before(at) {
		at = inLane
	}
	return at
}

// snapshot returns a copy of the state. The caller holds mu.
func (s *sinkState) snapshot() monitoring.SinkStatus {
	st := monitoring.SinkStatus{
		Name: s.name, Type: s.kind, InSession: s.inSession,
		Breaker: s.breaker.String(), Failing: len(s.failing) > 0, FailingSince: s.failingSince, Cause: errText(s.cause),
		SuspectSince: s.suspectSince,
		Paused:       !s.pausedSince.IsZero(), Since: monitoring.SinceTimes{Paused: s.pausedSince}, Unreadable: errText(s.unread),
		CountedAt: s.owed.countedAt,
		Counts:    s.counts, Events: monitoring.EventTimes{DeliveredAt: s.deliveredAt}, Topics: s.topics.status(), Check: s.checkStatus(),
	}
	st.Parked, st.DeadLetters, st.OldestParked = s.owed.counts(time.Now())
	if st.Parked > 0 {
		st.Since.Refusing = s.refusals.refusingSince()
	}
	if s.breaker != breakerClosed {
		st.BreakerSince, st.AsksAt = s.since, s.asksAt
	}
	if s.members != nil {
		st.Members = s.members()
	}
	for i := range s.lanes {
		lane := s.lanes[i].status()
		_, lane.Failing = s.failing[i]
		st.Lanes = append(st.Lanes, lane)
	}
	return st
}
