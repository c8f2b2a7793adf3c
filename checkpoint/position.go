package checkpoint

import (
	"cmp"
	"fmt"
	"math"

	"github.com/jackc/pglogrepl"
)

// Position is the order and the identity of an event: the LSN of its transaction's commit record and its index among
// all inserts of that transaction, from 0. LSNs of single changes are neither unique nor monotonic, so nothing is
// decided from them. Index −1 stands before the first event of a commit record at LSN.
type Position struct {
	LSN   pglogrepl.LSN
	Index int64
}

var (
	// MinPosition is before the positions of all events.
	MinPosition = Position{LSN: 0, Index: math.MinInt64}
	// MaxPosition is behind the positions of all events.
	MaxPosition = Position{LSN: math.MaxUint64, Index: math.MaxInt64}
)

// Compare orders positions as the stream does.
func (p Position) Compare(q Position) int {
	if c := cmp.Compare(p.LSN, q.LSN); c != 0 {
		return c
	}
	return cmp.Compare(p.Index, q.Index)
}

// String gives "16/B374D848/3".
func (p Position) String() string { return fmt.Sprintf("%s/%d", p.LSN, p.Index) }

// Key names a delivery: an event and the processor (the row of outbox_processors) of the sink that it goes to. Processor 0
// stands for no sink.
type Key struct {
	Processor int32
	Position  Position
}
