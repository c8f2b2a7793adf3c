package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// handOver is how many deliveries the reader collects at most before it hands them to the lanes.
	handOver = 1024
	// slabSize is how many deliveries are allocated together.
	slabSize = 256

	// While the outbox is idle, the LSN of a keepalive is written to the checkpoint only if it is idleStep bytes ahead of what is
	// confirmed, or more than idleSmallStep bytes and nothing was confirmed for idleWait. It is not written more often, because
	// each write is a commit, after which the server logs a record of running transactions, which makes the next keepalive:
	// a server that is idle would not stay so.
	idleStep      = 1 << 20
	idleSmallStep = 64 << 10
	idleWait      = 10 * time.Second
	// idleLastWait is how long nothing must have been confirmed until one last LSN is written, however small the step is, if
	// more than idleSmallStep bytes came since the last such write. It serves restart_lsn, which decides how much WAL the
	// server keeps. restart_lsn moves only when a record of running transactions is confirmed, and a server that has fallen
	// quiet writes such a record up to 25 s later (LOG_SNAPSHOT_INTERVAL_MS, and the sleep of an idle background writer).
	idleLastWait = 30 * time.Second
)

// stream is the replication connection as the reader needs it: *replication.Stream, or a test's.
type stream interface {
	Buffered() bool
	Next(ctx context.Context) (replication.Frame, error)
	More(ctx context.Context) ([]byte, error)
	Wait() time.Duration
	Report() error
	Waited() time.Duration
}

// laneInput is the reader's side of a lane's channel.
type laneInput struct {
	lane      chan<- handed // the lane's channel
	processor int32
	inFlight  *atomic.Int64 // the lane's
	collected []*delivery   // for this lane, and not handed over yet
}

// reader is the main loop of a session. It decodes the stream and registers each event with the tracker before it hands the
// event's deliveries to the lanes. It runs in the session's own goroutine, which owns the replication connection.
type reader struct {
	stream  stream
	decoder *decoder.Decoder
	router  *router.Router
	tracker *checkpoint.Tracker
	start   ledger.Start // what the session found in the ledger when it began
	// seenBefore is how far the server had written when the session began, or 0 if the session before has ended clean. See
	// unsent.go.
	seenBefore    pglogrepl.LSN
	lanes         map[int32][]*laneInput // by processor
	eventOverhead int                    // bytes that the deliveries of an event and their outcomes take, beside the event itself
	outcomes      chan<- checkpoint.Outcomes
	waits         atomic.Int32 // what the reader waits for: a processor, waitsForRing or waitsForNobody; slowRule reads it
	clock         readerClock
	logger        *slog.Logger

	noSink        *noSinkCounts
	unroutedLog   *unroutedLog
	oddMetadata   *oddMetadata
	deaths        *deathLog                   // of no sink
	checkDrift    func(context.Context) error // returns an error if the table that is streamed is not the outbox any more
	foreignTables map[uint32]struct{}         // OIDs of tables other than the outbox whose rows the log has mentioned

	tx struct {
		open      bool // between Begin and Commit
		xid       uint32
		lsn       pglogrepl.LSN // of the commit record
		committed time.Time     // the commit time
		next      int64         // the index of its next insert
		hasEvents bool          // it has inserts into the outbox
	}
	targets   []router.Target // reused for each event
	collected int             // deliveries in all laneInputs that are not handed over yet
	slab      []delivery      // allocated and not used yet
	idle      struct {
		confirmed pglogrepl.LSN // what was confirmed at the last keepalive
		since     time.Time     // when a keepalive first found this value
		last      pglogrepl.LSN // what was last written because of idleLastWait
	}
}

// read reads the stream until ctx or the stream ends, and returns why. It skips nothing: a message that cannot be decoded ends the
// session.
func (r *reader) read(ctx context.Context) error {
	for {
		if !r.stream.Buffered() {
			if err := r.flush(ctx); err != nil {
				return err
			}
		}
		f, err := r.stream.Next(ctx)
		if err != nil {
			return r.notePassed(r.locate(err))
		}
		if f.Keepalive {
			r.onKeepalive(f.LSN)
			continue
		}
		var m decoder.Message
		if f.Rest == 0 {
			m, err = r.decoder.Decode(f.Data)
		} else {
			m, err = r.readLarge(ctx, f)
		}
		if err != nil {
			return r.notePassed(r.wrapDecodeError(err))
		}
		if err := r.handleMessage(ctx, m); err != nil {
			return err
		}
	}
}

// wrapDecodeError adds the LSN of the transaction to an error of the decoder. It returns any other error as it is.
func (r *reader) wrapDecodeError(err error) error {
	if _, ok := errors.AsType[*decoder.Error](err); ok {
		return fmt.Errorf("decode transaction at %s: %w", r.tx.lsn, err)
	}
	return err
}

// readLarge reads a row that does not fit into the stream's buffer, piece by piece. Before that it waits for room in the window, so
// that no more rows of this kind are in memory than the window allows.
func (r *reader) readLarge(ctx context.Context, f replication.Frame) (decoder.Message, error) {
	m, row, err := r.decoder.Large(f.Data, f.Rest)
	if err != nil || row == nil {
		return m, err
	}
	if err := r.waitForRoom(ctx, row.Bytes()+r.eventOverhead); err != nil {
		return m, err
	}
	for left := f.Rest; left > 0; {
		b, err := r.stream.More(ctx)
		if err != nil {
			return m, err
		}
		if err := row.Write(b); err != nil {
			return m, err
		}
		left -= len(b)
	}
	return row.End()
}

// handleMessage keeps track of transactions and passes inserts on.
func (r *reader) handleMessage(ctx context.Context, m decoder.Message) error {
	switch m.Kind {
	case decoder.KindBegin:
		r.tx.open, r.tx.lsn, r.tx.committed, r.tx.next, r.tx.hasEvents = true, m.LSN, m.CommitTime, 0, false
		r.tracker.Begin()
		r.tx.xid = m.Xid
	case decoder.KindInsert:
		if !r.tx.open {
			return fmt.Errorf("insert outside of a transaction after %s", r.tx.lsn)
		}
		return r.insert(ctx, m)
	case decoder.KindCommit:
		if !r.tx.open || m.LSN != r.tx.lsn {
			return fmt.Errorf("commit at %s of a transaction that began at %s", m.LSN, r.tx.lsn)
		}
		r.tx.open = false
		r.tracker.Commit(checkpoint.Transaction{LSN: m.LSN, EndLSN: m.EndLSN, Last: r.tx.next - 1, Ours: r.tx.hasEvents})
	}
	return nil
}

// insert gives one inserted row its position, routes its event, and collects the event's deliveries for the lanes. The index in the
// position counts all inserts of the transaction, including those into other tables.
func (r *reader) insert(ctx context.Context, m decoder.Message) error {
	pos := checkpoint.Position{LSN: r.tx.lsn, Index: r.tx.next}
	r.tx.next++
	if m.Event == nil {
		return r.skipForeignRow(ctx, m.Relation)
	}
	r.tx.hasEvents = true
	r.clock.read++
	if pos.Compare(r.start.Prefix) <= 0 {
		return nil
	}
	if err := r.waitForRoom(ctx, m.Size+r.eventOverhead); err != nil {
		return err
	}
	if m.Invalid != nil {
		return r.recordUnrouted(ctx, pos, m)
	}
	r.oddMetadata.look(m.Event, r.logger)
	r.targets = r.router.Route(m.Event, r.targets[:0])
	if len(r.targets) == 0 {
		return r.recordUnrouted(ctx, pos, m)
	}
	owed := r.targets[:0]
	for _, t := range r.targets {
		if !r.settled(t.Processor, pos) {
			owed = append(owed, t)
		}
	}
	// The tracker must know the event before a lane gets it: from here on the event's LSN cannot be confirmed.
	entry := r.tracker.Add(pos, len(owed), m.Size+r.eventOverhead, r.tx.committed)
	if len(owed) == 0 {
		return nil
	}
	hash := router.AggregateHash(m.Event.AggregateType, m.Event.AggregateID)
	for _, t := range owed {
		d := r.newDelivery(m.Size)
		d.Message = sinks.Message{
			Event: m.Event, Topic: t.Topic, Key: t.Key, LSN: pos.LSN, Index: pos.Index, CommitTime: r.tx.committed,
		}
		d.hash, d.entry, d.repeats = hash, entry, mayRepeat(pos, r.seenBefore)
		lanes := r.lanes[t.Processor]
		in := lanes[router.Lane(hash, len(lanes))]
		in.collected = append(in.collected, d)
		r.collected++
	}
	if r.collected >= handOver {
		return r.flush(ctx)
	}
	return nil
}

// newDelivery returns an empty delivery for an event of this size. Deliveries of the same slab, and with them their events, stay in
// memory until the last of them is done. So the delivery of a large event, which has memory of its own, is allocated alone.
func (r *reader) newDelivery(size int) *delivery {
	if size > decoder.OwnSize {
		return new(delivery)
	}
	if len(r.slab) == 0 {
		r.slab = make([]delivery, slabSize)
	}
	d := &r.slab[0]
	r.slab = r.slab[1:]
	return d
}

// settled reports whether the ledger already had the outcome of this delivery when the session began. After a restart PostgreSQL
// sends such events again.
func (r *reader) settled(processor int32, pos checkpoint.Position) bool {
	if len(r.start.Settled) == 0 {
		return false
	}
	_, ok := r.start.Settled[checkpoint.Key{Processor: processor, Position: pos}]
	return ok
}

// skipForeignRow leaves out a row of a table that is not the outbox. The log says so once for each table in a session.
//
// The first such row may come from a table that has taken the outbox's place, or that inherits from it. The keeper would notice
// that only after the slot has passed the row. So the reader checks for it here, while the transaction is open: if that ends the
// session, the next session reads the row again, whichever process that is and whichever table it then takes for the outbox.
func (r *reader) skipForeignRow(ctx context.Context, oid uint32) error {
	if _, ok := r.foreignTables[oid]; ok {
		return nil
	}
	if err := r.checkDrift(ctx); err != nil {
		return err
	}
	r.foreignTables[oid] = struct{}{}
	r.logger.Warn("rows of a table that is not the outbox arrive and are not delivered; see docs/table.md#foreign",
		"table", r.decoder.RelationName(oid), "oid", oid, "lsn", r.tx.lsn.String())
	return nil
}

// recordUnrouted records an event that no sink receives, under processor 0: a row that is no valid event becomes a dead
// letter, and an event that no route matches is discarded.
func (r *reader) recordUnrouted(ctx context.Context, pos checkpoint.Position, m decoder.Message) error {
	if r.settled(0, pos) {
		r.tracker.Add(pos, 0, m.Size, r.tx.committed)
		return nil
	}
	now := time.Now()
	o := checkpoint.Outcome{
		Entry: r.tracker.Add(pos, 1, m.Size, r.tx.committed), Settles: true, Position: pos, EventID: m.Event.ID,
		StartedAt: now, CompletedAt: now, Status: checkpoint.Discarded, Error: "no route",
	}
	if m.Invalid == nil {
		r.noSink.unrouted.Add(1)
		r.unroutedLog.add(m.Event)
	} else {
		r.noSink.invalid.Add(1)
		letter := deadLetter{eventID: m.Event.ID, eventType: m.Event.EventType, aggregateType: m.Event.AggregateType, cause: m.Invalid}
		if r.deaths.add(letter, now) {
			letter.log(r.logger.With("lsn", pos.String()))
		}
		o.Status, o.Error = checkpoint.Dead, m.Invalid.Error()
		o.Row = checkpoint.RowInsert
		o.Parked = &checkpoint.ParkedState{Event: storedEvent(m.Event, r.tx.committed).Encode(), Payload: m.Event.Payload}
	}
	if len(r.outcomes) == cap(r.outcomes) {
		defer r.waiting(&r.clock.stages.waits.recorder)()
	}
	return send(ctx, r.stream, r.outcomes, checkpoint.Outcomes{Rows: []checkpoint.Outcome{o}})
}

// waitForRoom waits until the window has room for an event of this size.
func (r *reader) waitForRoom(ctx context.Context, size int) error {
	if !r.tracker.Full(size) {
		return nil
	}
	if err := r.flush(ctx); err != nil { // the window may be full of events whose deliveries we still hold
		return err
	}
	r.waits.Store(waitsForRing)
	defer r.waits.Store(waitsForNobody)
	defer r.waiting(&r.clock.stages.waits.window)()
	for r.tracker.Full(size) {
		if _, err := waitFor(ctx, r.stream, r.tracker.Room()); err != nil {
			return err
		}
	}
	return nil
}

// flush hands the collected deliveries to the lanes. One channel operation serves hundreds of events.
func (r *reader) flush(ctx context.Context) error {
	now := time.Now()
	r.clock.lap(now, r.stream.Waited(), r.collected > 0)
	if r.collected == 0 {
		return nil
	}
	r.collected = 0
	for _, lanes := range r.lanes {
		for _, in := range lanes {
			n := len(in.collected)
			if n == 0 {
				continue
			}
			r.waits.Store(in.processor)
			in.inFlight.Add(int64(n))
			if err := r.hand(ctx, in, now); err != nil {
				return err
			}
			in.collected = make([]*delivery, 0, n) // the lane owns the slice that was sent
		}
	}
	r.waits.Store(waitsForNobody)
	return nil
}

// hand hands a lane what is collected for it.
func (r *reader) hand(ctx context.Context, in *laneInput, now time.Time) error {
	if len(in.lane) == cap(in.lane) {
		defer r.waiting(&r.clock.stages.waits.lanes)()
	}
	return send(ctx, r.stream, in.lane, handed{in.collected, now})
}

// waiting measures a wait for others, which the caller ends.
func (r *reader) waiting(m *meter) (end func()) {
	r.clock.waits(m, time.Now(), r.stream.Waited())
	return func() { r.clock.waitedFor(time.Now(), r.stream.Waited()) }
}

// onKeepalive tells the tracker that the server has sent everything that commits before lsn. The tracker uses that only if nothing
// is in flight and no transaction is open. Without it the slot of an idle outbox would hold back the WAL of a busy database.
// onKeepalive also decides whether lsn is far enough ahead to be written to the checkpoint now; see idleStep.
func (r *reader) onKeepalive(lsn pglogrepl.LSN) {
	now := time.Now()
	confirmed := r.tracker.Confirmed()
	if confirmed != r.idle.confirmed {
		r.idle.confirmed, r.idle.since = confirmed, now
	}
	step, quiet := lsn-min(lsn, confirmed), now.Sub(r.idle.since)
	last := step > 0 && quiet >= idleLastWait && lsn-r.idle.last > idleSmallStep
	wake := step >= idleStep || step > idleSmallStep && quiet >= idleWait || last
	if !r.tracker.Idle(lsn) {
		return
	}
	if wake {
		r.tracker.WriteIdle()
	}
	if last {
		r.idle.last = lsn
	}
}

// send sends v to c. While it waits, it goes on sending status to the server.
func send[T any](ctx context.Context, s stream, c chan<- T, v T) error {
	select {
	case c <- v:
		return nil
	default:
	}
	for {
		t := time.NewTimer(s.Wait())
		select {
		case c <- v:
			t.Stop()
			return nil
		case <-t.C:
			if err := s.Report(); err != nil {
				return err
			}
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// waitFor receives a value from c. While it waits, it goes on sending status to the server.
func waitFor[T any](ctx context.Context, s stream, c <-chan T) (T, error) {
	for {
		t := time.NewTimer(s.Wait())
		select {
		case v := <-c:
			t.Stop()
			return v, nil
		case <-t.C:
			if err := s.Report(); err != nil {
				return *new(T), err
			}
		case <-ctx.Done():
			t.Stop()
			return *new(T), context.Cause(ctx)
		}
	}
}
