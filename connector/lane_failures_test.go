package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// newParkingLane is a laneBench whose lane parks what is not accepted.
func newParkingLane(t *testing.T, answer func(ctx context.Context, n int, batch []sinks.Message) []error) *laneBench {
	b := newLaneBench(t, answer)
	b.delivery.ParkAfter, b.delivery.BatchSize = 10*time.Second, 500
	return b
}

// everyMessage gives the same answer for each message of a batch.
func everyMessage(batch []sinks.Message, err error) []error {
	errs := map[string]error{}
	for _, m := range batch {
		errs[m.Event.ID] = err
	}
	return fail(batch, errs)
}

// exhaust uses up the death budget of the bench's sink.
func (b *laneBench) exhaust() {
	for range deathBudget {
		b.budget.mayDie()
	}
}

// leftBehind puts rows into outbox_parked that an earlier session has left. The first one was tried and is due, the others are fresh.
func (b *laneBench) leftBehind(ids ...string) {
	for i, id := range ids {
		d := &delivery{hash: int64(id[0]), Message: sinks.Message{Event: &outbox.Event{ID: id, AggregateID: id[:1]}, LSN: 1, Index: int64(i)}}
		o := d.outcome(1, checkpoint.Parked)
		if i == 0 {
			o.Parked.Tries, o.Parked.NextAttempt = 1, time.Now()
		}
		b.ledger.apply([]checkpoint.Outcome{o})
	}
}

// opensAtOnce makes one call that finds the destination away open the breaker, and makes the lane park then.
func (b *laneBench) opensAtOnce() {
	b.breaker.never, b.breaker.cfg.Enabled, b.breaker.cfg.MaxFailures = false, true, 1
}

// parked describes the rows of outbox_parked: id, tries, refused tries.
func (b *laneBench) parked() string {
	b.ledger.mu.Lock()
	defer b.ledger.mu.Unlock()
	var rows []string
	for _, r := range b.ledger.rows {
		rows = append(rows, fmt.Sprintf("%s:%d/%d", r.id, r.tries, r.attempts))
	}
	return strings.Join(rows, " ")
}

// Five messages die between two acceptances. Answers count in the order of a call's messages: an acceptance in the same call spares none
// of those before it.
func TestLaneDeathBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			errs := map[string]error{}
			for _, id := range []string{"a1", "b1", "c1", "d1", "e1", "f1", "g1"} {
				errs[id] = fmt.Errorf("400: %w", sinks.ErrPermanent)
			}
			return fail(batch, errs)
		})
		b.run()
		b.arrive("y1", "a1", "b1", "c1", "d1", "e1", "f1", "z1")
		synctest.Wait()
		check(t, "outcomes", b.gotRows(),
			"y1:delivered#1 a1:dead#1 b1:dead#1 c1:dead#1 d1:dead#1 e1:dead#1 f1:failed#1 z1:delivered#1 ")
		check(t, "f1 is parked, and no attempt was used", b.parked(), "a1:1/1 b1:1/1 c1:1/1 d1:1/1 e1:1/1 f1:1/0")
		time.Sleep(10 * time.Second)
		b.stop()
		if rows := b.gotRows(); !strings.HasSuffix(rows, "z1:delivered#1 f1:dead#2 ") {
			t.Errorf("z1 was accepted, so f1 may die at its next try: %s", rows)
		}
	})
}

// The budget counts messages: an aggregate with many events does not lose them all.
func TestLaneDeathBudgetCountsMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return everyMessage(batch, sinks.ErrPermanent)
		})
		b.run()
		b.arrive("a1", "a2", "a3", "a4", "a5", "a6", "a7")
		time.Sleep(time.Minute)
		b.stop()
		rows := b.gotRows()
		if !strings.HasPrefix(rows, "a1:dead#1 a2:dead#1 a3:dead#1 a4:dead#1 a5:dead#1 a6:failed#1 a6:failed#2 ") || strings.Count(rows, "dead") != deathBudget {
			t.Errorf("outcomes: %s", rows)
		}
	})
}

// An outage makes no dead letters, however long it lasts: a message is not given up for its age while the breaker is not closed.
func TestLaneOutageGivesNothingUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			if n <= 2 { // the second call is a probe
				return everyMessage(batch, sinks.ErrUnavailable)
			}
			return everyMessage(batch, errRefused)
		})
		b.opensAtOnce()
		b.delivery.GiveUpAfter, b.delivery.MaxRetries = 30*time.Second, 100
		b.run()
		b.arrive("a1")
		time.Sleep(10 * time.Minute)
		b.stop()
		check(t, "outcomes", b.gotRows(), "a1:failed#1 a1:failed#2 a1:failed#3 a1:dead#4 ")
	})
}

// While a sink is suspect, refusals use attempts as ever. A message without attempts left goes on to be tried.
func TestLaneSuspectUsesAttempts(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, 10 * time.Second} { // park_after; 0 stands for never
		synctest.Test(t, func(t *testing.T) {
			b := newParkingLane(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
				return everyMessage(batch, errRefused)
			})
			b.delivery.ParkAfter, b.delivery.MaxRetries = after, 1
			b.exhaust()
			b.run()
			b.arrive("a1")
			time.Sleep(3 * time.Minute)
			b.stop()
			if len(b.calls) < 4 || strings.Contains(b.gotRows(), "dead") {
				t.Errorf("park_after %s: %s", after, b.gotRows())
			}
			check(t, "parked", b.parked(), fmt.Sprintf("a1:%d/1", len(b.calls)))
		})
	}
}

// Due rows of a suspect sink are tried at its rate, at most ten in one call and 50 in any second. What arrives does not wait for them.
func TestLaneSuspectPacesDueRows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		arrived := map[string]time.Time{}
		var old []time.Time
		tried := 0 // for the first time
		var late []string
		b := newParkingLane(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			mu.Lock()
			defer mu.Unlock()
			inCall := 0
			for _, m := range batch {
				switch {
				case m.Attempt > 1:
					old = append(old, time.Now())
					inCall++
				case time.Since(arrived[m.Event.ID]) > 20*time.Millisecond:
					late = append(late, m.Event.ID)
				default:
					tried++
				}
			}
			if inCall > suspectCall {
				t.Errorf("%d due rows in one call", inCall)
			}
			return everyMessage(batch, errRefused)
		})
		b.delivery.Retry = Retry{Initial: time.Second, Max: time.Second}
		b.exhaust()
		b.run()
		time.Sleep(time.Second)
		send := func(first, last byte) { // one event of each of these aggregates
			mu.Lock()
			defer mu.Unlock()
			var ids []string
			for c := first; c <= last; c++ {
				id := string(rune(c)) + "1"
				arrived[id] = time.Now()
				ids = append(ids, id)
			}
			b.arrive(ids...)
		}
		const first, last = '!', 'p' // 80 aggregates, which are always due again after a second
		send(first, last)
		began := time.Now()
		for c := byte(last + 1); c <= '~'; c++ {
			time.Sleep(1300 * time.Millisecond)
			send(c, c)
		}
		took := time.Since(began).Seconds()
		b.stop()
		inSecond := 0
		for i, from := 0, 0; i < len(old); i++ {
			for old[i].Sub(old[from]) >= time.Second {
				from++
			}
			inSecond = max(inSecond, i-from+1)
		}
		if inSecond > 50 {
			t.Errorf("%d due rows were tried in one second", inSecond)
		}
		if n := float64(len(old)); n > suspectRate*(took+1) || n < suspectRate*(took-3) {
			t.Errorf("%d due rows were tried in %.0f s, want %d a second", len(old), took, suspectRate)
		}
		if late != nil || tried != len(arrived) {
			t.Errorf("%d of %d were tried at once; these waited for due rows: %v", tried, len(arrived), late)
		}
	})
}

// A probe of a suspect sink does not wait for its turn, but the turn that comes next waits the longer.
func TestLaneSuspectProbes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			if n == 1 {
				return everyMessage(batch, sinks.ErrUnavailable)
			}
			return everyMessage(batch, errRefused)
		})
		b.opensAtOnce()
		b.exhaust()
		b.budget.count(100*suspectRate, time.Now()) // others have taken the turns of 100 s
		b.run()
		b.arrive("a1")
		time.Sleep(70 * time.Second)
		check(t, "a probe after the reset time", b.gotCalls(), "[a1]@0s [a1]@1m0s ")
		if wait := time.Until(b.budget.dueAt()); wait != 30*time.Second+time.Second/suspectRate {
			t.Errorf("the next turn comes in %s", wait)
		}
		time.Sleep(31 * time.Second)
		b.stop()
		check(t, "the next turn", b.gotCalls(), "[a1]@0s [a1]@1m0s [a1]@1m40s ")
	})
}

// A due row that may die does not hold a lane up: when the sink accepts something, its turn comes at once.
func TestLaneSuspicionEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			if n == 1 {
				return everyMessage(batch, errRefused)
			}
			return nil
		})
		b.exhaust()
		b.budget.attach([]*lane{b.lane})
		b.budget.count(100*suspectRate, time.Now()) // others have taken the turns of 100 s
		b.run()
		b.arrive("a1")
		time.Sleep(5 * time.Second)
		check(t, "a1 waits for its turn", b.gotCalls(), "[a1]@0s ")
		b.arrive("b1")
		time.Sleep(time.Second)
		check(t, "b1 was accepted, so a1 need not wait", b.gotCalls(), "[a1]@0s [b1]@5s [a1]@5s ")
		b.stop()
	})
}

// A message whose topic is away is tried again every 30 s at the latest. It uses no attempt, and stops neither other messages nor the sink.
func TestLaneTopicAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return fail(batch, map[string]error{"a1": fmt.Errorf("404: %w", sinks.ErrTopicUnavailable)})
		})
		b.delivery.MaxRetries, b.delivery.Retry = 0, Retry{Initial: time.Second, Max: time.Hour}
		b.breaker.cfg.Enabled, b.breaker.cfg.MaxFailures = true, 2
		b.run()
		for range 60 {
			b.arrive("a1", "a2", "b1")
			time.Sleep(10 * time.Second)
		}
		b.stop()
		var last, longest time.Duration
		tries, others := 0, 0
		for _, c := range b.calls {
			if slices.Contains(c.ids, "a2") && c.ids[0] != "a1" {
				t.Errorf("a2 was delivered without a1: %v", c)
			}
			if slices.Contains(c.ids, "b1") {
				others++
			}
			if c.ids[0] == "a1" {
				tries++
				longest = max(longest, c.at-last)
				last = c.at
			}
		}
		if longest > topicPace+catchUpPace || tries < 20 || others != 60 {
			t.Errorf("tried %d times, after %s at most; %d of 60 others were delivered", tries, longest, others)
		}
		if !strings.HasPrefix(b.parked(), fmt.Sprintf("a1:%d/0 a2:0/0 ", tries)) {
			t.Errorf("parked: %s", b.parked())
		}
	})
}

// A message that the sink puts off is no try. It is due when the sink says, and holds its aggregate until then.
func TestLanePutOff(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, 10 * time.Second} { // park_after; 0 stands for never
		synctest.Test(t, func(t *testing.T) {
			b := newParkingLane(t, nil)
			b.sink = fakeSink(func(_ context.Context, batch []sinks.Message) []error {
				b.calls = append(b.calls, delivered{at: time.Since(b.start), ids: []string{batch[0].Event.ID}})
				if wait := time.Until(b.start.Add(20 * time.Second)); wait > 0 && len(b.calls) < 1000 {
					return fail(batch, map[string]error{"a1": sinks.PutOff(wait)})
				}
				return nil
			})
			b.delivery.ParkAfter = after
			b.run()
			b.arrive("a1", "b1")
			time.Sleep(5 * time.Second)
			b.arrive("a2")
			time.Sleep(5 * time.Second)
			if after > 0 {
				check(t, "parked", b.parked(), "a1:0/0 a2:0/0")
			}
			time.Sleep(20 * time.Second)
			b.stop()
			check(t, "outcomes", b.gotRows(), "b1:delivered#1 a1:delivered#1 a2:delivered#1 ")
			if calls := b.gotCalls(); !strings.HasPrefix(calls, "[a1]@0s [a1]@20s ") {
				t.Errorf("park_after %s: calls %s", after, calls)
			}
		})
	}
}

// A call has fresh rows or due ones, not both: many that are due and never answered must not take the time that fresh ones need.
func TestLaneNeverMixesFreshAndDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(context.Context, int, []sinks.Message) []error { return nil })
		b.leftBehind("a1", "b1", "c1")
		b.run()
		time.Sleep(time.Second)
		b.stop()
		check(t, "calls", b.gotCalls(), "[b1 c1]@0s [a1]@0s ")
	})
}

// What is left out because its aggregate is held makes no place for rows of the other kind.
func TestLaneNeverMixesBehindAFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newParkingLane(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			if n == 1 {
				return fail(batch, map[string]error{"b1": sinks.ErrPermanent})
			}
			return nil
		})
		b.delivery.BatchSize = 2
		b.leftBehind("a1", "b1", "c1", "b2", "d1")
		b.run()
		time.Sleep(time.Second)
		b.stop()
		check(t, "calls", b.gotCalls(), "[b1 c1]@0s [d1]@0s [a1]@0s [b2]@0s ")
	})
}

// A person wants the sink asked: what the lane tries again in place does not wait for its time.
func TestLaneTriesAgainAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			if n == 1 {
				return fail(batch, map[string]error{"a1": errors.New("refused")})
			}
			return make([]error, len(batch))
		})
		b.delivery.Retry = Retry{Initial: time.Hour, Max: time.Hour}
		b.run()
		b.arrive("a1", "a2")
		time.Sleep(5 * time.Second)
		b.ask(askReread | askRetry)
		time.Sleep(time.Second)
		b.stop()
		check(t, "calls", b.gotCalls(), "[a1 a2]@0s [a1 a2]@5s ")
	})
}
