package connector

import (
	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// floor knows a position up to which a lane has no untried row in outbox_parked, so that a pass can begin there. Without it a pass would
// begin at the first row that ever was: while somebody holds an old snapshot, vacuum leaves deleted rows in the index, and each read would
// walk over all of them.
//
// A row is untried from the moment when the lane parks it until it is tried, and never again. So a read finds out where the first untried
// row is, except for rows that it could not see: those parked since it began, and those not committed then.
type floor struct {
	at      checkpoint.Position // no untried row is at or before it
	highest checkpoint.Position // the highest position that this session has parked or read
	unseen  checkpoint.Position // the first row that the running read may not see
	given   []parkedUpTo        // rows that the recorder has and has not committed
	pending checkpoint.Position // the first row that was parked and not given to the recorder yet
}

// parkedUpTo is what was parked with the outcomes of this Seq: its first position.
type parkedUpTo struct {
	seq   uint64
	first checkpoint.Position
}

func newFloor() floor {
	return floor{
		at: checkpoint.MinPosition, highest: checkpoint.MinPosition, unseen: checkpoint.MaxPosition, pending: checkpoint.MaxPosition,
	}
}

// parked notes a row that will be written.
func (f *floor) parked(at checkpoint.Position) {
	f.highest = latest(f.highest, at)
	f.pending, f.unseen = earliest(f.pending, at), earliest(f.unseen, at)
	f.at = earliest(f.at, justBefore(at))
}

// gave notes that the recorder now has what was parked, with the outcomes of seq.
func (f *floor) gave(seq uint64) {
	if f.pending != checkpoint.MaxPosition {
		f.given = append(f.given, parkedUpTo{seq, f.pending})
		f.pending = checkpoint.MaxPosition
	}
}

// recorded notes that everything up to seq is committed.
func (f *floor) recorded(seq uint64) {
	for len(f.given) > 0 && f.given[0].seq <= seq {
		f.given = f.given[1:]
	}
}

// readBegins is called before the snapshot of a read is taken.
func (f *floor) readBegins() {
	f.unseen = f.pending
	for _, g := range f.given {
		f.unseen = earliest(f.unseen, g.first)
	}
}

// read notes a row that was read.
func (f *floor) read(at checkpoint.Position) { f.highest = latest(f.highest, at) }

// others notes that others than the lane have parked rows, which are committed: a job, whose first row is at this position.
func (f *floor) others(first checkpoint.Position) {
	f.at, f.unseen = earliest(f.at, justBefore(first)), earliest(f.unseen, first)
}

// readEnds raises the floor after a read that began there and left out what is at or behind before, unless that is zero. first is the first
// untried row that the read found, or checkpoint.MinPosition if there was none.
func (f *floor) readEnds(first, before checkpoint.Position) {
	f.at = f.highest
	if before != (checkpoint.Position{}) {
		f.at = earliest(f.at, justBefore(before))
	}
	if first != checkpoint.MinPosition {
		f.at = justBefore(first)
	}
	if f.unseen != checkpoint.MaxPosition {
		f.at = earliest(f.at, justBefore(f.unseen))
	}
}

func justBefore(p checkpoint.Position) checkpoint.Position {
	return checkpoint.Position{LSN: p.LSN, Index: p.Index - 1}
}

func earliest(a, b checkpoint.Position) checkpoint.Position {
	if a.Compare(b) <= 0 {
		return a
	}
	return b
}

func latest(a, b checkpoint.Position) checkpoint.Position {
	if a.Compare(b) >= 0 {
		return a
	}
	return b
}
