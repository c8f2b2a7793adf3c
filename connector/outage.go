package connector

import (
	"context"
	"log/slog"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/wait"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// outageEvery is the time between two lines of the log about a trouble that lasts.
	outageEvery = time.Minute
	// outageBursts is how many outages of a sink that begin within outageEvery have a line each. A sink that flaps must not fill the log.
	outageBursts = 2
	// outageTick is how often a trouble that lasts is looked at, and outagePace the least time between two looks.
	outageTick = time.Second
	outagePace = 50 * time.Millisecond
	// The line about the end of an outage waits until what was parked is delivered: for catchUpAtLeast, because lanes need a moment to
	// begin, and for catchUpPatience at most. If that takes longer, it has lines of its own.
	catchUpAtLeast  = time.Second
	catchUpPatience = 5 * time.Second
)

// outageLog tells the log how the sinks of a connector do: a line when an outage begins, one a minute while it lasts, and one when it
// ends; the same of suspicions, and of topics that are away; and the sums of dead letters. It makes the lines from Status, and has a
// goroutine of its own, so that those who change a sink's state need not wait for the log.
type outageLog struct {
	logger *slog.Logger
	sinks  []*sinkStory
	noSink *deathLog     // dead letters of no sink
	wake   chan struct{} // the state of a sink has changed
}

// run writes lines until ctx ends, and then the sums that are left.
func (o *outageLog) run(ctx context.Context) {
	for {
		now := time.Now()
		timer := time.NewTimer(longestSleep)
		if o.tell(now) {
			timer.Reset(outageTick)
		}
		select {
		case <-o.wake:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			o.tellDead(time.Now().Add(deathSpan))
			return
		}
		timer.Stop()
		_ = wait.For(ctx, outagePace) // the loop sees that ctx has ended
	}
}

// tell writes what there is to say now. It reports whether it has to be called again although nothing changes.
func (o *outageLog) tell(now time.Time) (again bool) {
	for _, s := range o.sinks {
		again = s.tell(now, s.state.status()) || again
	}
	return o.tellDead(now) || again
}

// tellDead writes the sums of dead letters that are due.
func (o *outageLog) tellDead(now time.Time) (again bool) {
	for _, s := range o.sinks {
		s.state.dead.report(now, s.logger())
		again = again || s.state.dead.counting()
	}
	o.noSink.report(now, o.logger)
	return again || o.noSink.counting()
}

// sinkStory is what the log has been told of a sink.
type sinkStory struct {
	state *sinkState

	outage, suspicion, refusals, topics episode
	unreachable                         time.Time // when the log was last told that the sink is not reachable; logCheck writes the first line

	atBegin  monitoring.Counts // when the outage began
	lasted   time.Duration     // how long it has lasted, once it has ended
	catching catchingUp
}

// catchingUp is how far the log has told of what follows an outage.
type catchingUp struct {
	since time.Time // when the outage ended; zero: there is nothing to tell
	told  bool      // the log says that the sink accepts again
	next  time.Time // of the next line
}

func newSinkStory(state *sinkState) *sinkStory {
	return &sinkStory{
		state:  state,
		outage: episode{burst: outageBursts}, topics: episode{burst: outageBursts},
		suspicion: episode{burst: 1, slowEnd: true}, refusals: episode{burst: 1, slowEnd: true},
	}
}

// goOn goes on with the outage that the log tells of since this time, unless it is zero. Another connector has told of its begin.
func (s *sinkStory) goOn(since time.Time) {
	if !since.IsZero() {
		s.state.failedBefore(since)
		s.outage.began, s.outage.now, s.outage.told, s.outage.line = since, true, true, time.Now()
	}
}

func (s *sinkStory) logger() *slog.Logger { return s.state.logger.With("sink", s.state.name) }

// tell writes what there is to say of a sink with this status. It reports whether it has to be called again although nothing changes.
func (s *sinkStory) tell(now time.Time, st monitoring.SinkStatus) (again bool) {
	if !st.InSession {
		return false // nobody asks the sink, so nothing is known of it
	}
	if st.Paused {
		s.state.topics.postpone()
		return false // nobody waits for the sink
	}
	if !st.BreakerSince.IsZero() {
		s.state.topics.postpone()
	}
	s.tellOutage(now, &st)
	s.tellCatchUp(now, &st)
	s.tellCheck(now, &st)
	s.tellSuspicion(now, &st)
	s.tellRefusals(now, &st)
	s.tellTopics(now, &st)
	return st.Check.Unreachable != "" || s.outage.open() || s.suspicion.open() || s.refusals.open() || s.topics.open() || !s.catching.since.IsZero()
}

func (s *sinkStory) tellOutage(now time.Time, st *monitoring.SinkStatus) {
	condition, since := st.Outage()
	if condition == monitoring.ConditionOK && s.outage.open() && !s.state.works() {
		return // a new session has begun, and has not asked the sink yet
	}
	if !since.IsZero() && !s.catching.since.IsZero() { // the end of the last outage was too short to matter
		s.outage.told = s.outage.told || !s.catching.told
		s.catching = catchingUp{}
	}
	if !since.IsZero() && s.outage.began.IsZero() && !s.outage.told {
		s.atBegin = st.Counts
	}
	began := s.outage.began
	what := s.outage.at(now, since)
	attrs := func() []any {
		a := []any{"condition", string(condition), "since", stamp(s.outage.began)}
		return append(append(append(a, s.outage.comings(what)...), waiting(now, st)...), "err", st.Cause)
	}
	switch what {
	case begins:
		s.logger().Warn("sink does not accept", attrs()...)
	case lasts:
		s.logger().Warn("sink still does not accept", attrs()...)
	case ends:
		s.lasted, s.catching = now.Sub(began), catchingUp{since: now, next: now.Add(catchUpPatience)}
	case nothing:
	}
}

// tellCatchUp tells of the end of an outage.
func (s *sinkStory) tellCatchUp(now time.Time, st *monitoring.SinkStatus) {
	c := &s.catching
	if c.since.IsZero() {
		return
	}
	took := now.Sub(c.since)
	delivered := st.Counts.Unparked - s.atBegin.Unparked
	if took >= catchUpAtLeast && st.CatchingUp() == 0 {
		a := []any{"outage", round(s.lasted), "caught_up_in", round(took), "delivered", delivered, "parked", st.Parked}
		if c.told {
			s.logger().Info("sink has caught up", a...)
		} else if st.Counts.Delivered == s.atBegin.Delivered { // it has refused all, or nothing waits for it
			s.logger().Info("sink answers again", a...)
		} else {
			s.logger().Info("sink accepts again", a...)
		}
		*c = catchingUp{}
		return
	}
	if now.Before(c.next) {
		return
	}
	a := []any{"outage", round(s.lasted), "delivered", delivered, "parked", st.Parked}
	if c.told {
		s.logger().Info("sink catches up", a...)
	} else if st.Counts.Delivered == s.atBegin.Delivered {
		s.logger().Info("sink answers again, and has accepted nothing yet", a...)
	} else {
		s.logger().Info("sink accepts again, and catches up", a...)
	}
	c.told, c.next = true, now.Add(outageEvery)
}

// tellCheck tells once a minute of a sink that no check can reach, and that nobody has asked otherwise. logCheck tells when that begins and ends.
func (s *sinkStory) tellCheck(now time.Time, st *monitoring.SinkStatus) {
	if st.Check.Unreachable == "" || s.outage.open() {
		s.unreachable = now
		return
	}
	if s.unreachable.Before(st.Check.Since) {
		s.unreachable = st.Check.Since
	}
	if now.Sub(s.unreachable) >= outageEvery {
		s.unreachable = now
		s.logger().Warn("sink is still not reachable", append(append([]any{"since", stamp(st.Check.Since)}, waiting(now, st)...), "err", st.Check.Unreachable)...)
	}
}

func (s *sinkStory) tellSuspicion(now time.Time, st *monitoring.SinkStatus) {
	began := s.suspicion.began
	switch what := s.suspicion.at(now, st.SuspectSince); what {
	case begins:
		s.logger().Warn("sink is suspect: messages died one after the other, and nothing was accepted in between; no more die until it accepts one, and what it refuses "+
			"is tried again at a low rate; mend the receiver, or see \"outbox-cdc dlq list\" and docs/parked.md#suspect",
			append(s.suspicion.comings(what), "err", st.Cause)...)
	case lasts:
		a := append([]any{"since", stamp(s.suspicion.began)}, s.suspicion.comings(what)...)
		s.logger().Warn("sink is still suspect", append(append(a, waiting(now, st)...), "dead", st.DeadLetters, "err", st.Cause)...)
	case ends:
		s.logger().Info("sink is no longer suspect: it has accepted a message", "lasted", round(s.suspicion.ended.Sub(began)), "parked", st.Parked)
	case nothing:
	}
}

// tellRefusals tells of a sink that answers, and accepts nothing. When messages die of that, the sink becomes suspect, and that is told instead.
func (s *sinkStory) tellRefusals(now time.Time, st *monitoring.SinkStatus) {
	if !st.SuspectSince.IsZero() || s.suspicion.open() {
		s.refusals.now, s.refusals.told, s.refusals.times = false, false, 0
		return
	}
	began := s.refusals.began
	attrs := func(what phase) []any {
		a := append([]any{"since", stamp(s.refusals.began)}, s.refusals.comings(what)...)
		return append(append(a, waiting(now, st)...), "err", st.Cause)
	}
	switch what := s.refusals.at(now, st.Since.Refusing); what {
	case begins:
		s.logger().Warn("sink refuses every message", attrs(what)...)
	case lasts:
		s.logger().Warn("sink still refuses every message", attrs(what)...)
	case ends:
		s.logger().Info("sink no longer refuses every message", "lasted", round(s.refusals.ended.Sub(began)), "parked", st.Parked)
	case nothing:
	}
}

func (s *sinkStory) tellTopics(now time.Time, st *monitoring.SinkStatus) {
	began := s.topics.began
	switch s.topics.at(now, st.Topics.Since) {
	case begins:
		s.logger().Warn("a topic of the sink is away; its events are parked and tried again, and others go on", "topics", st.Topics.Count, "err", st.Topics.Cause)
	case lasts:
		s.logger().Warn("a topic of the sink is still away", append(append([]any{"since", stamp(s.topics.began), "topics", st.Topics.Count},
			waiting(now, st)...), "err", st.Topics.Cause)...)
	case ends:
		s.state.showAgain() // topics that nobody asks for any more are forgotten
		s.logger().Info("no topic of the sink is away any more", "lasted", round(now.Sub(began)))
	case nothing:
	}
}

// waiting says what waits for a sink, since when, and when the sink is asked next.
func waiting(now time.Time, st *monitoring.SinkStatus) []any {
	var a []any
	if !st.CountedAt.IsZero() { // else nobody knows what is parked
		a = append(a, "parked", st.Parked)
	}
	if st.Parked > 0 {
		a = append(a, "oldest", round(st.OldestParked))
	}
	if st.AsksAt.After(now) {
		a = append(a, "asks_at", stamp(st.AsksAt))
	}
	return a
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func round(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// phase is what an episode has to say.
type phase int

const (
	nothing phase = iota
	begins
	lasts
	ends
)

// episode is a trouble that begins, lasts and ends. It says when the log has to have a line about it, so that a trouble that comes and
// goes has no more than a few lines a minute. The burst, and whether the end is slow, do not change.
type episode struct {
	burst int // how many lines about a begin there may be within outageEvery
	// slowEnd means that the end of a trouble that has lasted for less than outageEvery has a line only if the trouble does not come back
	// within outageEvery.
	slowEnd bool

	began time.Time   // when the present trouble began, or the last one if told; zero: there was none
	told  bool        // the log says that the trouble is there
	times int         // how often it has begun since the last line
	now   bool        // the trouble is there
	ended time.Time   // when it was last seen to be over
	line  time.Time   // of the last line about it
	lines []time.Time // of the last lines about a begin
}

// open reports whether the trouble is there, or the log still has to say that it is over.
func (e *episode) open() bool { return e.now || e.told }

// at returns what to say now. since is when the trouble began, or zero if there is none.
func (e *episode) at(now, since time.Time) phase {
	if is := !since.IsZero(); is != e.now {
		if e.now = is; is {
			e.began = since
			e.times++
		} else {
			e.ended = now
		}
	}
	switch {
	case e.now && !e.told && e.mayBegin(now):
		e.told, e.line, e.lines = true, now, append(e.lines, now)
		return begins
	case e.now && e.told && now.Sub(e.line) >= outageEvery:
		e.line = now
		return lasts
	case !e.now && e.told && (!e.slowEnd || e.ended.Sub(e.began) >= outageEvery || now.Sub(e.ended) >= outageEvery):
		e.told, e.times = false, 0
		return ends
	}
	return nothing
}

// comings returns an attribute for a line: how often the trouble has come again since the last line. It is empty if it has not.
func (e *episode) comings(m phase) []any {
	n := e.times
	if m == begins {
		n--
	}
	if e.times = 0; n > 0 {
		return []any{"came_again", n}
	}
	return nil
}

// mayBegin reports whether there is room for a line about a begin.
func (e *episode) mayBegin(now time.Time) bool {
	for len(e.lines) > 0 && now.Sub(e.lines[0]) >= outageEvery {
		e.lines = e.lines[1:]
	}
	return len(e.lines) < e.burst
}
