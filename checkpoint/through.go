package checkpoint

import (
	"slices"

	"github.com/jackc/pglogrepl"
)

// The stream is settled through an LSN if a commit or a keepalive at or beyond it was seen, and everything that commits before it is settled
// and in the ledger. A job compares rows that it has read from the outbox with the ledger only then: what the stream has brought of them, or
// would still bring, is in the ledger by that time.

// throughWait is somebody who waits until the stream is settled through an LSN.
type throughWait struct {
	lsn  pglogrepl.LSN
	done chan struct{}
}

// SettledThrough returns a channel that is closed as soon as the stream is settled through this LSN.
func (t *Tracker) SettledThrough(lsn pglogrepl.LSN) <-chan struct{} {
	t.mu.Lock()
	defer t.unlock()
	w := throughWait{lsn, make(chan struct{})}
	t.through = append(t.through, w)
	return w.done
}

// Seen reports whether the stream has come to this LSN, settled or not. As long as it has not, a keepalive can help.
func (t *Tracker) Seen(lsn pglogrepl.LSN) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen >= lsn
}

// unlock ends a change of what is settled or seen.
func (t *Tracker) unlock() {
	t.tellThrough()
	t.mu.Unlock()
}

// tellThrough closes the channels of those who need not wait any more. The caller holds mu.
//
// While a transaction is open, seen does not move, so that a transaction of which only a part was added commits at or beyond seen.
func (t *Tracker) tellThrough() {
	if len(t.through) == 0 {
		return
	}
	t.through = slices.DeleteFunc(t.through, func(w throughWait) bool {
		settled := t.seen >= w.lsn && (t.next == t.head || t.at(t.head).pos.LSN >= w.lsn)
		if settled {
			close(w.done)
		}
		return settled
	})
}
