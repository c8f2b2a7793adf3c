package connector

import (
	"slices"
	"time"
)

// How long a healthy message may take in a calm world, from its commit until it is accepted.
const (
	// alwaysAllowed is what the way from PostgreSQL to the sink takes, with calls, reads and commits that are under way.
	alwaysAllowed = 3 * time.Second
	// slowAllowed is added if the sink is not quick. A call of such a sink lasts a second and more, and three of them may come first: the one
	// that is under way, and two with rows that are due.
	slowAllowed = 3 * time.Second
	// aTryAllowed is how long each message takes that its sink tries for the first time meanwhile; aQuickTryAllowed if the sink is quick.
	aTryAllowed      = time.Second
	aQuickTryAllowed = 200 * time.Millisecond
)

// inTime is what a sink's healthy messages may have to wait for.
type inTime struct {
	trails map[string]trail // what has been committed of each aggregate
	hurt   map[string]bool  // aggregates of which the sink was asked while it was away
	firsts int              // messages that were tried for the first time
	hung   int              // calls that lasted until their time-out
	up     moment           // when its outage was over
	ready  moment           // when the last session began
}

// moment is a time from which a message can be delivered, with what the sink had done until then.
type moment struct {
	at           time.Time
	firsts, hung int
}

func (i *inTime) now() moment { return moment{time.Now(), i.firsts, i.hung} }

func newInTime() inTime { return inTime{trails: map[string]trail{}, hurt: map[string]bool{}} }

// trail is what stands before an event, and the event itself.
type trail struct {
	poison    bool         // one of these is refused
	topics    map[int]bool // of these
	committed moment
}

// leaveTrail notes what stands before an event that is committed.
func (w *simulation) leaveTrail(e *worldEvent) {
	e.before = make([]trail, len(w.sinks))
	for _, n := range e.sinks {
		s := &w.sinks[n].inTime
		t := s.trails[e.aggregate]
		topics := map[int]bool{e.topic: true}
		for topic := range t.topics {
			topics[topic] = true
		}
		t = trail{t.poison || e.reactions[n].kind != reactionAccepted, topics, s.now()}
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
		s.mode, s.inTime.up = m, s.inTime.now()
		s.w.trace("sink%d is %s", s.n, modeNames[m])
	}
	s.w.after(r.between(50*timeUnit, 300*timeUnit), func() {
		if s.w.failing() {
			set(modeDown)
			s.watchRecovery()
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
	from, allowed := latestOf(t.committed, i.ready, i.up), alwaysAllowed
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
	aTry := aTryAllowed
	if w.cfg.quick {
		aTry = aQuickTryAllowed
	} else {
		allowed += slowAllowed
	}
	allowed += time.Duration(i.firsts-from.firsts) * aTry
	if w.cfg.topicHangs { // and the call that is under way
		allowed += time.Duration(i.hung-from.hung+1) * 200 * timeUnit
	}
	if !i.up.at.IsZero() {
		allowed += w.cfg.reset
	}
	w.stats.InTime++
	if late := time.Since(from.at) - allowed; late > 0 {
		w.violation("late", "sink%d: %v was accepted %s after it could be, %s are allowed", s.n, e, time.Since(from.at), allowed)
	}
}

func latestOf(moments ...moment) moment {
	return slices.MaxFunc(moments, func(a, b moment) int { return a.at.Compare(b.at) })
}
