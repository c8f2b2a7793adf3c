package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/prometheus/client_golang/prometheus"

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
	slabSize = 256 // deliveries made at a time

	// A keepalive's position is written to the checkpoint when it is this far ahead, or a smaller step after a while:
	// the server logs a record of running transactions after every commit, ours included, and an idle server must
	// stay idle.
	idleStep      = 1 << 20
	idleSmallStep = 64 << 10
	idleWait      = 10 * time.Second
	// Behind more than a small step one more is written, however little is left: restart_lsn, and with it the WAL that the
	// server keeps, follows only when a record of running transactions is confirmed, and a server that has fallen quiet
	// writes one up to 25 s later (LOG_SNAPSHOT_INTERVAL_MS, and the sleep of an idle background writer).
	idleLastWait = 30 * time.Second
)

// stream is the replication connection as its reader uses it: *replication.Stream, or a test's.
type stream interface {
	Buffered() bool
	Next(ctx context.Context) (replication.Frame, error)
	More(ctx context.Context) ([]byte, error)
	Wait() time.Duration
	Report() error
}

// laneInput is the reader's side of a lane.
type laneInput struct {
	lane      chan<- []*delivery
	processor int32
	collected []*delivery // not yet handed over
}

// reader is the main loop: it decodes the stream, adds each event to the tracker, and only then hands its deliveries
// to the lanes. It runs in the session's own goroutine, which owns the replication connection.
type reader struct {
	stream  stream
	decoder *decoder.Decoder
	router  *router.Router
	tracker *checkpoint.Tracker
	start   ledger.Start
	// seenBefore is where the server had written to when the session began; 0: the session before has left clean. See unsent.go.
	seenBefore    pglogrepl.LSN
	lanes         map[int32][]*laneInput // by processor
	eventOverhead int                    // bytes that an event takes beside itself: its deliveries and their outcomes
	out           chan<- checkpoint.Outcomes
	waits         atomic.Int32 // what it waits for; see slowRule
	logger        *slog.Logger

	invalidRows, unrouted prometheus.Counter

	unroutedLog   *unroutedLog
	checkDrift    func(context.Context) error // gives an error if the table that is streamed is not the outbox any more
	foreignTables map[uint32]struct{}         // other tables, by OID, of whose rows the log has told

	tx struct {
		open      bool
		xid       uint32
		lsn       pglogrepl.LSN
		committed time.Time
		next      int64 // index of the next insert
		hasEvents bool  // it has inserts into the outbox
	}
	targets   []router.Target
	collected int
	slab      []delivery
	idle      struct {
		confirmed pglogrepl.LSN // as it was at the last keepalive,
		since     time.Time     // and since when
		last      pglogrepl.LSN // what was written behind a step
	}
}

// read ends with ctx, or with what ended the stream. Nothing is ever skipped: what cannot be decoded ends the session.
func (r *reader) read(ctx context.Context) error {
	for {
		if !r.stream.Buffered() {
			if err := r.flush(ctx); err != nil {
				return err
			}
		}
		f, err := r.stream.Next(ctx)
		if err != nil {
			return r.locate(err)
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
			return r.wrapDecodeError(err)
		}
		if err := r.handleMessage(ctx, m); err != nil {
			return err
		}
	}
}

// wrapDecodeError names the transaction of a message that cannot be decoded.
func (r *reader) wrapDecodeError(err error) error {
	if _, ok := errors.AsType[*decoder.Error](err); ok {
		return fmt.Errorf("decode transaction at %s: %w", r.tx.lsn, err)
	}
	return err
}

// readLarge reads a row that does not fit into the stream's buffer. It waits for room in the window first, so that no more of such
// rows are in memory than the window allows.
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

// insert takes one row. Its position counts all inserts of the transaction, those into other tables included.
func (r *reader) insert(ctx context.Context, m decoder.Message) error {
	pos := checkpoint.Position{LSN: r.tx.lsn, Index: r.tx.next}
	r.tx.next++
	if m.Event == nil {
		return r.skipForeignRow(ctx, m.Relation)
	}
	r.tx.hasEvents = true
	if pos.Compare(r.start.Prefix) <= 0 {
		return nil
	}
	if err := r.waitForRoom(ctx, m.Size+r.eventOverhead); err != nil {
		return err
	}
	if m.Invalid != nil {
		return r.recordUnrouted(ctx, pos, m)
	}
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
	// Added before anybody else hears of it: from here on its LSN cannot be confirmed.
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

// newDelivery makes room for a delivery of an event of this size. Deliveries of a slab keep each other in memory, and with them
// their events; so an event that has memory of its own has a delivery of its own as well.
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

// settled says that the ledger has the outcome already: a restart, and PostgreSQL sends the event again.
func (r *reader) settled(processor int32, pos checkpoint.Position) bool {
	if len(r.start.Settled) == 0 {
		return false
	}
	_, ok := r.start.Settled[checkpoint.Key{Processor: processor, Position: pos}]
	return ok
}

// skipForeignRow leaves out a row of another table than the outbox, and says so once a session and table. The first such row may
// come of a table that has taken the outbox's place, or inherits from it. The keeper would find that out after the slot
// has passed the row. So the reader asks here, while the transaction is open: if the session ends, the next one reads
// the row again, whichever process and table that has.
func (r *reader) skipForeignRow(ctx context.Context, oid uint32) error {
	if _, ok := r.foreignTables[oid]; ok {
		return nil
	}
	if err := r.checkDrift(ctx); err != nil {
		return err
	}
	r.foreignTables[oid] = struct{}{}
	r.logger.Warn("rows of a table that is not the outbox arrive and are not delivered; see docs/operations.md#foreign",
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
		r.unrouted.Inc()
		r.unroutedLog.add(m.Event)
	} else {
		r.invalidRows.Inc()
		r.logger.Error("dead letter", "event_id", m.Event.ID, "lsn", pos.String(), "err", m.Invalid)
		o.Status, o.Error = checkpoint.Dead, m.Invalid.Error()
		o.Row = checkpoint.RowInsert
		o.Parked = &checkpoint.ParkedState{Event: storedEvent(m.Event, r.tx.committed).Encode(), Payload: m.Event.Payload}
	}
	return send(ctx, r.stream, r.out, checkpoint.Outcomes{Rows: []checkpoint.Outcome{o}})
}

// waitForRoom waits until the window has waitForRoom for an event of this size.
func (r *reader) waitForRoom(ctx context.Context, size int) error {
	if !r.tracker.Full(size) {
		return nil
	}
	if err := r.flush(ctx); err != nil { // what we hold may be what it waits for
		return err
	}
	r.waits.Store(waitsForRing)
	defer r.waits.Store(waitsForNobody)
	for r.tracker.Full(size) {
		if _, err := waitFor(ctx, r.stream, r.tracker.Room()); err != nil {
			return err
		}
	}
	return nil
}

// flush hands what was collected to the lanes: one channel operation serves hundreds of events.
func (r *reader) flush(ctx context.Context) error {
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
			if err := send(ctx, r.stream, in.lane, in.collected); err != nil {
				return err
			}
			in.collected = make([]*delivery, 0, n) // the lane owns the other one now
		}
	}
	r.waits.Store(waitsForNobody)
	return nil
}

// onKeepalive: everything that commits before lsn was sent before it. It counts only when nothing is in flight and no
// transaction is open; the tracker knows. Without it an idle outbox would pin the WAL of a busy database.
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

// send puts v into c. While it waits it goes on reporting to the server.
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

// waitFor takes a value from c. While it waits it goes on reporting to the server.
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
