package connector

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var errGone = fmt.Errorf("dial: %w", sinks.ErrUnavailable)

// awayUntil makes a destination that is away until that time since the beginning, and then accepts everything.
func awayUntil(end time.Duration) func(context.Context, int, []sinks.Message) []error {
	began := time.Now()
	return func(_ context.Context, _ int, batch []sinks.Message) []error {
		if time.Since(began) < end {
			return everyMessage(batch, errGone)
		}
		return nil
	}
}

// A destination that is away is asked every reset time at the latest, however long the outage and however few the messages, whether there
// is a breaker or not.
func TestLaneAsksEveryResetTimeout(t *testing.T) {
	t.Parallel()
	const reset, outage = 7 * time.Second, 30 * time.Minute
	for name, parkAfter := range map[string]time.Duration{"parks": 10 * time.Second, "in place": 0} {
		for breaks, enabled := range map[string]bool{"with a breaker": true, "without": false} {
			t.Run(name+", "+breaks, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := newParkingLane(t, awayUntil(outage))
					b.delivery.ParkAfter, b.delivery.Retry = parkAfter, Retry{Initial: time.Second, Max: time.Hour}
					b.breaker.cfg = BreakerConfig{Enabled: enabled, MaxFailures: 3, ResetTimeout: reset}
					b.breaker.never = parkAfter == 0
					defer b.breaker.close()
					b.run()
					b.arrive("a1", "a2", "b1")
					time.Sleep(outage + reset + 2*time.Second)
					b.stop()
					for i, c := range b.calls[1:] {
						if gap := c.at - b.calls[i].at; gap > reset+catchUpPace+turnStep {
							t.Errorf("it was not asked for %s until %s", gap, c.at)
						}
					}
					if rows := b.gotRows(); strings.Count(rows, "delivered") != 3 {
						t.Errorf("outcomes: %s", rows)
					}
				})
			})
		}
	}
}

// When the destination answers, everything that waits only for it is due at once. What was refused keeps its backoff, and what the
// destination has put off keeps its time.
func TestLaneDueWhenItAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var answers atomic.Bool
		b := newParkingLane(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			errs := map[string]error{}
			for _, m := range batch {
				switch id := m.Event.ID; {
				case id == "r1" && m.Attempt == 1:
					errs[id] = errRefused
				case id == "p1" && m.Attempt == 1:
					errs[id] = sinks.After(20*time.Minute, errGone)
				case !answers.Load():
					errs[id] = errGone
				}
			}
			return fail(batch, errs)
		})
		b.delivery.Retry = Retry{Initial: 10 * time.Minute, Max: time.Hour}
		b.breaker.cfg.ResetTimeout = 10 * time.Minute
		b.run()
		b.arrive("r1", "p1")
		time.Sleep(time.Second)
		for c := 'a'; c <= 'm'; c++ {
			b.arrive(string(c)+"1", string(c)+"2")
		}
		time.Sleep(time.Minute)
		answers.Store(true)
		if rows := b.gotRows(); strings.Contains(rows, "delivered") {
			t.Errorf("outcomes before it answers: %s", rows)
		}
		b.arrive("z1") // nothing says that it is back before
		time.Sleep(time.Second)
		if rows := b.gotRows(); strings.Count(rows, "delivered") != 27 {
			t.Errorf("a second after it has answered: %s", rows)
		}
		check(t, "these keep their times", b.parked(), "r1:1/1 p1:1/0")
		time.Sleep(25 * time.Minute)
		b.stop()
		check(t, "rows", b.parked(), "")
	})
}

// When a probe is answered, the messages of failed probes are due at once, too.
func TestLaneFailedProbesAreDueWhenItAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, awayUntil(5*time.Minute+30*time.Second))
		b.opensAtOnce()
		b.delivery.Retry = Retry{Initial: time.Hour, Max: time.Hour}
		b.run()
		b.arrive("a1", "b1", "c1", "d1", "e1")
		time.Sleep(5*time.Minute + 40*time.Second)
		b.breaker.askNow() // all rows but that of the last probe are due
		time.Sleep(time.Second)
		b.stop()
		if rows := b.gotRows(); strings.Count(rows, "delivered") != 5 {
			t.Errorf("outcomes: %s", rows)
		}
	})
}

// In place, a lane does not wait for the end of its pause when another lane has had an answer. It does if a message was refused.
func TestLaneInPlaceDueWhenItAnswers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		first           error
		notBefore, till time.Duration
	}{
		"away":    {errGone, 2 * time.Second, 2 * time.Second},
		"refused": {errRefused, 4 * time.Second, 12 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newLaneBench(t, func(_ context.Context, n int, batch []sinks.Message) []error {
					if n == 1 {
						return everyMessage(batch, tt.first)
					}
					return nil
				})
				b.delivery.Retry = Retry{Initial: 8 * time.Second, Max: time.Minute} // with its jitter 4 to 12 s
				b.run()
				b.arrive("a1")
				time.Sleep(time.Second)
				b.breaker.judge(verdict{away: 1}) // of another lane
				time.Sleep(time.Second)
				b.breaker.judge(verdict{accepted: 1})
				time.Sleep(time.Minute)
				b.stop()
				if at := b.calls[1].at; at < tt.notBefore || at > tt.till {
					t.Errorf("tried again after %s, want %s to %s", at, tt.notBefore, tt.till)
				}
			})
		})
	}
}

// A message whose call was under way when the destination came back, and that it did not answer, is due at once.
func TestLaneDueWhenItCameBackMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			if n == 1 {
				time.Sleep(5 * time.Second)
				return everyMessage(batch, errGone)
			}
			return nil
		})
		b.delivery.Retry = Retry{Initial: time.Minute, Max: time.Minute}
		b.run()
		b.arrive("a1")
		time.Sleep(time.Second)
		b.breaker.judge(verdict{away: 1}) // of another lane
		b.breaker.judge(verdict{accepted: 1})
		time.Sleep(5 * time.Second)
		b.stop()
		check(t, "calls", b.gotCalls(), "[a1]@0s [a1]@5s ")
	})
}

// A destination that fails every second call takes no message's backoff away: what waits is due at once only once in a reset time.
func TestLaneFlakyKeepsBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return fail(batch, map[string]error{"a1": errGone})
		})
		b.delivery.Retry = Retry{Initial: 30 * time.Second, Max: time.Minute}
		b.run()
		b.arrive("a1")
		for range 600 {
			time.Sleep(time.Second)
			b.arrive("z1")
		}
		b.stop()
		if tries := strings.Count(b.gotRows(), "a1:"); tries > 41 { // ten minutes: one each 30 s at least by its backoff, and one each minute
			t.Errorf("a1 was tried %d times", tries)
		}
	})
}

// What is due because the destination is back waits no longer if the destination goes away again: it is tried once, not again and again.
func TestLaneBackAndAwayAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			errs := map[string]error{}
			for _, m := range batch {
				if m.Event.ID != "z1" && n < 100 { // a lane that asks without end must not stop the test
					errs[m.Event.ID] = errGone
				}
			}
			return fail(batch, errs)
		})
		b.delivery.BatchSize, b.delivery.Retry = 3, Retry{Initial: time.Hour, Max: time.Hour}
		b.breaker.cfg.ResetTimeout = time.Hour
		b.run()
		b.arrive("a1", "b1", "c1", "d1", "e1", "f1", "g1", "h1")
		time.Sleep(time.Minute)
		b.arrive("z1")
		time.Sleep(10 * time.Minute)
		b.stop()
		if tries := strings.Count(b.gotRows(), "failed"); tries != 16 {
			t.Errorf("%d tries, want two of each: %s", tries, b.gotCalls())
		}
	})
}

// A person's row, or one that is gone, leaves no trace in what a lane remembers, and its table is not read without end.
func TestLaneRemembersOnlyWhatIsThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return fail(batch, map[string]error{"a1": errGone})
		})
		b.delivery.Retry = Retry{Initial: time.Hour, Max: time.Hour}
		b.breaker.cfg.ResetTimeout = time.Hour
		var reads atomic.Int32
		table := b.ledger.table(1, 0, 1)
		table.delay = func() { reads.Add(1) }
		b.lane.source.parked = table
		b.run()
		b.arrive("a1")
		time.Sleep(time.Minute)
		b.ledger.mu.Lock()
		b.ledger.rows = nil
		b.ledger.mu.Unlock()
		reads.Store(0)
		b.arrive("z1")
		time.Sleep(10 * time.Second)
		if n := reads.Load(); n > 20 { // each read counts twice
			t.Errorf("%d reads in 10 s", n/2)
		}
		b.stop()
		if n := len(b.lane.away.waiting) + len(b.lane.away.back); n != 0 {
			t.Errorf("%d rows are remembered", n)
		}
	})
}

// A breaker that is half-open before its time finds a message to ask with among those that are not due yet.
func TestLaneProbesBeforeItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, awayUntil(5*time.Second))
		b.opensAtOnce()
		b.delivery.Retry = Retry{Initial: time.Hour, Max: time.Hour}
		b.run()
		b.arrive("a1")
		time.Sleep(10 * time.Second)
		b.breaker.checked()
		time.Sleep(time.Second)
		b.stop()
		check(t, "calls", b.gotCalls(), "[a1]@0s [a1]@10s ")
	})
}

// A lane that hears nothing looks into its table every 30 s, whether a person has made something due.
func TestLaneLooksByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(context.Context, int, []sinks.Message) []error { return nil })
		b.run()
		time.Sleep(10*time.Minute + time.Second)
		b.leftBehind("a1")
		time.Sleep(rereadEvery + catchUpPace)
		b.stop()
		if rows := b.gotRows(); rows != "a1:delivered#2 " {
			t.Errorf("outcomes %s", rows)
		}
	})
}

// While a sink is away, each message that asks leaves its aggregate held, and is counted at once, not when the table is read next.
func TestLaneCountsHeldWhileAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, awayUntil(time.Hour))
		b.delivery.BatchSize = 1
		b.opensAtOnce()
		b.breaker.cfg.ResetTimeout = 10 * time.Second
		defer b.breaker.close()
		b.run()
		b.arrive("a1", "b1", "c1", "d1", "e1", "f1")
		for n := 1; n <= 6; n++ {
			time.Sleep(time.Second)
			tried := map[int64]bool{}
			b.ledger.mu.Lock()
			for _, r := range b.ledger.rows {
				if !r.due.IsZero() {
					tried[r.hash] = true
				}
			}
			b.ledger.mu.Unlock()
			st := b.state.status()
			if held := st.Held(); held != len(tried) {
				t.Errorf("after %s: %d aggregates held, and the table has tried rows of %d", time.Since(b.start), held, len(tried))
			}
			time.Sleep(9 * time.Second)
		}
		b.stop()
	})
}

// A person has asked for a try now. That the destination answers again must not put it off to the time that the messages have of their own.
func TestAnswersAgainAfterRetry(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tt := range map[string]struct{ at, own, want time.Time }{
		"it waits for the destination": {now.Add(time.Minute), now.Add(time.Second), now.Add(time.Second)},
		"asked for":                    {time.Time{}, now.Add(time.Second), time.Time{}},
		"it waits for nothing":         {time.Time{}, time.Time{}, time.Time{}},
	} {
		l := newLane(&sharedSink{}, 0, rowSource{}, nil)
		l.hand.at, l.hand.own = tt.at, tt.own
		if l.answersAgain(now); !l.hand.at.Equal(tt.want) {
			t.Errorf("%s: tried at %v, want %v", name, l.hand.at, tt.want)
		}
	}
}
