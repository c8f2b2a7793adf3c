package checkpoint

import (
	"cmp"
	"fmt"

	"github.com/jackc/pglogrepl"
)

// Position is the order and the identity of an event: the LSN of its transaction's commit record and its index among
// all inserts of that transaction, from 0. LSNs of single changes are neither unique nor monotonic, so nothing is
// decided from them. Index −1 stands before the first event of a commit record at LSN.
type Position struct {
	LSN   pglogrepl.LSN
	Index int64
}

// Compare orders positions as the stream does.
func (p Position) Compare(q Position) int {
	if c := cmp.Compare(p.LSN, q.LSN); c != 0 {
		return c
	}
	return cmp.Compare(p.Index, q.Index)
}

// String gives "16/B374D848/3".
func (p Position) String() string { return fmt.Sprintf("%s/%d", p.LSN, p.Index) }
