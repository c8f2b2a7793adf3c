package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// These tests run the recorder in a bubble, over a ledger without SQL. Package ledger has its tests over PostgreSQL.

// fakeLedger is a ledger whose answers the test gives.
type fakeLedger struct {
	commit func(context.Context, Batch) error
	close  func()
}

func (l fakeLedger) Commit(ctx context.Context, b Batch) error { return l.commit(ctx, b) }
func (l fakeLedger) Close()                                    { l.close() }

// recorderBench is a recorder at work. Its ledger keeps a line for each Commit call. What the recorder's goroutine writes is read after
// end, or after synctest.Wait.
type recorderBench struct {
	*Tracker
	in     chan Outcomes
	cancel context.CancelCauseFunc
	ended  chan error

	commits []string // "10ms 1+2" is a call after 10 ms with the outcomes of the numbers (Seq) 1 and 2
	states  []string // the calls of State
	log     bytes.Buffer
	closed  bool
}

// newRecorderBench starts a recorder. answer is what the nth call of Commit returns.
func newRecorderBench(t *testing.T, fast func() bool, answer func(n int) error, given ...Outcomes) *recorderBench {
	b := &recorderBench{Tracker: NewTracker(16, 1<<20, pos(90, -1), 90), in: make(chan Outcomes, 100), ended: make(chan error, 1)}
	for _, o := range given {
		b.in <- o
	}
	start := time.Now()
	ledger := fakeLedger{
		commit: func(_ context.Context, batch Batch) error {
			var seqs []string
			for _, o := range batch.Outcomes {
				seqs = append(seqs, fmt.Sprint(o.Seq))
			}
			b.commits = append(b.commits, fmt.Sprintf("%s %s", time.Since(start), strings.Join(seqs, "+")))
			return answer(len(b.commits))
		},
		close: func() { b.closed = true },
	}
	recorder := NewRecorder(ledger, RecorderConfig{
		Fast:   fast,
		State:  func(err error) { b.states = append(b.states, fmt.Sprint(err)) },
		Logger: slog.New(slog.NewTextHandler(&b.log, nil)),
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	b.cancel = cancel
	go func() { b.ended <- recorder.Run(ctx, b.Tracker, b.in) }()
	return b
}

// end closes the recorder's channel and waits until Run has returned.
func (b *recorderBench) end() error {
	close(b.in)
	return <-b.ended
}

func (b *recorderBench) wantCommits(t *testing.T, want ...string) {
	t.Helper()
	if got := strings.Join(b.commits, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("commits\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func calm() bool { return false }
func fast() bool { return true }

func succeeds(int) error { return nil }

// failures is that many tries that failed. They settle nothing.
func failures(seq uint64, rows int) Outcomes {
	o := Outcomes{Seq: seq, Rows: make([]Outcome, rows)}
	for i := range o.Rows {
		o.Rows[i].Status = Failed
	}
	return o
}

// The starts of two transactions are at least 10 ms apart, or 20 ms while the stream is fast. What comes meanwhile goes into the second one.
// After a pause nothing waits.
func TestRecorderPace(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fast func() bool
		want []string
	}{
		"calm": {calm, []string{"0s 1", "10ms 2+3", "20ms 4", "1h0m0.012s 5"}},
		"fast": {fast, []string{"0s 1", "20ms 2+3+4", "1h0m0.012s 5"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newRecorderBench(t, tt.fast, succeeds)
				var seq uint64
				for _, pause := range []time.Duration{0, time.Millisecond, 8 * time.Millisecond, 3 * time.Millisecond, time.Hour} {
					time.Sleep(pause)
					seq++
					b.in <- failures(seq, 1)
				}
				time.Sleep(time.Second)
				if err := b.end(); err != nil {
					t.Error(err)
				}
				b.wantCommits(t, tt.want...)
			})
		})
	}
}

// A batch ends with the outcomes that bring it to 8,192 rows, of which a change of a parked row counts as four. A full batch is committed
// at once, whatever the pace.
func TestRecorderBatchIsBounded(t *testing.T) {
	t.Parallel()
	parked := func(seq uint64) Outcomes {
		o := failures(seq, 1024)
		for i := range o.Rows {
			o.Rows[i].Row = RowUpdate
		}
		return o
	}
	for name, tt := range map[string]struct {
		given []Outcomes
		want  []string
	}{
		"rows of the log": {
			[]Outcomes{failures(1, 4096), failures(2, 4095), failures(3, 1), failures(4, 8191), failures(5, 8192), failures(6, 1)},
			[]string{"0s 1+2+3", "0s 4+5", "10ms 6"},
		},
		"parked rows": {
			[]Outcomes{parked(1), parked(2), parked(3), parked(4), parked(5)},
			[]string{"0s 1+2", "0s 3+4", "10ms 5"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newRecorderBench(t, calm, succeeds, tt.given...)
				time.Sleep(time.Second)
				if err := b.end(); err != nil {
					t.Error(err)
				}
				b.wantCommits(t, tt.want...)
			})
		})
	}
}

// Urgent outcomes end the wait for the pace. What has come before them is committed with them.
func TestRecorderUrgency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newRecorderBench(t, fast, succeeds, failures(1, 1))
		time.Sleep(2 * time.Millisecond)
		b.in <- failures(2, 1)
		time.Sleep(time.Millisecond)
		urgent := failures(3, 1)
		urgent.Urgent = true
		b.in <- urgent
		synctest.Wait()
		b.wantCommits(t, "0s 1", "3ms 2+3")
		if err := b.end(); err != nil {
			t.Error(err)
		}
	})
}

// A batch that could not be committed is tried again, after a pause that doubles up to 5 s. Nothing is settled before it is committed, and
// nothing else is committed meanwhile. State hears of each failure and of the success, the log of the first failure and the success.
func TestRecorderTriesAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newRecorderBench(t, calm, func(n int) error {
			if n < 10 {
				return fmt.Errorf("no connection %d", n)
			}
			return nil
		})
		entries := tx(b.Tracker, 100, 110, 1)
		recorded := make(chan uint64, 1)
		b.in <- Outcomes{Rows: []Outcome{{Entry: entries[0], Settles: true, Status: Delivered}}, Seq: 1, Recorded: recorded}
		time.Sleep(15 * time.Second)
		b.in <- failures(2, 1)
		synctest.Wait()
		if got := b.Confirmed(); got != 90 || len(recorded) != 0 {
			t.Errorf("confirmed %d, %d notices of the commit, before it was committed; want 90 and none", got, len(recorded))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		b.wantCommits(t, "0s 1", "50ms 1", "150ms 1", "350ms 1", "750ms 1", "1.55s 1", "3.15s 1", "6.35s 1", "11.35s 1", "16.35s 1", "16.35s 2")
		if got := b.Confirmed(); got != 110 {
			t.Errorf("confirmed %d after the commit, want 110", got)
		}
		select {
		case seq := <-recorded:
			if seq != 1 {
				t.Errorf("the lane hears of commit %d, want 1", seq)
			}
		default:
			t.Error("the lane does not hear of the commit")
		}
		if got, want := strings.Join(b.states, ", "), "no connection 1, no connection 2, no connection 3, no connection 4, no connection 5, "+
			"no connection 6, no connection 7, no connection 8, no connection 9, <nil>"; got != want {
			t.Errorf("State was called with\n%s\nwant\n%s", got, want)
		}
		if log := b.log.String(); strings.Count(log, "\n") != 2 || !strings.Contains(log, "recorder tries again") || !strings.Contains(log, "recorder works again") {
			t.Errorf("the log has %q, want one line for the first failure and one for the success", log)
		}
		if err := b.end(); err != nil {
			t.Error(err)
		}
	})
}

// A ledger that was taken over, and a server that shuts down, end the recorder at once. It closes the ledger and publishes nothing.
func TestRecorderEndsWithoutAnotherTry(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]error{
		"fenced":          fmt.Errorf("commit: %w", ErrFenced),
		"server stopping": fmt.Errorf("connect: %w", &pgconn.PgError{Code: "57P03"}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newRecorderBench(t, calm, func(int) error { return failure })
				entries := tx(b.Tracker, 100, 110, 1)
				b.in <- Outcomes{Rows: []Outcome{{Entry: entries[0], Settles: true, Status: Delivered}}, Seq: 1}
				time.AfterFunc(time.Minute, func() { b.cancel(errors.New("a minute has passed")) })
				if err := <-b.ended; !errors.Is(err, failure) {
					t.Errorf("ended with %v, want %v", err, failure)
				}
				b.wantCommits(t, "0s 1")
				if got := b.Confirmed(); got != 90 || !b.closed || len(b.states) > 0 {
					t.Errorf("confirmed %d, ledger closed %t, State called with %q; want 90, true and no call", got, b.closed, b.states)
				}
			})
		})
	}
}

// When its context ends, the recorder stops trying, and says why it ended and why it could not record.
func TestRecorderEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		unreachable, timeout := errors.New("no connection"), errors.New("the drain takes too long")
		b := newRecorderBench(t, calm, func(int) error { return unreachable }, failures(1, 1))
		time.Sleep(100 * time.Millisecond)
		b.cancel(timeout)
		if err := <-b.ended; !errors.Is(err, timeout) || !errors.Is(err, unreachable) {
			t.Errorf("ended with %v, want both %q and %q", err, timeout, unreachable)
		}
		b.wantCommits(t, "0s 1", "50ms 1", "100ms 1")
	})
}

// The last commit of a recorder covers the position of the last keepalive, so that a clean stop leaves nothing to be sent again.
func TestRecorderEndCoversTheKeepalive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newRecorderBench(t, calm, succeeds)
		b.Idle(500)
		time.Sleep(time.Hour)
		synctest.Wait()
		b.wantCommits(t) // the keepalive alone causes none
		if got := b.Confirmed(); got != 90 {
			t.Errorf("confirmed %d before a checkpoint covers the keepalive, want 90", got)
		}
		if err := b.end(); err != nil {
			t.Error(err)
		}
		b.wantCommits(t, "1h0m0s ")
		if got := b.Confirmed(); got != 500 {
			t.Errorf("confirmed %d, want 500", got)
		}
		if !b.closed {
			t.Error("the ledger is not closed")
		}
	})
}

// Where there is nothing to confirm, the end commits nothing.
func TestRecorderEndsWithoutACommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newRecorderBench(t, calm, succeeds)
		if err := b.end(); err != nil {
			t.Error(err)
		}
		b.wantCommits(t)
	})
}
