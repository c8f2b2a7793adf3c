// Package checkpoint knows what is settled. Tracker derives from that which LSN may be confirmed to PostgreSQL. Recorder gives outcomes and
// the checkpoint to the ledger, one batch in a transaction. The package delivers nothing, reads no stream and has no SQL.
package checkpoint

import (
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
)

// Tracker knows which events are in flight and, from that, which LSN may be confirmed to PostgreSQL.
//
// It is a ring of events in position order, each with the number of its deliveries that are not settled. The reader registers each event
// at one end before it hands the event to a lane. The recorder settles events and takes them off at the other end, the head. The prefix
// is the position up to which everything is settled.
//
// Why a confirmed LSN is safe:
//
//  1. An event is added before its deliveries are handed on, so every event that a lane knows of is in the ring or settled.
//  2. A transaction's end LSN becomes the end of an entry only when its Commit was read, which comes after all its inserts. So once that
//     entry has left the ring, every event of that transaction and of all transactions before it is settled.
//  3. Confirmed moves in Publish alone, after the recorder's COMMIT of the checkpoint row that covers it.
//
// A transaction without a delivery of ours merges into the entry before it: its end may be confirmed as soon as that
// entry is settled, and a stuck head never makes the ring grow.
//
// The reader calls Begin, Full, Room, Add, Commit, Idle and WriteIdle; the recorder Progress, Settle, Settled and Publish;
// anybody the rest.
//
// Jobs wait until everything up to an LSN is settled: see through.go.
type Tracker struct {
	mu       sync.Mutex
	ring     []entry // entry n is at ring[n % len(ring)]
	head     uint64  // the oldest entry in flight
	next     uint64  // the number that the next entry gets
	bytes    int
	maxBytes int

	prefix    Position      // everything up to here is settled,
	end       pglogrepl.LSN // and this may be confirmed once a checkpoint row covers it
	confirmed pglogrepl.LSN // what a committed checkpoint row covers
	written   pglogrepl.LSN // how far the server is known to have written
	lagSince  time.Time     // commit time of the last transaction that was settled; see Snapshot
	idle      pglogrepl.LSN // what a keepalive allows to confirm; not in end, because a keepalive alone must not cause a checkpoint write
	open      bool          // between Begin and Commit
	seen      pglogrepl.LSN // everything that commits before this LSN was added
	through   []throughWait // who waits until it is settled

	room     chan struct{} // filled by Publish, when entries may have left the ring
	progress chan struct{} // filled when there may be something to confirm without a new outcome
}

type entry struct {
	pos       Position
	end       pglogrepl.LSN // end of the last transaction that ends at or behind this event; 0 while it is open
	committed time.Time
	left      int32 // deliveries not settled
	bytes     int
}

// NewTracker makes a tracker of at most maxEvents and maxBytes in flight; a single larger event passes alone. It starts at a checkpoint:
// everything up to prefix is settled, and a committed checkpoint row covers confirmed.
func NewTracker(maxEvents, maxBytes int, prefix Position, confirmed pglogrepl.LSN) *Tracker {
	return &Tracker{
		ring: make([]entry, maxEvents), maxBytes: maxBytes,
		prefix: prefix, end: confirmed, confirmed: confirmed,
		room: make(chan struct{}, 1), progress: make(chan struct{}, 1),
	}
}

func (t *Tracker) at(n uint64) *entry { return &t.ring[n%uint64(len(t.ring))] }

// Full reports whether an event of this size, in bytes, has to wait until something is settled. Room gets a value then.
func (t *Tracker) Full(bytes int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.next - t.head
	return n == uint64(len(t.ring)) || n > 0 && t.bytes+bytes > t.maxBytes
}

// Room gets a value when entries may have left the ring. The receiver asks Full again.
func (t *Tracker) Room() <-chan struct{} { return t.room }

// Progress gets a value when the prefix may have moved without an outcome, by a Commit or a keepalive.
func (t *Tracker) Progress() <-chan struct{} { return t.progress }

// Add puts an event with this many deliveries at the end of the ring and returns its number, by which it is settled.
// Events are added in position order, also those that were settled before (deliveries is 0). Add panics if the ring is full or the order is
// wrong: the caller has not asked Full, or mistakes the stream.
func (t *Tracker) Add(pos Position, deliveries, bytes int, committed time.Time) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := t.prefix
	if t.next > t.head {
		last = t.at(t.next - 1).pos
	} else if t.lagSince.Before(committed) {
		t.lagSince = committed
	}
	if pos.Compare(last) <= 0 {
		panic(fmt.Sprintf("event %s added behind %s", pos, last))
	}
	if t.next-t.head == uint64(len(t.ring)) {
		panic("event added to a full ring")
	}
	n := t.next
	*t.at(n) = entry{pos: pos, left: int32(deliveries), bytes: bytes, committed: committed}
	t.next++
	t.bytes += bytes
	return n
}

// Begin notes that a transaction is open until its Commit.
func (t *Tracker) Begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = true
}

// Transaction is the end of a transaction in the stream.
type Transaction struct {
	LSN    pglogrepl.LSN // of its commit record
	EndLSN pglogrepl.LSN // behind the commit record: what may be confirmed once its events are settled
	Last   int64         // the index of its last insert, −1 without any
	// Ours says that the transaction held rows of the outbox, so that the recorder should write a checkpoint at once if they are
	// settled already.
	Ours bool
}

// Commit notes the end of the transaction whose events were added since the last Commit.
func (t *Tracker) Commit(tx Transaction) {
	t.mu.Lock()
	defer t.unlock()
	t.open = false
	t.written, t.seen = max(t.written, tx.EndLSN), max(t.seen, tx.EndLSN)
	if t.next > t.head {
		e := t.at(t.next - 1)
		e.end = max(e.end, tx.EndLSN)
		if tx.Ours && e.left == 0 {
			signal(t.progress)
		}
		return
	}
	t.raise(Position{tx.LSN, tx.Last}, tx.EndLSN)
	if tx.Ours {
		signal(t.progress)
	}
}

// Idle notes what a keepalive says: the server has sent everything that stands before lsn. It counts only while nothing is in flight
// and no transaction is open, and Idle reports whether it counted. The next checkpoint covers it.
func (t *Tracker) Idle(lsn pglogrepl.LSN) bool {
	t.mu.Lock()
	defer t.unlock()
	t.written = max(t.written, lsn)
	if !t.open {
		t.seen = max(t.seen, lsn)
	}
	if t.next > t.head || t.open {
		return false
	}
	t.idle = max(t.idle, lsn)
	return true
}

// Written notes how far the server has written, for Snapshot.LagBytes. Commits and keepalives say so as well.
func (t *Tracker) Written(lsn pglogrepl.LSN) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.written = max(t.written, lsn)
}

// WriteIdle asks the recorder to write a checkpoint for what Idle has noted, unless one covers it already.
func (t *Tracker) WriteIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle > t.confirmed {
		signal(t.progress)
	}
}

// raise moves the prefix and what may be confirmed, never back.
func (t *Tracker) raise(pos Position, end pglogrepl.LSN) {
	if pos.Compare(t.prefix) > 0 {
		t.prefix = pos
	}
	t.end = max(t.end, end)
}

// Settle notes that one delivery of each of these entries will be settled by the transaction that the recorder is
// about to write. It panics when an entry has no delivery left, which would confirm what nobody delivered.
func (t *Tracker) Settle(entries []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range entries {
		if n < t.head || n >= t.next || t.at(n).left == 0 {
			panic(fmt.Sprintf("entry %d settled too often", n))
		}
		t.at(n).left--
	}
}

// Watermark is what a checkpoint row says: everything up to Prefix is settled, and LSN may be confirmed to PostgreSQL.
type Watermark struct {
	Prefix Position
	LSN    pglogrepl.LSN

	entries uint64 // the number of the first entry that is not covered
}

// Settled returns the watermark that is true once everything given to Settle is committed.
func (t *Tracker) Settled() Watermark {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := Watermark{Prefix: t.prefix, LSN: t.end, entries: t.head}
	for ; m.entries < t.next; m.entries++ {
		e := t.at(m.entries)
		if e.left > 0 {
			break
		}
		m.Prefix = e.pos
		m.LSN = max(m.LSN, e.end)
	}
	// What was settled when the keepalive came stays settled. A commit record may start exactly at the keepalive's LSN, so the prefix is
	// the position before its first event.
	m.LSN = max(m.LSN, t.idle)
	if p := (Position{t.idle, -1}); p.Compare(m.Prefix) > 0 {
		m.Prefix = p
	}
	return m
}

// Publish makes a watermark the truth, after the checkpoint row that holds it was committed. Nothing else moves Confirmed.
func (t *Tracker) Publish(m Watermark) {
	t.mu.Lock()
	defer t.unlock()
	for ; t.head < m.entries; t.head++ {
		e := t.at(t.head)
		// A Commit may have been read since the watermark was taken. Its end waits for the next one.
		t.raise(e.pos, e.end)
		t.bytes -= e.bytes
		t.lagSince = e.committed
	}
	t.raise(m.Prefix, m.LSN)
	t.confirmed = max(t.confirmed, m.LSN)
	signal(t.room)
	if t.end > t.confirmed {
		signal(t.progress)
	}
}

// Confirmed is the LSN that may be sent to PostgreSQL: the end of the last transaction that lies wholly in the prefix,
// covered by a committed checkpoint row.
func (t *Tracker) Confirmed() pglogrepl.LSN {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.confirmed
}

// Head is the number of the oldest event in flight. If there is none, it is the number that the next event gets.
func (t *Tracker) Head() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.head
}

// CommittedAt returns the commit time of an event. It is zero if the event is not in flight any more.
func (t *Tracker) CommittedAt(entry uint64) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if entry < t.head || entry >= t.next {
		return time.Time{}
	}
	return t.at(entry).committed
}

// InFlight is the number of events added and not yet in the prefix.
func (t *Tracker) InFlight() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return int(t.next - t.head)
}

// Snapshot is the state of a tracker at one moment.
type Snapshot struct {
	InFlight  int           // events added and not yet in the prefix
	Prefix    Position      // everything up to here is settled
	Confirmed pglogrepl.LSN // what may be sent to PostgreSQL
	Lag       time.Duration // since the commit of the last transaction that was settled; 0 when nothing is in flight
	LagBytes  int64         // of WAL between Confirmed and what the server is known to have written
}

// Snapshot returns the state of now.
func (t *Tracker) Snapshot(now time.Time) Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Snapshot{InFlight: int(t.next - t.head), Prefix: t.prefix, Confirmed: t.confirmed}
	s.LagBytes = int64(max(t.written, t.confirmed) - t.confirmed)
	if s.InFlight > 0 {
		s.Lag = max(0, now.Sub(t.lagSince))
	}
	return s
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
