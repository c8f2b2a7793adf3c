package checkpoint

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
)

func pos(lsn pglogrepl.LSN, index int64) Position { return Position{lsn, index} }

// settle commits the outcomes of these entries, as the recorder does.
func settle(t *Tracker, entries ...uint64) Watermark {
	t.Settle(entries)
	m := t.Settled()
	t.Publish(m)
	return m
}

// tx adds a transaction of n events with one delivery each.
func tx(t *Tracker, commit, end pglogrepl.LSN, n int) (entries []uint64) {
	t.Begin()
	for i := range n {
		entries = append(entries, t.Add(pos(commit, int64(i)), 1, 10, time.Time{}))
	}
	t.Commit(Transaction{LSN: commit, EndLSN: end, Last: int64(n) - 1, Ours: n > 0})
	return entries
}

func TestConfirmsTheEndOfTheLastWholeTransaction(t *testing.T) {
	t.Parallel()
	tr := NewTracker(16, 1<<20, pos(90, -1), 90)
	a := tx(tr, 100, 110, 2)
	b := tx(tr, 120, 130, 1)

	m := settle(tr, a[0])
	if got := tr.Confirmed(); got != 90 {
		t.Errorf("after one event of two: confirmed %s, want 0/5A: nothing of a transaction is confirmed before all of it is settled", got)
	}
	if want := pos(100, 0); m.Prefix != want {
		t.Errorf("prefix %s, want %s", m.Prefix, want)
	}
	settle(tr, b[0])
	if got := tr.Confirmed(); got != 90 {
		t.Errorf("the second transaction is settled, the first is not: confirmed %s, want 0/5A", got)
	}
	m = settle(tr, a[1])
	if got := tr.Confirmed(); got != 130 {
		t.Errorf("all is settled: confirmed %d, want 130, the end of the last transaction", got)
	}
	if want := pos(120, 0); m.Prefix != want {
		t.Errorf("prefix %s, want %s", m.Prefix, want)
	}
}

func TestAnOpenTransactionIsNotConfirmed(t *testing.T) {
	t.Parallel()
	tr := NewTracker(16, 1<<20, pos(90, -1), 90)
	tr.Begin()
	e := tr.Add(pos(100, 0), 1, 10, time.Time{})
	settle(tr, e)
	if got := tr.Confirmed(); got != 90 {
		t.Errorf("confirmed %d before the Commit was read, want 90", got)
	}
	if tr.Idle(100) {
		t.Error("a keepalive counts in the middle of a transaction")
	}
	tr.Commit(Transaction{LSN: 100, EndLSN: 110, Last: 0, Ours: true})
	select {
	case <-tr.Progress():
	default:
		t.Error("no progress at the Commit of a transaction that is settled")
	}
	m := tr.Settled()
	if got := tr.Confirmed(); got != 90 {
		t.Errorf("confirmed %d before the checkpoint was committed, want 90", got)
	}
	tr.Publish(m)
	if got := tr.Confirmed(); got != 110 {
		t.Errorf("confirmed %d, want 110", got)
	}
}

func TestKeepaliveCountsOnlyWhenNothingIsInFlight(t *testing.T) {
	t.Parallel()
	tr := NewTracker(16, 1<<20, pos(90, -1), 90)
	e := tx(tr, 100, 110, 1)
	if tr.Idle(500) {
		t.Error("a keepalive counts with an event in flight")
	}
	settle(tr, e...)
	if got := tr.Confirmed(); got != 110 {
		t.Errorf("confirmed %d, want 110", got)
	}
	if !tr.Idle(500) {
		t.Error("a keepalive does not count with nothing in flight")
	}
	if got := tr.Confirmed(); got != 110 {
		t.Errorf("confirmed %d before a checkpoint covers the keepalive, want 110", got)
	}
	select {
	case <-tr.Progress():
		t.Error("a keepalive makes the recorder write though it was not asked to")
	default:
	}
	m := tr.Settled()
	tr.Publish(m)
	if got := tr.Confirmed(); got != 500 {
		t.Errorf("confirmed %d, want 500", got)
	}
	if want := pos(500, -1); m.Prefix != want {
		t.Errorf("prefix %s, want %s: a commit record may start exactly there", m.Prefix, want)
	}
	tx(tr, 500, 520, 1) // panics if its first event is taken to be in the prefix
}

// A keepalive that arrives while the recorder is at work must not cause another write: our own COMMIT makes WAL, which
// makes a keepalive, which would make a COMMIT.
func TestKeepaliveDuringAWriteCausesNone(t *testing.T) {
	t.Parallel()
	tr := NewTracker(16, 1<<20, pos(90, -1), 90)
	e := tx(tr, 100, 110, 1)
	settle(tr, e...)
	m := tr.Settled()
	tr.Idle(200)
	tr.Publish(m)
	select {
	case <-tr.Progress():
		t.Error("the recorder is asked to write again")
	default:
	}
}

func TestTransactionsWithoutEventsMerge(t *testing.T) {
	t.Parallel()
	tr := NewTracker(2, 1<<20, pos(90, -1), 90)
	e := tx(tr, 100, 110, 1)
	for i := range 1000 {
		tx(tr, 200+pglogrepl.LSN(i), 201+pglogrepl.LSN(i), 0)
	}
	if got := tr.InFlight(); got != 1 {
		t.Errorf("%d in flight, want 1", got)
	}
	settle(tr, e...)
	if got := tr.Confirmed(); got != 1200 {
		t.Errorf("confirmed %d, want 1200", got)
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	tr := NewTracker(3, 100, pos(0, -1), 0)
	if tr.Full(1000) {
		t.Error("one event larger than the window has to pass alone")
	}
	a := tx(tr, 10, 11, 1)
	if tr.Full(90) || !tr.Full(91) {
		t.Error("bytes are counted wrongly")
	}
	tx(tr, 20, 21, 1)
	tx(tr, 30, 31, 1)
	if !tr.Full(0) {
		t.Error("three events fill a ring of three")
	}
	settle(tr, a...)
	select {
	case <-tr.Room():
	default:
		t.Error("Room got no value")
	}
	if tr.Full(0) {
		t.Error("full with two of three")
	}
}

func TestTrackerMisusePanics(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(*Tracker){
		"settled twice":        func(tr *Tracker) { e := tx(tr, 10, 11, 1); tr.Settle(e); tr.Settle(e) },
		"settled, never added": func(tr *Tracker) { tr.Settle([]uint64{5}) },
		"order":                func(tr *Tracker) { tx(tr, 10, 11, 1); tx(tr, 9, 12, 1) },
		"below the prefix":     func(tr *Tracker) { tx(tr, 5, 6, 1) },
		"overfull":             func(tr *Tracker) { tx(tr, 10, 11, 5) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f(NewTracker(4, 100, pos(5, 0), 5))
		})
	}
}

func TestLag(t *testing.T) {
	t.Parallel()
	tr := NewTracker(4, 100, pos(0, -1), 0)
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if got := tr.Snapshot(t0).Lag; got != 0 {
		t.Errorf("lag %s with nothing in flight", got)
	}
	a := tr.Add(pos(1, 0), 1, 0, t0)
	tr.Add(pos(2, 0), 1, 0, t0.Add(time.Minute))
	if got := tr.Snapshot(t0.Add(time.Hour)).Lag; got != time.Hour {
		t.Errorf("lag %s, want 1h since the oldest event was committed", got)
	}
	settle(tr, a)
	if got := tr.Snapshot(t0.Add(time.Hour)).Lag; got != time.Hour {
		t.Errorf("lag %s, want 1h since the commit of the last that was settled", got)
	}
}

// model is a tracker that is easy to check: a list of all transactions.
type model struct {
	txs       []modelTx
	prefix    Position
	confirmed pglogrepl.LSN
	idle      pglogrepl.LSN
}

type modelTx struct {
	commit, end pglogrepl.LSN // end 0: open
	left        []int         // deliveries not settled, by event
}

func (m *model) mark() (Position, pglogrepl.LSN) {
	p, c := m.prefix, m.confirmed
walk:
	for _, tx := range m.txs {
		for i, left := range tx.left {
			if left > 0 {
				break walk
			}
			if q := pos(tx.commit, int64(i)); q.Compare(p) > 0 {
				p = q
			}
		}
		if tx.end == 0 {
			break
		}
		c = max(c, tx.end)
	}
	return p, max(c, m.idle)
}

func (m *model) inFlight() bool {
	for _, tx := range m.txs {
		for _, left := range tx.left {
			if left > 0 {
				return true
			}
		}
	}
	return false
}

// FuzzTracker runs random operations on the tracker and on the model. Confirmed must always be the model's, never
// go back, and never pass an event that is not settled.
func FuzzTracker(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint16(300))
	}
	f.Fuzz(func(t *testing.T, seed uint64, steps uint16) {
		r := rand.New(rand.NewPCG(seed, 0))
		tr := NewTracker(1+r.IntN(12), 1<<20, pos(0, -1), 0)
		m := &model{prefix: pos(0, -1)}
		type owed struct {
			entry uint64
			left  *int
		}
		var all []owed
		lsn := pglogrepl.LSN(10)
		open := false
		for range steps {
			switch r.IntN(7) {
			case 0:
				if open {
					break
				}
				lsn += pglogrepl.LSN(1 + r.IntN(5))
				tr.Begin()
				m.txs = append(m.txs, modelTx{commit: lsn, left: make([]int, 0, 1000)})
				open = true
			case 1, 2:
				if !open || tr.Full(1) || len(m.txs[len(m.txs)-1].left) == 1000 {
					break
				}
				n := r.IntN(3)
				tx := &m.txs[len(m.txs)-1]
				tx.left = append(tx.left, n)
				e := tr.Add(pos(tx.commit, int64(len(tx.left)-1)), n, 1, time.Time{})
				for range n {
					all = append(all, owed{e, &tx.left[len(tx.left)-1]})
				}
			case 3:
				if !open {
					break
				}
				tx := &m.txs[len(m.txs)-1]
				lsn += pglogrepl.LSN(1 + r.IntN(5))
				tx.end = lsn
				tr.Commit(Transaction{LSN: tx.commit, EndLSN: tx.end, Last: int64(len(tx.left)) - 1, Ours: len(tx.left) > 0})
				open = false
			case 4:
				counted := tr.Idle(lsn)
				if r.IntN(2) == 0 {
					tr.WriteIdle()
				}
				if counted {
					if open || m.inFlight() {
						t.Fatalf("keepalive counted with open=%v", open)
					}
					m.idle = lsn
				}
			default:
				var entries []uint64
				for n := r.IntN(6); n > 0 && len(all) > 0; n-- {
					i := r.IntN(len(all))
					entries = append(entries, all[i].entry)
					*all[i].left--
					all = append(all[:i], all[i+1:]...)
				}
				before := tr.Confirmed()
				tr.Settle(entries)
				mark := tr.Settled()
				if tr.Confirmed() != before {
					t.Fatal("confirmed before Publish")
				}
				tr.Publish(mark)
				wantPrefix, want := m.mark()
				if got := tr.Confirmed(); got != want || got < before {
					t.Fatalf("confirmed %s, want %s (before: %s)", got, want, before)
				}
				if wantPrefix.Compare(pos(m.idle, -1)) < 0 {
					wantPrefix = pos(m.idle, -1)
				}
				// An empty transaction moves the prefix as well, which only a position without an event can show.
				if mark.Prefix.Compare(wantPrefix) < 0 {
					t.Fatalf("prefix %s, want %s", mark.Prefix, wantPrefix)
				}
			}
		}
	})
}
