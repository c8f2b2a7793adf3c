package connector

import "time"

// mode says what a lane does with arrivals, which are the deliveries that the reader hands to it. docs/design/delivery.md has a
// diagram of the modes.
type mode uint8

const (
	// modeLive: arrivals are delivered.
	modeLive mode = iota
	// modeWaiting: the lane reads and delivers its parked rows, and arrivals wait in its queue meanwhile. Every lane begins so.
	modeWaiting
	// modeWaitedOnce is modeWaiting after arrivals have waited for one Deliver of rows.
	modeWaitedOnce
	// modeParking: the lane reads and delivers its parked rows, and arrivals are parked behind them.
	modeParking
)

// catchesUp reports whether the lane delivers parked rows, and no arrivals.
func (m mode) catchesUp() bool { return m != modeLive }

const (
	// maxUnrecorded is how many batches of a lane may be delivered and not yet recorded. A crash can repeat so many.
	maxUnrecorded = 8
	// maxCatchingRows is how many rows of a lane that catches up may be delivered and not yet recorded. The recorder takes outcomes
	// in the order in which they come, and can record only thousands of parked rows a second. The outcomes of other sinks, and with
	// them the slot, would wait behind a long queue of these.
	maxCatchingRows = 1000
	// deliverPace is the least time between two Deliver calls while the stream is fast, unless a whole batch waits:
	// a thousand small requests cost more than everything else.
	deliverPace = 3 * time.Millisecond
	// longestSleep is how long a lane sleeps if it has no reason to wake up before.
	longestSleep = time.Hour
)

// laneRules decide what a lane does next. They know its configuration, and neither clock, channel nor goroutine.
type laneRules struct {
	policy    failurePolicy
	batch     int           // messages for one Deliver, at most
	maxHeld   int           // a lane that holds more aggregates does not go live
	parkAfter time.Duration // 0: arrivals are parked only where a person has paused the sink
}

// facts is all that a decision depends on, beside the mode and the time.
type facts struct {
	paused     bool       // a person has paused the sink
	park       bool       // the slow rule or the breaker asks the lane to park arrivals, or the sink has an unfinished job, whose rows come before them
	permission permission // of breaker and lease
	fast       bool       // the stream is fast
	one        bool       // in place: the last Deliver found the destination away, so only one message is tried, to see whether it is back

	arrivals int       // in the lane's queue
	hand     int       // messages that are tried again in place; these go first
	handAt   time.Time // when hand may be tried again
	rows     int       // rows that the last read has found, and that are not delivered yet

	delivering bool
	began      time.Time // when the last Deliver began
	reading    bool      // a read of the table is under way

	given, committed uint64 // Seq of the last outcomes that the recorder was given, and that are committed
	outcomes         uint64 // Seq of the last outcomes of a Deliver
	died             uint64 // Seq of the last outcomes in which something died in place, or was discarded
	ungiven          bool   // something was parked, and is given to the recorder at the end of this step
	unrecorded       int    // batches whose outcomes are not committed
	unrecordedRows   int    // messages in these

	changed   bool      // somebody has changed rows of the table
	held      int       // how many aggregates are held
	dueAt     time.Time // when the first row of these is due, and its turn has come; zero: none is
	releaseAt time.Time // when a read may release one of these without a row of it that is due; zero: none
	catchUpAt time.Time // a live lane does not read the table before
	readAt    time.Time // the next read is not before this, unless changed
}

// actionKind is what a lane does next.
type actionKind uint8

const (
	actSleep        actionKind = iota // nothing before until, unless something happens
	actCatchUp                        // go from modeLive to modeWaiting
	actPark                           // go to modeParking, and park all that has no row yet
	actParkArrivals                   // park arrivals
	actDiscard                        // discard arrivals and what would be tried again: this sink is tried once, and must not be called now
	actArrivals                       // deliver arrivals
	actHand                           // deliver again what is in hand
	actRows                           // deliver rows
	actRead                           // read the table
)

// action is what a lane does next.
type action struct {
	kind  actionKind
	most  int       // of a Deliver: how many messages, at most
	probe bool      // of a read or a Deliver: the breaker permits one message, which asks whether the destination is back
	until time.Time // of actSleep
	hurry uint64    // of actSleep: the lane waits until the outcomes with this Seq are committed; 0: it waits for none
}

// wake makes a sleep end at t at the latest.
func (a *action) wake(t time.Time) {
	if t.Before(a.until) {
		a.until = t
	}
}

// decide returns what a lane does next. The lane does it and asks again, until the answer is actSleep.
func (r *laneRules) decide(m mode, f *facts, now time.Time) action {
	a := action{until: now.Add(longestSleep)}
	switch {
	case m != modeParking && (f.park || r.hangs(f, now, &a)):
		return action{kind: actPark}
	case m == modeLive && r.wantsTable(f, now, &a):
		return action{kind: actCatchUp}
	case m == modeLive:
		return r.deliverLive(m, f, now, a)
	case m != modeParking && (f.paused || f.permission.open && r.parkAfter > 0):
		// The breaker may have opened while the lane was reading. The reader must not wait for a lane whose sink is left alone.
		return action{kind: actPark}
	case m == modeParking && f.arrivals > 0:
		return action{kind: actParkArrivals}
	case f.paused || f.delivering || f.reading:
		return a
	case f.hand > 0:
		return r.deliverLive(m, f, now, a)
	case f.rows > 0:
		return r.deliverRows(m, f, now, a)
	}
	return r.readTable(m, f, now, a)
}

// hangs reports whether arrivals have waited for park_after behind a Deliver that is not answered. They must not wait until it is
// answered, because the slot waits with them.
func (r *laneRules) hangs(f *facts, now time.Time, a *action) bool {
	if r.parkAfter == 0 || !f.delivering || f.arrivals == 0 {
		return false
	}
	at := f.began.Add(r.parkAfter)
	if now.Before(at) {
		a.wake(at)
		return false
	}
	return true
}

// wantsTable reports whether a live lane has to read the table: the sink is paused, rows were changed, one is due, an aggregate can be
// released, or the lane holds too many of them.
func (r *laneRules) wantsTable(f *facts, now time.Time, a *action) bool {
	if f.paused {
		return true
	}
	if f.hand > 0 {
		return false // what the lane has in hand goes first
	}
	wants := f.changed || f.held > r.maxHeld
	for _, at := range [...]time.Time{f.dueAt, f.releaseAt} {
		switch {
		case at.IsZero():
		case now.Before(at):
			a.wake(at)
		default:
			wants = true
		}
	}
	if wants && now.Before(f.catchUpAt) {
		a.wake(f.catchUpAt)
		return false
	}
	return wants
}

// deliverLive delivers what is in hand, or else arrivals.
func (r *laneRules) deliverLive(m mode, f *facts, now time.Time, a action) action {
	do := action{kind: actArrivals}
	switch {
	case !r.mayDeliver(m, f, now, &a):
		return a
	case f.hand > 0:
		if now.Before(f.handAt) {
			a.wake(f.handAt)
			return a
		}
		do.kind = actHand
	case f.arrivals == 0:
		return a
	case f.arrivals < r.batch && f.fast:
		if at := f.began.Add(deliverPace); now.Before(at) {
			a.wake(at)
			return a
		}
	}
	return r.permitted(f, now, a, do)
}

// deliverRows delivers rows that were read.
func (r *laneRules) deliverRows(m mode, f *facts, now time.Time, a action) action {
	if !r.mayDeliver(m, f, now, &a) {
		return a
	}
	return r.permitted(f, now, a, action{kind: actRows})
}

// mayDeliver reports whether a Deliver may start, as far as the lane itself knows.
func (r *laneRules) mayDeliver(m mode, f *facts, now time.Time, a *action) bool {
	if f.committed < f.died {
		// What has died in place, or was discarded, must be recorded first. Otherwise a crash would forget that, and the next session
		// would deliver it behind messages that followed it.
		a.hurry = f.died
		return false
	}
	if f.permission.lease > 0 {
		a.wake(now.Add(f.permission.lease))
		return false
	}
	return !f.delivering && f.unrecorded < maxUnrecorded && !f.paused && (m == modeLive || f.unrecordedRows < maxCatchingRows)
}

// permitted returns do if the breaker permits it, else a.
func (r *laneRules) permitted(f *facts, now time.Time, a, do action) action {
	do.most, do.probe = r.batch, f.permission.probe
	if do.probe || f.one && do.kind != actRows {
		do.most = 1 // in place, each try of each message is a row in the ledger
	}
	switch {
	case f.permission.ok:
		return do
	case r.policy == discardFailed && f.hand+f.arrivals > 0:
		return action{kind: actDiscard}
	case f.permission.wait > 0:
		a.wake(now.Add(f.permission.wait))
	}
	return a
}

// readTable reads the table once the outcomes of this lane's Deliver calls are committed. If arrivals wait, everything that the lane
// has given to the recorder must be committed: a read must see a parked row of an aggregate before its next arrival is let through.
func (r *laneRules) readTable(m mode, f *facts, now time.Time, a action) action {
	barrier := f.outcomes
	if m != modeParking {
		barrier = f.given
	}
	switch {
	case m != modeParking && f.ungiven:
		a.wake(now)
		return a
	case f.committed < barrier:
		a.hurry = barrier
		return a
	case now.Before(f.readAt) && !f.changed:
		a.wake(f.readAt)
		return a
	}
	return r.permitted(f, now, a, action{kind: actRead})
}

// found is what a read of the table has found, as far as the mode depends on it.
type found struct {
	rows  int  // to be delivered now
	fresh int  // fresh rows among all that were read
	more  bool // there may be further fresh rows, or one that is too large for this read
	probe bool // only one row is delivered now, as a probe
	whole bool // the read began a pass, and arrivals have waited from before it until after it
	heads int  // aggregates that the table holds, as far as they were counted
	job   bool // the sink has an unfinished job, so that arrivals go on being parked
}

// afterRead returns the mode after a read that ended in mode m. pause says that the next read has to wait for readPace.
func (r *laneRules) afterRead(m mode, f found) (next mode, pause bool) {
	switch {
	case f.job:
		return modeParking, f.rows == 0 && !f.more
	case f.more || f.fresh > r.batch || f.probe && f.rows > 0:
		return modeParking, false // many rows are left, or nobody knows how many
	case f.rows > 0 && m == modeWaiting:
		// Arrivals wait for the Deliver of these rows. If they were parked, some would be parked each time, and the lane would never
		// go live.
		return modeWaitedOnce, false
	case f.rows > 0 && m == modeWaitedOnce:
		// Arrivals have waited for one Deliver. Park them now: neither the slow rule nor the breaker sees a waiting lane.
		return modeParking, false
	case m == modeParking:
		return modeWaiting, false // these are the last rows: read again once all is committed
	case f.rows > 0 || !f.whole:
		return m, false
	case f.heads > r.maxHeld:
		return modeParking, true
	}
	return modeLive, false
}
