package connector

import (
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	// readPace is how often a lane reads that holds too many aggregates to be live.
	readPace = time.Second
	// readRetry is how long a lane waits after a read that failed.
	readRetry = 500 * time.Millisecond
	// maxPassed is how many hashes a pass leaves out before it begins anew.
	maxPassed = 1000
)

// catching is the state of a lane that catches up. The table is the truth; nothing of it is kept in memory.
type catching struct {
	waiting      bool        // arrivals wait; else they are parked
	waited       bool        // and have done so for one Deliver
	rows         []*delivery // read, to be delivered
	reading      bool
	asking       ledger.ParkedQuery // of the read that runs
	probing      bool               // of which one row is delivered, as a probe
	whole        bool               // the read that runs began a pass, and arrivals waited when it began
	read         chan readResult
	startRead    func(ledger.ParkedQuery)
	readAt       time.Time // not before
	tableChanged bool      // somebody changed rows
	rereadAt     time.Time
	hurriedSeq   uint64 // Seq that the recorder was told to hurry with

	wantsLarge bool // the last read left out a row that is too large for it

	prev, from checkpoint.Position // a pass: fresh rows up to from are behind it; those before prev were asked for
	passed     map[int64]struct{}  // hashes of which it left rows behind
	floor      floor               // where a pass begins
}

// catchUp: the table first; arrivals wait.
func (l *lane) catchUp() {
	l.live, l.waiting, l.waited, l.readAt = false, true, false, time.Time{}
	l.metrics.CatchingUp.Inc()
}

// parkArrivals: from now on arrivals are parked. What is on the wire is parked first, and what was to be tried again in place next,
// so that what is settled of an aggregate is always a prefix of it; the outcome of the wire then settles its rows.
func (l *lane) parkArrivals() {
	if !l.live && !l.waiting { // they are already
		if l.breaker.state() != gobreaker.StateClosed {
			l.rows = nil // a probe is read
		}
		return
	}
	if l.live {
		l.catchUp()
	}
	if l.running != nil {
		l.parkAll(l.running.messages)
	}
	l.parkAll(l.inHand)
	l.inHand = nil
	l.waiting, l.rows = false, nil
}

// parkAll parks those that have no row yet. For a sink that is tried once they are discarded.
func (l *lane) parkAll(list []*delivery) {
	for _, d := range list {
		switch {
		case d.row || d.discarded:
		case l.oneTry:
			l.discard(d)
		default:
			l.park(d)
		}
	}
}

// stepCatchingUp parks arrivals unless they wait, delivers what was read, and then reads again.
func (l *lane) stepCatchingUp(now time.Time) {
	paused := l.paused.Load()
	if paused && l.waiting {
		l.parkArrivals()
	}
	if !l.waiting {
		l.parkAll(l.pending)
		l.pending = nil
	}
	if paused || l.running != nil || l.reading {
		return
	}
	if len(l.inHand) > 0 { // what is in flight first
		l.stepLive(now)
		return
	}
	if len(l.rows) > 0 {
		l.deliverRows(now)
		return
	}
	l.readRows(now)
}

// deliverRows delivers rows; what stands behind a failure of its aggregate is left in the table.
func (l *lane) deliverRows(now time.Time) {
	if !l.mayDeliver() {
		return
	}
	p := l.permitted(now)
	if !p.ok {
		return
	}
	// Fresh ones and due ones apart: many that are due and never answered must not take what fresh ones need.
	most := 1
	for most < min(len(l.rows), l.delivery.BatchSize) && l.rows[most].due == l.rows[0].due && !p.probe {
		most++
	}
	l.deliverSome(now, &l.rows, most, func(d *delivery) bool {
		_, held := l.held[d.hash]
		return held
	})
}

// readRows reads when all outcomes of this lane are committed; if arrivals wait, all that it ever gave: a parked row of an
// aggregate must be seen before its next arrival is let through.
func (l *lane) readRows(now time.Time) {
	barrier := l.deliveredSeq
	if l.waiting {
		barrier = l.givenSeq
	}
	if len(l.parks) > 0 && l.waiting {
		l.wakeAt(now) // given at the end of this step
		return
	}
	if l.committedSeq < barrier {
		l.hurry(barrier)
		return
	}
	if now.Before(l.readAt) && !l.tableChanged {
		l.wakeAt(l.readAt)
		return
	}
	p := l.permitted(now)
	if !p.ok {
		return
	}
	if l.wantsLarge && !l.large.take(l) {
		return
	}
	if l.tableChanged || p.probe || l.wantsLarge || len(l.passed) > maxPassed {
		l.from = checkpoint.MinPosition // a new pass
	}
	if l.from == checkpoint.MinPosition {
		l.prev, l.passed = checkpoint.MinPosition, nil
	}
	l.asking = ledger.ParkedQuery{
		Prev: l.prev, From: l.from, Floor: l.floor.at, Passed: l.passed,
		MaxDue: l.delivery.BatchSize, MaxHeads: maxHeld, MaxBytes: maxReadBytes, Large: l.wantsLarge,
	}
	l.floor.readBegins()
	l.probing = p.probe
	l.whole = l.asking.NewPass() && l.waiting
	l.tableChanged, l.reading = false, true
	l.rereadAt = now.Add(rereadEvery)
	l.startRead(l.asking)
}

// hurry tells the recorder, once, that this lane waits for what it has given.
func (l *lane) hurry(seq uint64) {
	if l.hurriedSeq >= seq {
		return
	}
	l.hurriedSeq = seq
	select {
	case l.out <- checkpoint.Outcomes{Urgent: true}:
	default: // it has enough to do
	}
}

// onRead decides, by what a read found, how the lane goes on.
func (l *lane) onRead(res readResult, now time.Time) {
	l.reading = false
	l.state.read(res.err)
	if res.err != nil {
		l.readAt, l.tableChanged = now.Add(readRetry), false
		l.from = checkpoint.MinPosition
		return
	}
	if l.passed == nil {
		l.passed = map[int64]struct{}{}
	}
	for _, h := range res.Left {
		l.passed[h] = struct{}{}
	}
	if n := len(res.fresh); n > 0 {
		l.floor.read(res.fresh[n-1].position())
	}
	if l.asking.NewPass() {
		l.floor.readEnds(res.First)
	}
	l.prev, l.from = l.asking.From, checkpoint.MinPosition
	clear(l.held)
	if l.probing {
		l.rows = res.probe()
	} else {
		l.rows = append(append(l.rows[:0:0], res.fresh...), res.due...)
		if res.More {
			l.from = res.fresh[len(res.fresh)-1].position()
		}
	}
	l.wantsLarge = res.Large
	l.waited = l.waited && l.waiting
	// Arrivals may have stopped waiting while the read was under way.
	whole := l.whole && l.waiting
	switch {
	case res.More || res.Large || len(res.fresh) > l.delivery.BatchSize || l.probing && len(l.rows) > 0:
		l.waiting = false // too many are left, or their number is not known: arrivals are parked meanwhile
	case len(l.rows) > 0 && l.waiting && !l.waited:
		l.waited = true // they wait for the Deliver of these: else some would be parked meanwhile, each time anew
	case len(l.rows) > 0 && l.waiting:
		l.waiting = false // they waited for one Deliver; the slow rule and the breaker know nothing of a lane that waits
	case len(l.rows) > 0 || !whole:
		l.waiting = true // the last ones: read again when all is committed
	case len(res.Heads) > l.maxHeld:
		l.waiting = false
		l.readAt = now.Add(readPace)
	default:
		l.goLive(res.Heads, now)
	}
}

func (l *lane) goLive(heads map[int64]time.Time, now time.Time) {
	l.live, l.waiting = true, false
	l.metrics.CatchingUp.Dec()
	for h, due := range heads {
		l.hold(h, due)
	}
	l.catchUpAt = now.Add(catchUpPace)
}

// hold: nothing of this aggregate is let through before the table was read again, which is due then.
func (l *lane) hold(hash int64, due time.Time) {
	if len(l.held) == 0 || due.Before(l.heldUntil) {
		l.heldUntil = due
	}
	l.held[hash] = struct{}{}
}
