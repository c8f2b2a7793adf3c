package connector

import (
	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// floor is up to where a lane has no untried row in outbox_parked, so that a pass need not begin at the first row that ever was:
// while somebody holds an old snapshot vacuum leaves all of them in the index, and each read would walk over them.
//
// A row is untried from the moment when the lane parks it, and never again once it was tried. So a read tells where the first one
// is, but for those that it could not see: parked since it began, or not committed then.
type floor struct {
	at      checkpoint.Position // no untried row is at or before it
	highest checkpoint.Position // that this session has parked or read
	unseen  checkpoint.Position // the first one that the running read may not see
	given   []parkedUpTo        // not committed yet
	pending checkpoint.Position // the first of those not given to the recorder yet
}

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

// gave notes that the recorder has what was parked.
func (f *floor) gave(seq uint64) {
	if f.pending != checkpoint.MaxPosition {
		f.given = append(f.given, parkedUpTo{seq, f.pending})
		f.pending = checkpoint.MaxPosition
	}
}

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

// readEnds takes what a read that began at the floor found as the first untried row; before: none.
func (f *floor) readEnds(first checkpoint.Position) {
	f.at = f.highest
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
