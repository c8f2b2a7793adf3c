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

// tableState is what a lane knows of its rows in outbox_parked. The table is the only truth: apart from the rows that the last read has
// found, the lane keeps none in memory.
type tableState struct {
	reading bool // a read runs beside the lane
	asking  ledger.ParkedQuery
	probing bool                // only one of the rows will be delivered, as a probe
	probed  checkpoint.Position // the last probe
	whole   bool                // the read began a pass, and arrivals waited when it began

	// When the next read is.
	readAt     time.Time // of a lane that catches up: not before this, unless changed
	catchUpAt  time.Time // of a live lane: not before this
	rereadAt   time.Time // at the latest
	changed    bool      // somebody has changed rows: read as soon as possible
	wantsLarge bool      // the last read left out a row that is too large for an ordinary read

	// A pass over the untried rows; see ledger.ParkedQuery. The pass has come to from, and its last read began at prev.
	prev, from checkpoint.Position
	passed     map[int64]struct{} // hashes of aggregates of which the pass has left rows behind
	floor      floor              // where a pass begins

	// Of the sink's unfinished job, as the lane knows it.
	before checkpoint.Position // the lane reads only what stands before this; zero if there is no job
	chunk  uint64              // the last chunk that it has parked
	reads  uint64              // the last one of which the read is to find all rows
}

// hasJob reports whether the sink has an unfinished job.
func (t *tableState) hasJob() bool { return t.before != (checkpoint.Position{}) }

// heldAggregates are the aggregates of which the last read, or a failure since, has left a row in the table. What stands behind that row
// waits until the table is read again.
type heldAggregates struct {
	hashes    map[int64]struct{}
	dueAt     time.Time // when the first of their rows is due; zero: none of them has a time
	releaseAt time.Time // when a read may release one of them that has no row with a time; zero: all have

	// For Status. A lane that catches up keeps the heads in the table only, so that hashes has not all that is held.
	heads map[int64]time.Time // the aggregates that the last read has found held by a tried row
	added int                 // how many of hashes are not among heads
}

// known returns how many aggregates are held as far as the lane knows, in hashes or in the table.
func (h *heldAggregates) known() int { return len(h.heads) + h.added }

func (h *heldAggregates) has(hash int64) bool {
	_, held := h.hashes[hash]
	return held
}

// clear forgets what was held before a read that has found these heads.
func (h *heldAggregates) clear(heads map[int64]time.Time) {
	clear(h.hashes)
	h.dueAt, h.releaseAt = time.Time{}, time.Time{}
	h.heads, h.added = heads, 0
}

func (h *heldAggregates) add(hash int64) {
	if h.has(hash) {
		return
	}
	h.hashes[hash] = struct{}{}
	if _, named := h.heads[hash]; !named {
		h.added++
	}
}

// untilDue holds an aggregate because of a row that is due at this time.
func (h *heldAggregates) untilDue(hash int64, due time.Time) {
	if h.dueAt.IsZero() || due.Before(h.dueAt) {
		h.dueAt = due
	}
	h.add(hash)
}

// untilRead holds an aggregate until a read of the table shows whether it is still held.
func (h *heldAggregates) untilRead(hash int64, now time.Time) {
	if h.releaseAt.IsZero() {
		h.releaseAt = now
	}
	h.add(hash)
}

// aggregates counts the aggregates of the messages.
func (q *handQueue) aggregates() int {
	if len(q.list) == 0 {
		return 0
	}
	hashes := map[int64]struct{}{}
	for _, d := range q.list {
		hashes[d.hash] = struct{}{}
	}
	return len(hashes)
}

// startRead starts a read of the table. It reports false if this lane has to wait for its turn to read a large row.
func (l *lane) startRead(a action, now time.Time) bool {
	t := &l.table
	if t.wantsLarge && !l.large.take(l) {
		return false
	}
	if t.changed || a.probe || t.wantsLarge || len(t.passed) > maxPassed {
		t.from = checkpoint.MinPosition // a new pass
	}
	if t.from == checkpoint.MinPosition {
		t.prev, t.passed = checkpoint.MinPosition, nil
	}
	t.asking = ledger.ParkedQuery{
		Prev: t.prev, From: t.from, Floor: t.floor.at, Passed: t.passed,
		MaxDue: l.maxDue(now), MaxHeads: l.rules.maxHeld, MaxBytes: maxReadBytes, Large: t.wantsLarge,
	}
	t.asking.Before, t.reads = t.before, t.chunk
	t.asking.AlsoDue = l.away.back.notDue(nil, now)
	if a.probe {
		t.asking.MaxDue = l.delivery.BatchSize
		t.asking.AlsoDue = l.away.waiting.notDue(t.asking.AlsoDue, now) // each of these can ask
	}
	t.floor.readBegins()
	t.probing, t.whole = a.probe, t.asking.NewPass() && l.mode != modeParking
	t.changed, t.reading = false, true
	t.rereadAt = now.Add(rereadEvery)
	l.read(t.asking)
	return true
}

// maxDue returns how many due rows the next read may find. Those of a suspect sink stay in the table until their turn comes.
func (l *lane) maxDue(now time.Time) int {
	switch {
	case !l.budget.suspect():
		return l.delivery.BatchSize
	case now.Before(l.budget.dueAt()):
		return 0
	}
	return min(l.delivery.BatchSize, suspectCall)
}

// onRead takes what a read has found, and decides how the lane goes on.
func (l *lane) onRead(r readResult, now time.Time) {
	t := &l.table
	t.reading = false
	l.state.read(r.err)
	if r.err != nil {
		t.readAt, t.changed = now.Add(readRetry), false
		t.from = checkpoint.MinPosition
		return
	}
	if t.passed == nil {
		t.passed = map[int64]struct{}{}
	}
	for _, h := range r.found.Left {
		t.passed[h] = struct{}{}
	}
	if n := len(r.fresh); n > 0 {
		t.floor.read(r.fresh[n-1].position())
	}
	if t.asking.NewPass() {
		t.floor.readEnds(r.found.First, t.asking.Before)
	}
	t.prev, t.from = t.asking.From, checkpoint.MinPosition
	l.held.clear(r.found.Heads)
	if t.probing {
		l.rows = r.probe(t.probed)
	} else {
		l.rows = append(append(l.rows[:0:0], r.fresh...), r.due...)
		if r.found.More {
			t.from = r.fresh[len(r.fresh)-1].position()
		}
	}
	l.away.read(t.asking, r)
	t.wantsLarge = r.found.Large
	next, pause := l.rules.afterRead(l.mode, found{
		rows: len(l.rows), fresh: len(r.fresh), more: r.found.More || r.found.Large, probe: t.probing, heads: len(r.found.Heads),
		whole: t.whole && l.mode != modeParking, // arrivals may have stopped waiting while the read was under way
		job:   t.hasJob(),
	})
	l.mode = next
	if !r.found.More && !r.found.Large && (!t.probing || len(r.fresh) == 0) {
		l.backlog.dry(l.number, t.reads)
	}
	t.readAt = time.Time{}
	switch {
	case pause && t.hasJob():
		t.readAt = l.nextDue(r.found.Heads, now)
	case pause:
		t.readAt = now.Add(readPace)
	case next == modeLive:
		for h, due := range r.found.Heads {
			l.held.untilDue(h, due)
		}
		if len(l.away.back) > 0 { // the destination came back while the read was under way
			l.held.dueAt = now
		}
		t.catchUpAt = now.Add(catchUpPace)
	}
}

// nextDue returns when a lane that has found no row has to look again, while a job is unfinished and arrivals are parked.
func (l *lane) nextDue(heads map[int64]time.Time, now time.Time) time.Time {
	next := now.Add(rereadEvery)
	for _, due := range heads {
		if due.Before(next) {
			next = due
		}
	}
	if turn := l.budget.dueAt(); turn.After(next) {
		next = turn
	}
	if pace := now.Add(catchUpPace); next.Before(pace) {
		return pace
	}
	return next
}
