package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

const (
	// timeUnit is the unit of most times in a world. 200 of them are the delivery time-out of 30 s.
	timeUnit = 150 * time.Millisecond
	// maxSteps bounds the deliveries, commits and reads of a world. More of them mean that something goes on without end.
	maxSteps = 400_000
	// patience is how long something may still be owed after all faults have ended.
	patience = 12 * time.Hour
)

// reaction is what a sink that is well answers to one event.
type reaction struct {
	kind  reactionKind
	times int
}

// accepts reports whether a sink that is well would accept the event now. a is what became of it so far.
func (f reaction) accepts(a *acceptance) bool {
	return f.kind == reactionAccepted || f.kind == reactionRefusedTimes && a.refused >= f.times
}

type reactionKind int

const (
	reactionAccepted reactionKind = iota
	reactionPermanent
	reactionRefusedTimes // refused so many times, then accepted
	reactionRefused      // for ever
	reactionTimeout      // for ever
	reactionUnavailable  // for ever
)

type worldEvent struct {
	n         int
	id        string
	aggregate string
	hash      int64
	pos       checkpoint.Position
	sinks     []int // that it is routed to
	created   time.Time
	tx        *worldTx
	reactions []reaction
	topic     int
	retries   string  // its own max_retries; empty: null
	before    []trail // by sink
	rank      []int   // among the events of its aggregate at each sink
}

func (e *worldEvent) String() string { return fmt.Sprintf("%s(%s,%s)", e.id, e.aggregate, e.pos) }

// payload has two spaces, which nothing on the way may change.
func (e *worldEvent) payload() string { return fmt.Sprintf(`{"n":  %d}`, e.n) }

// worldTx is a transaction of an application.
type worldTx struct {
	events []*worldEvent
	// gap is the size of what lies between this transaction and the one before it, and of what its commit record holds beyond the least.
	// adjacent leaves out the former: a transaction without events then has its commit record exactly where the one before ends.
	gap      pglogrepl.LSN
	adjacent bool

	commit, end pglogrepl.LSN // of the commit record; 0 until it is committed
	at          time.Time
	xid         uint64 // 0 until it has begun
	visible     bool   // others can see its rows
}

// simulation is one world. It is everything outside of the connector: PostgreSQL with its WAL, slot and ledger, the sinks, people, and faults.
// mu guards it. Nobody sleeps while holding mu.
type simulation struct {
	worldName
	cfg          worldConfig
	began        time.Time
	stats        worldStats
	violationsMu sync.Mutex
	violations   []string
	steps        atomic.Int64

	mu          sync.Mutex
	events      map[string]*worldEvent
	wal         []*worldTx
	end         pglogrepl.LSN // of the WAL
	oursEnd     pglogrepl.LSN // of the last transaction with events
	uncommitted int           // transactions that are not committed yet
	walGrew     chan struct{}
	pgUp        bool
	slot        worldSlot
	timeline    int32
	ledger      *worldLedger
	sinks       []*worldSink
	joined      bool            // the later sink is configured
	paused      map[int32]bool  // by processor
	lanes       int             // of each sink
	living      []*worldProcess // that run
	sessions    int             // that have begun
	delivering  int32           // the epoch of the newest session that has begun a Deliver
	nextXid     uint64
	invisible   map[*worldTx]bool // transactions that have begun and cannot be seen yet
	seen        pglogrepl.LSN     // how far the WAL was written when the last session began
	listeners   int               // connections with LISTEN that have begun
	counts      int               // counts of the parked rows that have begun
	faults      bool              // there still are any
	over        bool
}

func newSimulation(of worldName) *simulation {
	w := &simulation{
		worldName: of, began: time.Now(), events: map[string]*worldEvent{}, walGrew: make(chan struct{}, 1), pgUp: true, faults: true, paused: map[int32]bool{},
		timeline: 1, nextXid: 1, invisible: map[*worldTx]bool{},
	}
	r := w.random("world")
	w.cfg = newWorldConfig(r)
	for w.lives && w.cfg.calm {
		w.cfg = newWorldConfig(r)
	}
	if w.lives {
		w.cfg.giveLife(w.random("life"))
		w.cfg.enrichLife(w.random("filter of init"), w.random("another server"), w.random("later sink"))
	}
	w.trace("%+v", w.cfg)
	w.end = 1 << 20
	w.ledger = newWorldLedger(w)
	if !w.cfg.life.filled {
		w.slot = worldSlot{exists: true, start: w.end, confirmed: w.end, durable: w.end}
	}
	for i := range w.cfg.sinks {
		w.sinks = append(w.sinks, newWorldSink(w, i))
		w.sinks[i].oneTry = i > 0 && r.chance(0.05)
	}
	w.lanes = 1 + r.IntN(3)
	return w
}

// processor returns the id of a sink's row in outbox_processors. 0 stands for no sink.
func processor(sink int) int32 { return int32(sink + 1) }

// after does something later, unless the world has ended.
func (w *simulation) after(d time.Duration, do func()) {
	time.AfterFunc(d, func() {
		if w.goesOn() {
			do()
		}
	})
}

func (w *simulation) goesOn() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.over
}

// step counts deliveries, commits and reads. Too many of them are a violation.
func (w *simulation) step() {
	if n := w.steps.Add(1); n == maxSteps {
		w.violation("livelock", "%d deliveries, commits and reads", n)
	}
}

func (w *simulation) run() {
	end := w.plan()
	ctx, stop := context.WithCancel(context.Background())
	processes := make(chan struct{})
	go func() {
		defer close(processes)
		w.processes(ctx)
	}()
	time.Sleep(end)
	w.heal()
	limit := time.Now().Add(patience)
	why := w.unfinished()
	for ; why != "" && time.Now().Before(limit) && w.steps.Load() < maxSteps; why = w.unfinished() {
		time.Sleep(20 * timeUnit)
		w.unblock()
	}
	if why != "" {
		w.violation("stuck", "%s after everything has healed: %s", patience, why)
	}
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
	stop()
	for _, p := range w.alive() {
		p.kill("the world ends")
	}
	<-processes
	synctest.Wait() // wait for calls that no session waits for
	if why == "" {
		w.check()
	}
}

// plan makes business transactions and faults, and says when they end.
func (w *simulation) plan() time.Duration {
	r, c := w.random("plan"), &w.cfg
	at, gap := time.Duration(0), []time.Duration{3 * timeUnit, 10 * timeUnit, 25 * timeUnit}[r.IntN(3)]
	for range c.transactions {
		at += r.between(0, gap)
		n := 2 + r.IntN(4)
		switch x := r.Float64(); {
		case x < 0.12:
			n = 0
		case x < 0.5:
			n = 1
		case x > 0.95 && c.bigTransactions:
			n = c.ring + r.IntN(2*c.ring)
		}
		took := r.between(0, 10*timeUnit)
		if r.chance(0.1) {
			took = r.between(0, 300*timeUnit)
		}
		tx := &worldTx{}
		for range n {
			tx.events = append(tx.events, w.newEvent(r, r.IntN(c.aggregates)))
		}
		tx.adjacent, tx.gap = r.chance(0.3), pglogrepl.LSN(r.between(0, 20))
		w.beginAt(at, took, tx)
		w.commitAt(at+took, tx) // transactions that take long commit in another order
	}
	end := at + 300*timeUnit
	w.planFaults(end)
	return end
}

func (w *simulation) newEvent(r random, aggregate int) *worldEvent {
	c := &w.cfg
	w.mu.Lock()
	defer w.mu.Unlock()
	e := &worldEvent{n: len(w.events), aggregate: string(rune('A' + aggregate)), rank: make([]int, c.sinks)}
	e.id = fmt.Sprintf("e%d", e.n)
	e.hash = router.AggregateHash("t", e.aggregate)
	if r.chance(0.1) {
		e.retries = fmt.Sprint(r.IntN(5))
	}
	if c.topics > 1 {
		e.topic = r.IntN(c.topics)
	}
	w.events[e.id] = e
	for s := range c.sinks {
		var f reaction
		if r.chance(c.poison) {
			kinds := []reactionKind{reactionPermanent, reactionRefusedTimes, reactionRefused, reactionPermanent, reactionRefusedTimes, reactionRefused, reactionTimeout, reactionUnavailable}
			f = reaction{kinds[r.IntN(len(kinds))], 1 + r.IntN(3)}
			switch {
			case c.never && (c.hang || f.kind >= reactionTimeout):
				f.kind = reactionRefused
			case c.calm:
				f.kind = min(f.kind, reactionRefused) // the others take up the time of a lane
			case c.hang:
				f.kind = reactionTimeout
			}
		}
		if p := w.random("poisoned aggregate", e.aggregate, s); p.chance(c.poisoned) { // all of its events are alike
			f = reaction{[]reactionKind{reactionPermanent, reactionRefused}[p.IntN(2)], 0}
		}
		e.reactions = append(e.reactions, f)
		if c.sinks == 1 && !r.chance(0.03) || c.sinks > 1 && r.chance(0.7) {
			e.sinks = append(e.sinks, s)
		}
	}
	return e
}

func (w *simulation) commitAt(at time.Duration, tx *worldTx) {
	w.mu.Lock()
	w.uncommitted++
	w.mu.Unlock()
	w.after(at, func() {
		if w.commit(tx) {
			return
		}
		w.mu.Lock()
		w.uncommitted--
		w.mu.Unlock()
		w.commitAt(10*timeUnit, tx) // the application waits for the server
	})
}

// commit appends a transaction to the WAL, and reports whether the server was there to do so.
func (w *simulation) commit(tx *worldTx) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.pgUp {
		return false
	}
	w.uncommitted--
	w.end += pglogrepl.LSN(len(tx.events))
	if !tx.adjacent {
		w.end += tx.gap
	}
	tx.commit, tx.at = w.end, time.Now()
	tx.end = tx.commit + 2 + tx.gap
	w.end = tx.end
	w.becomesVisible(tx)
	for i, e := range tx.events {
		e.pos = checkpoint.Position{LSN: tx.commit, Index: int64(i)}
		w.ledger.owe(e)
		w.leaveTrail(e)
	}
	if len(tx.events) > 0 {
		w.oursEnd = tx.end
	}
	w.stats.Events += len(tx.events)
	w.wal = append(w.wal, tx)
	w.trace("COMMIT %s..%s: %v", tx.commit, tx.end, tx.events)
	w.noteGrowth()
	return true
}

func (w *simulation) noteGrowth() {
	select {
	case w.walGrew <- struct{}{}:
	default:
	}
}

// repeat does something again and again until the faults end.
func (w *simulation) repeat(from, to time.Duration, actor string, do func(r random)) {
	r := w.random(actor)
	var next func()
	next = func() {
		if w.failing() {
			do(r)
			w.after(r.between(from, to), next)
		}
	}
	w.after(r.between(from, to), next)
}

func (w *simulation) planFaults(end time.Duration) {
	c := &w.cfg
	w.repeat(timeUnit, 60*timeUnit, "foreign WAL", func(r random) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.end += pglogrepl.LSN(r.IntN(300_000))
		w.noteGrowth()
	})
	w.repeat(10*timeUnit, 600*timeUnit, "checkpointer", func(random) { // the slot reaches the disk now and then
		w.mu.Lock()
		defer w.mu.Unlock()
		w.slot.durable = max(w.slot.durable, w.slot.confirmed)
	})
	for _, s := range w.sinks {
		s.planModes()
		s.planTopics()
	}
	r := w.random("faults")
	for range c.crashes {
		w.after(r.between(0, end), func() { w.die("kill -9") })
	}
	for range c.stops {
		w.after(r.between(0, end), w.terminate)
	}
	for i := range c.sessionErrors {
		why := []error{errors.New("any error"), errWorldBroken, replication.ErrServerStopping}[i%3]
		w.after(r.between(0, end), func() { w.fail(why) })
	}
	w.planLife(end)
	for range c.pgCrashes {
		connector := func() { w.fail(errWorldBroken) }
		if r.chance(0.3) {
			connector = func() { w.die("killed with PostgreSQL") }
		}
		down := r.between(5*timeUnit, 500*timeUnit)
		w.after(r.between(0, end), func() { w.crashPostgres(down, connector) })
	}
	if c.persons {
		w.repeat(10*timeUnit, 200*timeUnit, "person", w.personActs)
	}
	if c.pause {
		s, at := r.IntN(c.sinks), r.between(0, end)
		w.after(at, func() { w.pause(r, s, ledger.Paused) })
		w.after(at+r.between(50*timeUnit, 800*timeUnit), func() { w.pause(r, s, ledger.Active) })
	}
}

// crashPostgres takes the server away for some time. connector is what this does to the connector.
func (w *simulation) crashPostgres(down time.Duration, connector func()) {
	w.mu.Lock()
	if !w.pgUp {
		w.mu.Unlock()
		return
	}
	w.trace("POSTGRES crashes, its slot falls from %s to %s", w.slot.confirmed, w.slot.durable)
	w.stats.PgCrashes++
	w.pgUp = false
	w.slot.confirmed = w.slot.durable
	w.slot.user = nil
	if w.cfg.life.promotes {
		w.timeline++
	}
	w.mu.Unlock()
	connector()
	w.after(down, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pgUp = true
		w.trace("POSTGRES is up")
		w.noteGrowth()
	})
}

func (w *simulation) up() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pgUp
}

// failing reports whether there still are faults.
func (w *simulation) failing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults
}

func (w *simulation) die(why string) {
	if p := w.foremost(); p != nil {
		p.kill(why)
	}
}

func (w *simulation) terminate() {
	if p := w.foremost(); p != nil {
		w.trace("PROCESS %d is told to stop", p.n)
		p.stop()
	}
}

func (w *simulation) fail(why error) {
	if p := w.foremost(); p != nil {
		p.fail(why)
	}
}

func (w *simulation) heal() {
	w.mu.Lock()
	w.faults, w.pgUp = false, true
	for _, s := range w.sinks {
		if s.mode != modeWell {
			s.mode, s.inTime.up = modeWell, s.inTime.now()
		}
	}
	w.noteGrowth()
	w.mu.Unlock()
	w.trace("ALL HAS HEALED")
	r := w.random("trickle")
	for i, s := range w.sinks {
		for n := range s.topics {
			s.topicComes(n)
		}
		w.pause(r, i, ledger.Active)
	}
	for _, p := range w.alive() {
		p.link.mend()
	}
	// Healthy events of other aggregates go on arriving, so that poison can be told from an outage.
	var next func()
	next = func() {
		e := w.newEvent(r, 60+r.IntN(4))
		e.reactions = make([]reaction, w.cfg.sinks)
		e.sinks = e.sinks[:0]
		for s := range w.cfg.sinks {
			e.sinks = append(e.sinks, s)
		}
		w.commitAt(0, &worldTx{events: []*worldEvent{e}, gap: 3})
		w.after(r.between(100*timeUnit, 600*timeUnit), next)
	}
	next()
}

// sorted returns all events in the order in which they were made.
func (w *simulation) sorted() []*worldEvent {
	var all []*worldEvent
	for _, e := range w.events {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *worldEvent) int { return a.n - b.n })
	return all
}
