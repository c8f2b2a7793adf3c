package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// worldDelivery is one event for one sink, which its processor names.
type worldDelivery struct {
	processor int32
	event     *worldEvent
}

// worldLedger is the whole ledger, in a PostgreSQL that may be down. It checks everything that is written to it. The world's mutex guards it. The
// parked rows have a mutex of their own, which is taken after the world's.
type worldLedger struct {
	w      *simulation
	parked memLedger

	timeline  int32
	epoch     int32
	clean     bool // there was no session before, or the last one has ended cleanly
	ended     bool // there was no session before, or the last one has said that it has ended
	seq       int64
	changes   uint64 // the id of the last transaction of a person
	prefix    checkpoint.Position
	confirmed pglogrepl.LSN
	log       []checkpoint.Key // delivered, dead, discarded

	last       map[worldDelivery]string // status of the last log row
	settled    map[worldDelivery]bool
	dead       map[worldDelivery]bool // ever
	discarded  map[worldDelivery]bool // ever: an outcome that was under way may still follow in the log
	displaced  map[worldDelivery]bool // declared dead by a person, untried perhaps: when it is retried it comes before its predecessors
	aggregates map[string]*worldAggregate
	covered    int // transactions of the WAL of which everything is settled, as far as somebody relied on it

	jobs      []*worldJob
	byJob     map[worldDelivery]bool                // what the stream does not bring any more: only a job can
	leftOut   map[worldDelivery]bool                // by init
	declined  time.Time                             // a later job finds nothing of that from before this time
	knowsAll  bool                                  // the later sink is registered
	places    map[worldDelivery]checkpoint.Position // where it was settled
	recording *worldConn                            // of the transaction that is applied

	renumbered map[worldDelivery]worldMove
}

// worldAggregate is an aggregate's events at a sink, those that the stream brings. What is settled of them is a prefix.
type worldAggregate struct {
	events          []*worldEvent
	prefix, settled int
}

func newWorldLedger(w *simulation) *worldLedger {
	return &worldLedger{
		clean: true, ended: true, timeline: 1,
		w: w, prefix: checkpoint.Position{LSN: w.end, Index: -1}, confirmed: w.end, last: map[worldDelivery]string{}, settled: map[worldDelivery]bool{},
		dead: map[worldDelivery]bool{}, displaced: map[worldDelivery]bool{}, discarded: map[worldDelivery]bool{}, aggregates: map[string]*worldAggregate{},
		byJob: map[worldDelivery]bool{}, leftOut: map[worldDelivery]bool{}, places: map[worldDelivery]checkpoint.Position{},
		renumbered: map[worldDelivery]worldMove{}, knowsAll: !w.cfg.life.later,
	}
}

// processors returns the processors that e is owed to: those of its sinks, or 0 if no route matches it.
func processors(e *worldEvent) []int32 {
	if len(e.sinks) == 0 {
		return []int32{0}
	}
	var ids []int32
	for _, s := range e.sinks {
		ids = append(ids, processor(s))
	}
	return ids
}

func (l *worldLedger) aggregate(processor int32, e *worldEvent) *worldAggregate {
	name := fmt.Sprint(e.aggregate, processor)
	if l.aggregates[name] == nil {
		l.aggregates[name] = &worldAggregate{}
	}
	return l.aggregates[name]
}

// owe notes an event that was committed: its sinks are owed it from now on.
func (l *worldLedger) owe(e *worldEvent) {
	for _, p := range processors(e) {
		if k := (worldDelivery{p, e}); !l.w.slot.exists || l.unknown(p) {
			l.byJob[k] = true
			continue
		}
		a := l.aggregate(p, e)
		a.events = append(a.events, e)
	}
}

// settle notes that a delivery is settled at this position, which it then stays.
func (l *worldLedger) settle(k worldDelivery, at checkpoint.Position) {
	if place, is := l.places[k]; is && place != at {
		l.w.violation("twice", "%v is settled for processor %d at %s, and was at %s", k.event, k.processor, at, place)
	}
	l.places[k] = at
	if l.settled[k] {
		return
	}
	l.settled[k] = true
	if !l.byJob[k] {
		l.aggregate(k.processor, k.event).settled++
	}
}

func (l *worldLedger) logRow(k worldDelivery, at checkpoint.Position, status string) {
	if status == "delivered" && l.last[k] == status {
		l.w.violation("log", "%v has a second delivered row of processor %d", k.event, k.processor)
	}
	l.last[k] = status
	l.dead[k] = l.dead[k] || status == "dead"
	l.discarded[k] = l.discarded[k] || status == "discarded"
	l.log = append(l.log, checkpoint.Key{Processor: k.processor, Position: at})
	l.settle(k, at)
}

// apply does what a transaction of the recorder does, and checks it. It returns what the transaction has changed.
func (l *worldLedger) apply(b checkpoint.Batch) (changes []ledger.RowChange) {
	w := l.w
	var rows []checkpoint.Outcome
	for _, o := range b.Outcomes {
		rows = append(rows, o.Rows...)
	}
	l.seq++
	w.stats.Commits++
	w.trace("LEDGER #%d: %d rows, prefix %s, confirmed %s", l.seq, len(rows), b.Watermark.Prefix, b.Watermark.LSN)
	for _, o := range rows {
		l.outcome(o)
	}
	for _, o := range b.Outcomes {
		l.step(o)
	}
	for id, n := range l.parked.apply(rows) {
		changes = append(changes, ledger.RowChange{Processor: id, Rows: n, Batch: l.seq})
	}
	for _, o := range rows {
		a := l.aggregate(o.Processor, w.events[o.EventID])
		for a.prefix < len(a.events) && l.settled[worldDelivery{o.Processor, a.events[a.prefix]}] {
			a.prefix++
		}
		// A sink that is tried once may discard events in any order.
		if o.Processor != 0 && a.prefix < a.settled && !w.sinks[o.Processor-1].oneTry {
			w.violation("no prefix", "of aggregate %s at processor %d %d events are settled, but not %v", w.events[o.EventID].aggregate, o.Processor, a.settled, a.events[a.prefix])
		}
	}
	if b.Watermark.Prefix.Compare(l.prefix) < 0 || b.Watermark.LSN < l.confirmed {
		w.violation("back", "the checkpoint moves from %s and %s to %s and %s", l.prefix, l.confirmed, b.Watermark.Prefix, b.Watermark.LSN)
	}
	l.prefix, l.confirmed = b.Watermark.Prefix, b.Watermark.LSN
	l.cover()
	return changes
}

func (l *worldLedger) outcome(o checkpoint.Outcome) {
	w, e := l.w, l.w.events[o.EventID]
	k := worldDelivery{o.Processor, e}
	w.trace("    processor %d: %v %s, attempt %d, row %d %+v", o.Processor, e, o.Status, o.Attempt, o.Row, due(o))
	if !l.mayStandAt(k, o.Position) {
		w.violation("position", "%v is recorded at %s for processor %d", e, o.Position, o.Processor)
	}
	if o.Processor != 0 {
		w.sinks[o.Processor-1].checkOutcome(e, o)
	}
	if o.Row == checkpoint.RowInsert {
		l.settle(k, o.Position)
		w.stats.Parked++
	}
	switch o.Status {
	case checkpoint.Delivered:
		a := w.sinks[o.Processor-1].acceptanceOf(e)
		delete(a.known, l.recording.session)
		if a.committed = true; a.count == 0 {
			w.violation("delivered", "%v is recorded as delivered, which processor %d never accepted", e, o.Processor)
		}
		l.logRow(k, o.Position, "delivered")
	case checkpoint.Dead:
		w.stats.Dead++
		l.logRow(k, o.Position, "dead")
	case checkpoint.Discarded:
		l.logRow(k, o.Position, "discarded")
	case checkpoint.Failed, checkpoint.Parked:
	}
}

func due(o checkpoint.Outcome) string {
	if o.Parked == nil || o.Parked.NextAttempt.IsZero() {
		return ""
	}
	return fmt.Sprintf("due in %.1f s, attempts %d", time.Until(o.Parked.NextAttempt).Seconds(), o.Parked.Attempts)
}

// cover checks that everything is settled that the checkpoint covers: all events at or before the prefix, and all events of each transaction whose
// commit record begins before the confirmed LSN.
func (l *worldLedger) cover() {
	for ; l.covered < len(l.w.wal); l.covered++ {
		tx := l.w.wal[l.covered]
		for _, e := range tx.events {
			if e.pos.Compare(l.prefix) > 0 && tx.commit >= l.confirmed {
				return
			}
			for _, p := range processors(e) {
				if k := (worldDelivery{p, e}); !l.settled[k] && !l.byJob[k] {
					l.w.violation("unsettled", "the checkpoint covers %v (prefix %s, confirmed %s), which is not settled for processor %d", e, l.prefix, l.confirmed, p)
				}
			}
		}
	}
}

// confirm moves the slot when a standby status reaches PostgreSQL.
func (w *simulation) confirm(lsn pglogrepl.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.pgUp || !w.slot.exists || lsn <= w.slot.confirmed {
		return
	}
	if lsn > w.ledger.confirmed {
		w.violation("slot", "%s is confirmed, the checkpoint stands at %s", lsn, w.ledger.confirmed)
	}
	w.slot.confirmed = lsn
	w.trace("slot at %s", lsn)
}

// worldConn is a session's connection to the ledger. As a checkpoint.Ledger it behaves like ledger.BatchWriter.
type worldConn struct {
	*worldLedger
	p       *worldProcess
	session int
	epoch   int32
	seq     int64
	broken  bool
	tries   int
	changed func([]ledger.RowChange)
	changes []ledger.RowChange // of the last transaction
}

var (
	errWorldNoPostgres = errors.New("connection refused")
	errWorldUnanswered = errors.New("the call was ended before there was an answer")
)

// open does what ledger.Open does: it raises the epoch and reads what is settled beyond the prefix.
func (l *worldLedger) open(p *worldProcess) (*worldConn, ledger.Start) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.parked.mu.Lock()
	defer l.parked.mu.Unlock()
	l.epoch++
	defer func() { l.clean, l.ended = false, false }()
	start := ledger.Start{
		Checkpoint: ledger.Checkpoint{Identity: ledger.Identity{Timeline: l.timeline}, Epoch: l.epoch, Prefix: l.prefix, Confirmed: l.confirmed}, Clean: l.clean, Ended: l.ended, Settled: map[checkpoint.Key]struct{}{},
	}
	events := map[checkpoint.Position]struct{}{}
	add := func(k checkpoint.Key) {
		if k.Position.Index >= 0 && k.Position.Compare(l.prefix) > 0 {
			start.Settled[k] = struct{}{}
			events[k.Position] = struct{}{}
		}
	}
	for _, r := range l.parked.rows {
		add(checkpoint.Key{Processor: r.processor, Position: r.pos})
	}
	for _, k := range l.log {
		add(k)
	}
	if len(events) > l.w.cfg.ring {
		l.w.violation("window", "%d events beyond the prefix are settled, of at most %d", len(events), l.w.cfg.ring)
	}
	l.w.trace("SESSION %d: slot %s, prefix %s, %d settled beyond", p.session, l.w.slot.confirmed, l.prefix, len(start.Settled))
	return &worldConn{worldLedger: l, p: p, session: p.session, epoch: l.epoch, seq: l.seq}, start
}

// leave does what ledger.Schema.Leave does.
func (l *worldLedger) leave(session int, d ledger.Departure) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.parked.mu.Lock()
	defer l.parked.mu.Unlock()
	if !l.w.pgUp || d.Epoch != l.epoch {
		return
	}
	l.ended = true
	l.clean = d.Clean && !slices.ContainsFunc(l.parked.rows, func(r *memRow) bool {
		return r.pos.LSN < d.SeenBefore && !r.dead && r.attempts == r.tries
	})
	l.w.trace("SESSION %d leaves, clean: %t", session, l.clean)
	if l.clean {
		l.w.stats.Clean++
	}
}

// Close is checkpoint.Ledger's.
func (c *worldConn) Close() {}

// Commit takes some time. The server may be down, and the answer may get lost.
func (c *worldConn) Commit(ctx context.Context, b checkpoint.Batch) (err error) {
	w := c.w
	w.step()
	if c.p.isKilled() {
		return checkpoint.ErrFenced // so that the recorder ends
	}
	c.tries++
	r := w.random("commit", c.session, c.tries)
	if c.broken {
		if !c.p.slept(ctx, r.between(timeUnit/5, 3*timeUnit)) || c.p.reachesPostgres(ctx) != nil {
			return errWorldUnanswered
		}
		if done, err := c.reconnect(); done || err != nil {
			if done {
				c.changed(c.changes)
			}
			return err
		}
	}
	took := r.between(timeUnit/2, 3*timeUnit)
	switch {
	case r.chance(0.5):
		took = r.between(time.Millisecond, timeUnit/2)
	case r.chance(w.cfg.slowLedger):
		took = r.between(timeUnit, 100*timeUnit)
	}
	arrives := c.p.slept(ctx, took) && c.p.reachesPostgres(ctx) == nil
	if !arrives && r.chance(0.5) { // we have ended the call, and the COMMIT has not reached the server
		c.broken = true
		return errWorldUnanswered
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	lost := w.faults && r.chance(w.cfg.lostCOMMIT)
	if !w.pgUp || lost && r.chance(0.5) {
		c.broken = true
		return errWorldNoPostgres
	}
	if c.epoch != c.worldLedger.epoch || c.seq != c.worldLedger.seq {
		return checkpoint.ErrFenced
	}
	defer func() {
		if p := recover(); p != nil { // of memLedger
			w.violation("panic", "%v", p)
			err = checkpoint.ErrFenced
		}
	}()
	c.recording = c
	c.changes = c.apply(b)
	if lost || !arrives {
		w.stats.LostCOMMITs++
		w.trace("the answer to COMMIT #%d is lost", c.worldLedger.seq)
		c.broken = true
		return errWorldNoPostgres
	}
	c.seq++
	c.changed(c.changes)
	return nil
}

// reconnect reports whether the last transaction was committed.
func (c *worldConn) reconnect() (done bool, err error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	switch {
	case !c.w.pgUp:
		return false, errWorldNoPostgres
	case c.epoch != c.worldLedger.epoch:
		return false, checkpoint.ErrFenced
	}
	c.broken = false
	done = c.worldLedger.seq > c.seq
	c.seq = c.worldLedger.seq
	return done, nil
}

// worldTable is a lane's share of the parked rows.
type worldTable struct {
	*memTable
	p      *worldProcess
	random random
}

// Read is ledger.ParkedReader's.
func (t *worldTable) Read(ctx context.Context, q ledger.ParkedQuery) (ledger.ParkedRead, error) {
	w := t.p.w
	w.step()
	if err := t.p.ask(ctx, t.random); err != nil {
		return ledger.ParkedRead{}, err
	}
	if w.failing() && !w.cfg.calm && t.random.chance(0.02) {
		return ledger.ParkedRead{}, errWorldNoPostgres
	}
	a, err := t.memTable.Read(ctx, q)
	w.mu.Lock()
	w.stats.Reads++
	w.trace("lane %d of processor %d reads from %s: %d fresh, %d due, %d heads, more %t", t.lane, t.processor, q.From, len(a.Fresh), len(a.Due), len(a.Heads), a.More)
	w.mu.Unlock()
	if !t.p.slept(ctx, t.random.between(time.Millisecond, timeUnit)) {
		return ledger.ParkedRead{}, errWorldUnanswered
	}
	return a, err
}
