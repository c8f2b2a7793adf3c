package connector

import (
	"context"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// lifeConfig says what happens to the slot of a world beside crashes, and how many processes share it.
type lifeConfig struct {
	chunk     int     // rows of a job's step, at most
	filled    bool    // the outbox has rows before there is a slot
	lost      int     // how often the slot is dropped or invalidated; a person then makes another one
	ahead     int     // how often somebody moves it, or makes it anew, ahead of the checkpoint
	promotes  bool    // where PostgreSQL crashes a standby is promoted, with the slot as it was on disk
	hidden    float64 // how many transactions can be seen only some time after their commit
	coarse    bool    // many rows of the outbox have the same created_at
	instances int     // processes that live at the same time
	cuts      int     // how often a process cannot reach PostgreSQL for a while
	freezes   int     // how often a process stands still for a while
	shaky     float64 // how many sessions lose their connection within seconds
	filter    bool    // init leaves rows out
	renumbers float64 // how many of the slots that are made anew are on another server, whose LSNs say nothing of parked rows
	later     bool    // the last sink is configured some time later, with "backlog: all"
}

// giveLife draws what happens to the slot.
func (c *worldConfig) giveLife(r random) {
	l := &c.life
	l.filled, l.lost, l.ahead = r.chance(0.4), r.IntN(3), r.IntN(3)
	l.chunk = 1 + r.IntN(8)
	if r.chance(0.5) {
		l.hidden = 0.4
	}
	l.coarse, l.promotes = r.chance(0.5), r.chance(0.3)
	two := r.chance(0.5)
	l.cuts, l.freezes = r.IntN(4), r.IntN(4)
	if r.chance(0.3) {
		l.shaky = 0.4
	}
	l.instances = 1
	if two {
		l.instances = 2
	} else {
		l.cuts, l.freezes, l.shaky = 0, 0, 0
	}
}

// worldSlot is the replication slot. The world's mutex guards it.
type worldSlot struct {
	exists             bool
	building           bool          // a person is making it: nobody streams
	start              pglogrepl.LSN // what commits before it does not come
	confirmed, durable pglogrepl.LSN
	user               *worldStream // who streams from it, as the server sees it
}

// planLife plans what happens to the slot and to the processes beside crashes.
func (w *simulation) planLife(end time.Duration) {
	l, n := &w.cfg.life, 0
	plan := func(from time.Duration, to time.Duration, do func(random)) {
		n++ // each has its own random numbers, because they happen in goroutines of their own
		r := w.random("slot", n)
		w.after(r.between(from, to), func() { do(r) })
	}
	if l.filled {
		plan(end/10, end/2, w.makeSlot)
	}
	if l.later {
		r := w.random("later sink", "joins")
		w.after(r.between(end/10, end), w.join)
	}
	for range l.lost {
		plan(end/10, end, w.loseSlot)
	}
	for range l.ahead {
		plan(end/10, end, w.moveSlot)
	}
	for range l.cuts {
		plan(0, end, func(r random) { w.cutOff(r, linkCut) })
	}
	for range l.freezes {
		plan(0, end, func(r random) { w.cutOff(r, linkFrozen) })
	}
}

// makeSlot does what "init --backlog all" and "resync" do: the checkpoint is building before the slot is made, and one transaction files the
// jobs and stores the new prefix. Now and then it is killed between the two, and a person begins again.
func (w *simulation) makeSlot(r random) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.pgUp || w.slot.user != nil {
		w.after(10*timeUnit, func() { w.makeSlot(r) })
		return
	}
	w.slot = worldSlot{exists: true, building: true, start: w.end, confirmed: w.end, durable: w.end}
	w.trace("PERSON makes the slot at %s", w.end)
	xmax := w.nextXid
	w.after(r.between(timeUnit, 20*timeUnit), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.pgUp || w.faults && r.chance(0.2) { // the command dies
			w.after(r.between(timeUnit, 50*timeUnit), func() { w.makeSlot(r) })
			return
		}
		w.slot.building = false
		w.ledger.bridge(ledger.JobOfResync, w.slot.start, xmax)
	})
}

// loseSlot drops or invalidates the slot, whoever streams from it.
func (w *simulation) loseSlot(r random) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.faults || !w.slot.exists || w.slot.building || !w.pgUp {
		return
	}
	w.trace("THE SLOT is lost")
	w.stats.Lost++
	if s := w.slot.user; s != nil {
		s.fail(errWorldBroken)
	}
	w.slot = worldSlot{}
	w.ledger.loses(w.end)
	w.after(r.between(timeUnit, 300*timeUnit), func() { w.makeSlot(r) })
}

// moveSlot moves the slot ahead of the checkpoint, as a person does by pg_replication_slot_advance or by making it anew, while nobody streams.
func (w *simulation) moveSlot(r random) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.faults || !w.slot.exists || w.slot.building || !w.pgUp {
		return
	}
	if s := w.slot.user; s != nil {
		s.fail(errWorldBroken)
		w.slot.user = nil
	}
	to := w.end
	if behind := w.end - w.slot.confirmed; r.chance(0.5) && behind > 0 {
		to -= pglogrepl.LSN(r.Int64N(int64(behind)))
	}
	if to <= w.ledger.confirmed {
		return
	}
	w.trace("PERSON moves the slot from %s to %s", w.slot.confirmed, to)
	w.stats.Lost++
	w.slot.confirmed, w.slot.start = to, to
	if r.chance(0.5) {
		w.slot.durable = to
	}
	w.ledger.loses(to)
}

// slotRefused returns why preflight refuses the slot, or nil.
func (w *simulation) slotRefused() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.slot.exists || w.slot.building {
		return exitcode.Errorf(exitcode.SlotLost, "the slot is lost: exists %t, building %t", w.slot.exists, w.slot.building)
	}
	return nil
}

// release lets others have the slot, if this stream has it. The world's lock is held.
func (w *simulation) release(s *worldStream) {
	if s != nil && w.slot.user == s {
		w.slot.user = nil
	}
}

// beginAt begins a transaction. Its rows are written until it commits.
func (w *simulation) beginAt(at, took time.Duration, tx *worldTx) {
	for _, e := range tx.events {
		r := w.random("created", e.n)
		e.created = w.began.Add(at + r.between(0, took))
	}
	w.after(at, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.begin(tx)
	})
}

// begin gives a transaction its number. The world's lock is held.
func (w *simulation) begin(tx *worldTx) {
	if tx.xid == 0 {
		tx.xid = w.nextXid
		w.nextXid++
		w.invisible[tx] = true
	}
}

// becomesVisible lets others see the rows of a transaction that has just committed, at once or a while later: a commit may have to wait for a
// synchronous standby, and the stream carries it all the same. The world's lock is held.
func (w *simulation) becomesVisible(tx *worldTx) {
	w.begin(tx)
	for _, e := range tx.events {
		e.tx = tx
		if e.created.IsZero() {
			e.created = time.Now()
		}
		if w.cfg.life.coarse {
			e.created = e.created.Truncate(20 * timeUnit)
		}
	}
	show := func() {
		tx.visible = true
		delete(w.invisible, tx)
	}
	if r := w.random("visible", tx.xid); !r.chance(w.cfg.life.hidden) {
		show()
	} else {
		w.after(r.between(0, 150*timeUnit), func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			show()
		})
	}
}

// xmin returns pg_snapshot_xmin: the number of the oldest transaction whose rows cannot be seen yet. The world's lock is held.
func (w *simulation) xmin() uint64 {
	oldest := w.nextXid
	for tx := range w.invisible {
		oldest = min(oldest, tx.xid)
	}
	return oldest
}

// beginsAt returns the position before everything that a slot with this start brings.
func beginsAt(start pglogrepl.LSN) checkpoint.Position {
	return checkpoint.Position{LSN: start, Index: -1}
}

// continueAt does what ledger.Schema.Continue does.
func (p *worldProcess) continueAt(ctx context.Context, epoch int32, c ledger.Continuation) error {
	w, r := p.w, p.w.random("continue", p.session)
	if err := p.ask(ctx, r); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.ledger
	switch {
	case epoch != l.epoch:
		return checkpoint.ErrFenced
	case w.faults && r.chance(0.1):
		return errWorldNoPostgres
	}
	w.trace("SESSION %d goes on at %s and %s on timeline %d, and files %d jobs", p.session, c.Prefix, c.Confirmed, c.Timeline, len(c.Jobs))
	// If somebody moves the slot again meanwhile, the next session does this once more.
	moved := w.slot.user != p.stream
	if c.Prefix.Compare(l.prefix) < 0 || c.Confirmed < l.confirmed || !moved && c.Confirmed != max(l.confirmed, w.slot.confirmed) {
		w.violation("continued", "at %s and %s; the checkpoint stood at %s and %s, the slot at %s", c.Prefix, c.Confirmed, l.prefix, l.confirmed, w.slot.confirmed)
	}
	for _, j := range c.Jobs {
		j.SnapshotXmax = w.nextXid
		l.file(j, beginsAt(j.Start))
	}
	l.prefix, l.confirmed, l.timeline = c.Prefix, c.Confirmed, c.Timeline
	l.cover()
	if w.faults && r.chance(0.1) { // the answer is lost
		return errWorldNoPostgres
	}
	return nil
}
