package checkpoint

import (
	"testing"
	"time"
)

// The stream is settled through an LSN when a commit or keepalive at or beyond it was seen and everything before it is in the ledger.
func TestSettledThrough(t *testing.T) {
	t.Parallel()
	tr := NewTracker(16, 1<<20, pos(90, -1), 90)
	done := tr.SettledThrough(150)
	settled := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	check := func(when, want string) {
		t.Helper()
		got := "not seen"
		if tr.Seen(150) {
			got = "seen"
		}
		if settled() {
			got += ", settled"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	check("at the beginning", "not seen")
	first := tx(tr, 100, 110, 1)
	settle(tr, first...)
	tr.Publish(tr.Settled())
	check("after a transaction before it", "not seen")
	tr.Begin()
	entry := tr.Add(pos(140, 0), 1, 10, time.Time{})
	tr.Idle(160)
	check("with a keepalive in the middle of a transaction", "not seen")
	settle(tr, entry)
	tr.Publish(tr.Settled())
	tr.Idle(160)
	check("with a keepalive in the middle of a transaction of which all so far is settled", "not seen")
	entry = tr.Add(pos(140, 1), 1, 10, time.Time{})
	tr.Commit(Transaction{LSN: 140, EndLSN: 150, Last: 1, Ours: true})
	check("while an event before it is in flight", "seen")
	later := tx(tr, 150, 170, 1)
	tr.Settle([]uint64{entry})
	m := tr.Settled()
	check("before the ledger has the last event before it", "seen")
	tr.Publish(m)
	check("when all before it is settled, and a later event is not", "seen, settled")
	select {
	case <-tr.SettledThrough(150):
	default:
		t.Error("who asks later has to wait")
	}
	settle(tr, later...)
}
