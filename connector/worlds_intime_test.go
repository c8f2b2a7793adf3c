package connector

import "time"

// How long a healthy message may take in a calm world, from its commit until it is accepted.
const (
	// alwaysAllowed is what the way from PostgreSQL to the sink takes, with calls, reads and commits that are under way.
	alwaysAllowed = 3 * time.Second
	// aTryAllowed is how long each message takes that its sink tries for the first time meanwhile.
	aTryAllowed = 1500 * time.Millisecond
)

// inTime is what a sink's healthy messages may have to wait for.
type inTime struct {
	trails  map[string]trail // what has been committed of each aggregate
	hurt    map[string]bool  // aggregates of which the sink was asked while it was away
	firsts  int              // messages that were tried for the first time
	hung    int              // calls that lasted until their time-out
	upAt    time.Time        // when its outage was over
	readyAt time.Time        // when the last session began
}

func newInTime() inTime { return inTime{trails: map[string]trail{}, hurt: map[string]bool{}} }

// trail is what stands before an event, and the event itself.
type trail struct {
	poison       bool         // one of these is refused
	topics       map[int]bool // of these
	firsts, hung int          // of the sink, when the event was committed
	at           time.Time    // then
}

// leaveTrail notes what stands before an event that is committed.
func (w *simulation) leaveTrail(e *worldEvent, tx *worldTx) {
	e.before = make([]trail, len(w.sinks))
	for _, n := range e.sinks {
		s := &w.sinks[n].inTime
		t := s.trails[e.aggregate]
		topics := map[int]bool{e.topic: true}
		for topic := range t.topics {
			topics[topic] = true
		}
		t = trail{t.poison || e.reactions[n].kind != reactionAccepted, topics, s.firsts, s.hung, tx.at}
		s.trails[e.aggregate], e.before[n] = t, t
	}
}

// planOutage lets the sink of a calm world be away once, perhaps.
func (s *worldSink) planOutage() {
	r := s.w.random("outage", s.n)
	if r.chance(0.5) {
		return
	}
	set := func(m worldMode) {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		s.mode, s.inTime.upAt = m, time.Now()
		s.w.trace("sink%d is %s", s.n, modeNames[m])
	}
	s.w.after(r.between(50*timeUnit, 300*timeUnit), func() {
		if s.w.failing() {
			set(modeDown)
			s.w.after(r.between(100*timeUnit, 600*timeUnit), func() { set(modeWell) })
		}
	})
}

// hangs notes that a call lasts until its time-out.
func (s *worldSink) hangs() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.inTime.hung++
}

// checkInTime checks that a message with nothing wrong before it in its aggregate is accepted in time in a calm world, while its topic
// is there and others are away, and among any number of poisoned messages. The world's lock is held.
func (s *worldSink) checkInTime(e *worldEvent) {
	w, i, t := s.w, &s.inTime, e.before[s.n]
	if !w.cfg.calm || t.poison || i.hurt[e.aggregate] || s.mode != modeWell {
		return
	}
	from, allowed := latestOf(t.at, i.readyAt, i.upAt), alwaysAllowed+time.Duration(i.firsts-t.firsts)*aTryAllowed
	for n := range t.topics {
		topic := s.topics[n]
		if topic.away {
			return // what stood before it was given up
		}
		if topic.trouble { // it comes due again, perhaps among all others of a suspect sink
			from = latestOf(from, topic.back)
			allowed += topicPace + time.Duration(w.cfg.aggregates)*time.Second/suspectRate
		}
	}
	if w.cfg.topicHangs { // and the call that is under way
		allowed += time.Duration(i.hung-t.hung+1) * 200 * timeUnit
	}
	if !i.upAt.IsZero() {
		allowed += time.Minute
	}
	w.stats.InTime++
	if late := time.Since(from) - allowed; late > 0 {
		w.violation("late", "sink%d: %v was accepted %s after it could be, %s are allowed", s.n, e, time.Since(from), allowed)
	}
}

func latestOf(times ...time.Time) time.Time {
	var latest time.Time
	for _, t := range times {
		if t.After(latest) {
			latest = t
		}
	}
	return latest
}
