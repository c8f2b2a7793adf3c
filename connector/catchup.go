package connector

import (
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	// readPace is the least time between two reads of a lane that cannot go live because it holds too many aggregates.
	readPace = time.Second
	// readRetry is how long a lane waits after a read that failed.
	readRetry = 500 * time.Millisecond
	// maxPassed is how many hashes a pass may leave out. A pass that would leave out more begins anew.
	maxPassed = 1000
)

// catching is the state of a lane that catches up: that delivers its rows of outbox_parked. The table is the only truth: apart from the
// rows that the last read has found, the lane keeps none in memory.
type catching struct {
	waiting bool        // arrivals wait in the lane's queue; else they are parked
	waited  bool        // arrivals have waited for one Deliver
	rows    []*delivery // found by the last read, and not delivered yet

	// The read that runs beside the lane.
	reading   bool
	asking    ledger.ParkedQuery
	probing   bool // only one of the rows will be delivered, as a probe
	whole     bool // the read began a pass, and arrivals waited when it began
	read      chan readResult
	startRead func(ledger.ParkedQuery)

	// When the next read is.
	readAt       time.Time // not before this
	tableChanged bool      // somebody has changed rows: read at once
	rereadAt     time.Time // at the latest
	wantsLarge   bool      // the last read left out a row that is too large for an ordinary read
	hurriedSeq   uint64    // the highest Seq for which the recorder was told that the lane waits

	// A pass over the untried rows; see ledger.ParkedQuery. The pass has come to from, and its last read began at prev.
	prev, from checkpoint.Position
	passed     map[int64]struct{} // hashes of aggregates of which the pass has left rows behind
	floor      floor              // where a pass begins
}

// catchUp switches the lane to delivering parked rows. New arrivals wait in its queue.
func (l *lane) catchUp() {
	l.live, l.waiting, l.waited, l.readAt = false, true, false, time.Time{}
}

// parkArrivals makes the lane park arrivals from now on. It first parks what is being delivered, and then what was to be tried again
// in place, so that what is settled of an aggregate is always a prefix of it. The outcome of the running Deliver then settles the rows.
func (l *lane) parkArrivals() {
	if !l.live && !l.waiting { // arrivals are parked already
		if l.breaker.current() != breakerClosed {
			l.rows = nil // the next read finds the row for the probe
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

// parkAll parks the deliveries that have no row yet. If the sink is tried once, it discards them.
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
	if len(l.inHand) > 0 { // what the lane has in hand goes first
		l.stepLive(now)
		return
	}
	if len(l.rows) > 0 {
		l.deliverRows(now)
		return
	}
	l.readRows(now)
}

// deliverRows starts a Deliver of rows that were read. It leaves rows that stand behind a failure of their aggregate in the table.
func (l *lane) deliverRows(now time.Time) {
	if !l.mayDeliver() {
		return
	}
	p := l.permitted(now)
	if !p.ok {
		return
	}
	// A batch has fresh rows or due rows: many due rows that are never answered must not use up the time of fresh ones.
	most := 1
	for most < min(len(l.rows), l.delivery.BatchSize) && l.rows[most].due == l.rows[0].due && !p.probe {
		most++
	}
	l.deliverSome(now, &l.rows, most, func(d *delivery) bool {
		_, held := l.held[d.hash]
		return held
	})
}

// readRows starts a read once the outcomes of this lane's Deliver calls are committed. If arrivals wait, everything that the lane has
// given to the recorder must be committed: a read must see a parked row of an aggregate before its next arrival is let through.
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
		MaxDue: l.delivery.BatchSize, MaxHeads: l.maxHeld, MaxBytes: maxReadBytes, Large: l.wantsLarge,
	}
	l.floor.readBegins()
	l.probing = p.probe
	l.whole = l.asking.NewPass() && l.waiting
	l.tableChanged, l.reading = false, true
	l.rereadAt = now.Add(rereadEvery)
	l.startRead(l.asking)
}

// hurry tells the recorder, once for each seq, that this lane waits until what it has given is committed.
func (l *lane) hurry(seq uint64) {
	if l.hurriedSeq >= seq {
		return
	}
	l.hurriedSeq = seq
	select {
	case l.out <- checkpoint.Outcomes{Urgent: true}:
	default: // its channel is full, so it is not waiting for more outcomes
	}
}

// onRead decides how the lane goes on after a read.
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
	for _, h := range res.found.Left {
		l.passed[h] = struct{}{}
	}
	if n := len(res.fresh); n > 0 {
		l.floor.read(res.fresh[n-1].position())
	}
	if l.asking.NewPass() {
		l.floor.readEnds(res.found.First)
	}
	l.prev, l.from = l.asking.From, checkpoint.MinPosition
	clear(l.held)
	if l.probing {
		l.rows = res.probe()
	} else {
		l.rows = append(append(l.rows[:0:0], res.fresh...), res.due...)
		if res.found.More {
			l.from = res.fresh[len(res.fresh)-1].position()
		}
	}
	l.wantsLarge = res.found.Large
	l.waited = l.waited && l.waiting
	// Arrivals may have stopped waiting while the read was under way.
	whole := l.whole && l.waiting
	switch {
	case res.found.More || res.found.Large || len(res.fresh) > l.delivery.BatchSize || l.probing && len(l.rows) > 0:
		l.waiting = false // many rows are left, or nobody knows how many: park arrivals meanwhile
	case len(l.rows) > 0 && l.waiting && !l.waited:
		// Arrivals wait for the Deliver of these rows. If they were parked, some would be parked each time, and the lane would never
		// go live.
		l.waited = true
	case len(l.rows) > 0 && l.waiting:
		// Arrivals have waited for one Deliver. Park them now: neither the slow rule nor the breaker sees a waiting lane.
		l.waiting = false
	case len(l.rows) > 0 || !whole:
		l.waiting = true // these are the last rows: read again once all is committed
	case len(res.found.Heads) > l.maxHeld:
		l.waiting = false
		l.readAt = now.Add(readPace)
	default:
		l.goLive(res.found.Heads, now)
	}
}

// goLive lets arrivals through, except those of the aggregates that the last read found held.
func (l *lane) goLive(heads map[int64]time.Time, now time.Time) {
	l.live, l.waiting = true, false
	for h, due := range heads {
		l.hold(h, due)
	}
	l.catchUpAt = now.Add(catchUpPace)
}

// hold blocks this aggregate until the next read of the table, which is due then.
func (l *lane) hold(hash int64, due time.Time) {
	if len(l.held) == 0 || due.Before(l.heldUntil) {
		l.heldUntil = due
	}
	l.held[hash] = struct{}{}
}
