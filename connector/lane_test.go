package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// fakeSink is a sink whose answers the test gives.
type fakeSink func(ctx context.Context, batch []sinks.Message) []error

func (f fakeSink) Deliver(ctx context.Context, batch []sinks.Message) []error { return f(ctx, batch) }
func (f fakeSink) Close() error                                               { return nil }

// delivered is one Deliver call that the sink of a test received.
type delivered struct {
	at  time.Duration
	ids []string
}

// laneBench runs one lane in a bubble. Its recorder confirms each batch at once, unless held is set.
type laneBench struct {
	*lane
	arrived  int64
	ledger   *memLedger
	t        *testing.T
	start    time.Time
	outcomes chan checkpoint.Outcomes
	work     context.Context //nolint:containedctx // the test's own, ended by end
	deliver  context.Context //nolint:containedctx // likewise; work, if a test sets no other
	end      context.CancelFunc
	stopped  chan error

	mu    sync.Mutex
	calls []delivered
	rows  []checkpoint.Outcome
	held  bool

	configured bool
}

func newLaneBench(t *testing.T, answer func(ctx context.Context, n int, batch []sinks.Message) []error) *laneBench {
	b := &laneBench{t: t, start: time.Now(), outcomes: make(chan checkpoint.Outcomes, 100), stopped: make(chan error, 1)}
	b.work, b.end = context.WithCancel(t.Context())
	b.deliver = b.work
	sink := fakeSink(func(ctx context.Context, batch []sinks.Message) []error {
		b.mu.Lock()
		c := delivered{at: time.Since(b.start)}
		for _, m := range batch {
			c.ids = append(c.ids, m.Event.ID)
		}
		b.calls = append(b.calls, c)
		n := len(b.calls)
		b.mu.Unlock()
		return answer(ctx, n, batch)
	})
	logger := slog.New(slog.DiscardHandler)
	b.ledger = &memLedger{}
	to := &sharedSink{
		sink: sink, name: "s", id: 1, policy: retryInPlace, logger: logger, fast: func() bool { return false }, measures: newLaneMeasures(monitoring.NewMetrics("", nil), "s"), objective: newSinkResults(Objective{}), paused: new(atomic.Bool),
		state:   newSinkState(observedSink{name: "s", inPlace: true, health: &monitoring.Health{}, logger: logger}),
		breaker: newBreaker(breakerOwner{name: "s", never: true, logger: logger, changed: func(breakerState, time.Time) {}}, BreakerConfig{ResetTimeout: time.Minute}),
		budget:  newBudget(func(bool) {}), lease: lastingLease(),
		delivery: DeliveryConfig{
			BatchSize: 3, Timeout: 30 * time.Second, MaxRetries: 2, Retry: Retry{Initial: time.Second, Max: time.Minute},
		},
	}
	b.lane = newLane(to, 0, rowSource{parked: b.ledger.table(1, 0, 1), address: ofTestEvent}, b.outcomes)
	b.breaker.attach([]*lane{b.lane})
	return b
}

// configure makes the lane go by a configuration that the test has changed. run does that; a test that starts further lanes of the sink does
// it before.
func (b *laneBench) configure() {
	if b.configured {
		return
	}
	b.configured = true
	b.policy = b.delivery.policyFor(Sink{OneTry: b.policy == discardFailed})
	b.lane.rules = b.sharedSink.rules()
}

func (b *laneBench) run() {
	b.configure()
	go func() { b.stopped <- b.lane.run(b.work, b.deliver) }()
	go func() {
		for o := range b.outcomes {
			b.mu.Lock()
			for _, r := range o.Rows {
				if r.Status != checkpoint.Parked {
					b.rows = append(b.rows, r)
				}
			}
			b.ledger.apply(o.Rows)
			held := b.held
			b.mu.Unlock()
			if !held && o.Recorded != nil {
				o.Recorded <- o.Seq
			}
		}
	}()
}

// stop ends first the lane, as the end of a session does, and then the recorder.
func (b *laneBench) stop() {
	close(b.in)
	if err := <-b.stopped; err != nil {
		b.t.Errorf("lane ended with %v", err)
	}
	close(b.outcomes)
	b.end()
	synctest.Wait()
}

// arrive sends events to the lane. The first letter of an id is the aggregate: "a1", "a2", "b1".
func (b *laneBench) arrive(ids ...string) {
	var ds []*delivery
	for i, id := range ids {
		d := &delivery{entry: uint64(i)}
		d.hash = int64(id[0])
		d.Message = sinks.Message{Event: &outbox.Event{ID: id, AggregateType: "t", AggregateID: id[:1], EventType: "e"}, Key: id[:1], LSN: 1, Index: b.arrived}
		b.arrived++
		ds = append(ds, d)
	}
	b.in <- handed{ds, time.Now()}
}

func (b *laneBench) gotCalls() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := ""
	for _, c := range b.calls {
		s += fmt.Sprintf("%v@%s ", c.ids, c.at.Round(time.Second))
	}
	return s
}

func (b *laneBench) gotRows() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := ""
	for _, r := range b.rows {
		s += fmt.Sprintf("%s:%s#%d ", r.EventID, r.Status, r.Attempt)
	}
	return s
}

func check(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

// fail returns the errors of errs for the messages with these ids, and ErrNotAttempted for later messages of the same key, as the contract of
// sinks demands.
func fail(batch []sinks.Message, errs map[string]error) []error {
	out := make([]error, len(batch))
	behind := map[string]bool{}
	for i, m := range batch {
		switch err := errs[m.Event.ID]; {
		case behind[m.Key]:
			out[i] = sinks.ErrNotAttempted
		case err != nil:
			out[i] = err
			behind[m.Key] = true
		}
	}
	if slices.IndexFunc(out, func(err error) bool { return err != nil }) < 0 {
		return nil
	}
	return out
}

var errRefused = errors.New("500")

// A refused message is tried again in place. No later message of the lane overtakes it, whatever its aggregate.
func TestLaneTriesAgainInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			if n <= 2 {
				return fail(batch, map[string]error{"a1": errRefused})
			}
			return nil
		})
		b.run()
		b.arrive("a1", "b1", "a2", "c1", "a3")
		time.Sleep(20 * time.Second)
		b.stop()
		ids := ""
		for _, c := range b.calls {
			ids += fmt.Sprint(c.ids)
		}
		check(t, "calls", ids, "[a1 b1 a2][a1 a2][a1 a2][c1 a3]")
		check(t, "outcomes", b.gotRows(), "a1:failed#1 b1:delivered#1 a1:failed#2 a1:delivered#3 a2:delivered#1 c1:delivered#1 a3:delivered#1 ")
		if first, second := b.calls[1].at, b.calls[2].at-b.calls[1].at; first < time.Second/2 || first > 3*time.Second/2 || second < time.Second || second > 3*time.Second {
			t.Errorf("tried again after %s and %s, want 1s and 2s, give or take a half", first, second)
		}
	})
}

// A message that fails permanently, or has used up its retries, is dead. The next message of its aggregate is delivered at once.
func TestLaneDeadLetters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		permanent := fmt.Errorf("too large: %w", sinks.ErrPermanent)
		b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return fail(batch, map[string]error{"a1": permanent, "b1": errRefused})
		})
		b.run()
		b.arrive("a1", "a2")
		time.Sleep(time.Millisecond)
		check(t, "calls", b.gotCalls(), "[a1 a2]@0s [a2]@0s ")
		b.arrive("b1", "b2")
		time.Sleep(time.Minute)
		b.stop()
		check(t, "outcomes", b.gotRows(), "a1:dead#1 a2:delivered#1 b1:failed#1 b1:failed#2 b1:dead#3 b2:delivered#1 ")
		for _, r := range b.rows {
			if dead := r.Parked; r.Status == checkpoint.Dead && (r.Row != checkpoint.RowInsert || dead.Tries != r.Attempt || string(dead.Event) == "") {
				t.Errorf("%s: dead letter %+v", r.EventID, dead)
			}
		}
	})
}

func TestLaneRowsOwnRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return fail(batch, map[string]error{"a1": errRefused})
		})
		b.run()
		none := 0
		d := &delivery{Message: sinks.Message{Event: &outbox.Event{ID: "a1", AggregateID: "a", MaxRetries: &none}, Key: "a"}}
		b.in <- handed{[]*delivery{d}, time.Now()}
		time.Sleep(time.Minute)
		b.stop()
		check(t, "outcomes", b.gotRows(), "a1:dead#1 ")
	})
}

// An outage uses up no attempt, however long it takes.
func TestLaneOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := fmt.Errorf("dial: %w", sinks.ErrUnavailable)
		var back time.Time
		b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			if time.Now().Before(back) {
				return fail(batch, map[string]error{"a1": away})
			}
			return nil
		})
		back = b.start.Add(24 * time.Hour)
		b.run()
		b.arrive("a1")
		time.Sleep(25 * time.Hour)
		b.stop()
		last := b.rows[len(b.rows)-1]
		if last.Status != checkpoint.Delivered {
			t.Errorf("after an outage of a day: %s", last.Status)
		}
		if n := len(b.rows); n < 24*60*6 || n > 24*60*6*2 {
			t.Errorf("%d tries in a day, want one every ten seconds or a little more", n)
		}
	})
}

// While the destination is away, the lane tries only one message: each try of each message would be a row in the ledger.
func TestLaneAsksWithOneMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := fmt.Errorf("dial: %w", sinks.ErrUnavailable)
		b := newLaneBench(t, func(_ context.Context, n int, batch []sinks.Message) []error {
			if n <= 2 {
				return fail(batch, map[string]error{"a1": away, "b1": away, "c1": away})
			}
			return nil
		})
		b.run()
		b.arrive("a1", "b1", "c1", "d1")
		time.Sleep(time.Minute)
		b.stop()
		ids := ""
		for _, c := range b.calls {
			ids += fmt.Sprint(c.ids)
		}
		check(t, "calls", ids, "[a1 b1 c1][a1][a1][b1 c1][d1]")
		check(t, "outcomes", b.gotRows(),
			"a1:failed#1 b1:failed#1 c1:failed#1 a1:failed#2 a1:delivered#3 b1:delivered#2 c1:delivered#2 d1:delivered#1 ")
	})
}

// After the session has ended its Deliver calls, a lane starts no other one. The sink is not blamed for the calls that were ended.
func TestLaneAfterTheEndOfDeliveries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(ctx context.Context, _ int, batch []sinks.Message) []error {
			<-ctx.Done()
			return fail(batch, map[string]error{"a1": fmt.Errorf("%w: %w", ctx.Err(), sinks.ErrUnavailable)})
		})
		var health monitoring.Health
		b.state = newSinkState(observedSink{name: "s", inPlace: true, health: &health, logger: slog.New(slog.DiscardHandler)})
		b.state.begin(1)
		deliver, end := context.WithCancel(b.work)
		go func() { b.stopped <- b.lane.run(b.work, deliver) }()
		b.arrive("a1", "b1")
		time.Sleep(time.Second)
		end()
		time.Sleep(time.Hour)
		check(t, "calls", b.gotCalls(), "[a1 b1]@0s ")
		if report := health.Report(); !report.Ready {
			t.Errorf("the sink is blamed: %+v", report)
		}
		b.stop()
	})
}

// A lane starts no ninth batch before the first one is recorded. This bounds what is delivered twice after a crash.
func TestLaneWaitsForTheRecorder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		b.held = true
		b.run()
		for i := range 50 {
			b.arrive(fmt.Sprintf("a%d", i))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Hour)
		if got := len(b.calls); got != maxUnrecorded {
			t.Errorf("%d batches were delivered and none recorded, want %d", got, maxUnrecorded)
		}
		b.mu.Lock()
		b.held = false
		b.mu.Unlock()
		b.recorder.recorded <- 8
		time.Sleep(time.Second)
		b.stop()
		if got := len(b.rows); got != 50 {
			t.Errorf("%d outcomes, want 50", got)
		}
	})
}

// When its channel is closed, a lane waits for its Deliver call and gives the outcomes to the recorder. It does not deliver what is queued: the
// slot sends that again.
func TestLaneDrains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error {
			time.Sleep(7 * time.Second)
			return nil
		})
		b.run()
		b.arrive("a1", "a2", "a3", "a4")
		time.Sleep(time.Second)
		b.stop()
		if took := time.Since(b.start); took != 7*time.Second {
			t.Errorf("drained after %s, want 7s: when the sink has answered", took)
		}
		check(t, "outcomes", b.gotRows(), "a1:delivered#1 a2:delivered#1 a3:delivered#1 ")
	})
}

// A Deliver call without an answer ends at delivery.timeout, and its message is tried again.
func TestLaneDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(ctx context.Context, n int, batch []sinks.Message) []error {
			if n > 1 {
				return nil
			}
			<-ctx.Done()
			return fail(batch, map[string]error{"a1": fmt.Errorf("%w: %w", context.Cause(ctx), sinks.ErrUnavailable)})
		})
		b.run()
		b.arrive("a1")
		time.Sleep(time.Hour)
		b.stop()
		check(t, "outcomes", b.gotRows(), "a1:failed#1 a1:delivered#2 ")
		check(t, "error", b.rows[0].Error, "no answer within delivery.timeout 30s: unavailable")
		if d := b.rows[0].CompletedAt.Sub(b.rows[0].StartedAt); d != 30*time.Second {
			t.Errorf("the try took %s, want 30s", d)
		}
	})
}

func TestLaneCountsResults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return make([]error, 7) })
		b.run()
		b.arrive("a1")
		if err := <-b.stopped; err == nil {
			t.Error("a sink returned seven results for one message, and the lane did not fail")
		}
		close(b.outcomes)
		b.end()
		synctest.Wait()
	})
}

// While a sink is paused, arrivals are parked, also under park_after: never. The lane parks what it has queued before them, because the settled
// events of an aggregate are always a prefix of it.
func TestLanePausedParksWhatItHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			time.Sleep(time.Second)
			away := fmt.Errorf("dial: %w", sinks.ErrUnavailable)
			return fail(batch, map[string]error{"a1": away, "b1": away})
		})
		b.run()
		time.Sleep(time.Second)
		b.arrive("a1", "b1")
		time.Sleep(time.Millisecond)
		b.ask(askReread)            // it will catch up as soon as it can; arrivals wait until then
		time.Sleep(3 * time.Second) // a1 alone is being delivered again
		b.arrive("a2", "b2")
		b.paused.Store(true)
		b.ask(0)
		time.Sleep(time.Minute)
		b.stop()
		check(t, "calls", b.gotCalls(), "[a1 b1]@1s [a1]@3s ")
		ids := ""
		for _, r := range b.ledger.rows {
			ids += r.id + " "
		}
		check(t, "parked", ids, "a1 b1 a2 b2 ")
	})
}

// When a lane has ended, its Deliver call has ended too, because the sink is closed next. A try that was ended in this way does not make a message
// a dead letter by give_up_after.
func TestLaneEndsItsDeliver(t *testing.T) {
	t.Parallel()
	t.Run("work ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { laneEndsItsDeliver(t, "", func(_ context.CancelFunc) {}) })
	})
	t.Run("deliver ends before work", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			laneEndsItsDeliver(t, "a1:failed#2 ", func(endDeliver context.CancelFunc) {
				endDeliver()
				time.Sleep(time.Second)
			})
		})
	})
}

// laneEndsItsDeliver ends a lane while its second Deliver call for a1 runs. beforeEnd is done before work ends, and outcome is what becomes of
// that call.
func laneEndsItsDeliver(t *testing.T, outcome string, beforeEnd func(endDeliver context.CancelFunc)) {
	t.Helper()
	var delivering atomic.Bool
	b := newLaneBench(t, func(ctx context.Context, n int, batch []sinks.Message) []error {
		if n == 1 {
			return fail(batch, map[string]error{"a1": sinks.ErrUnavailable})
		}
		delivering.Store(true)
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond)
		delivering.Store(false)
		return fail(batch, map[string]error{"a1": sinks.ErrUnavailable})
	})
	b.delivery.GiveUpAfter = time.Millisecond
	deliver, endDeliver := context.WithCancel(b.work)
	defer endDeliver()
	b.deliver = deliver
	b.run()
	b.arrive("a1")
	time.Sleep(10 * time.Second)
	if !delivering.Load() {
		t.Error("a1 has not been tried again within 10 s")
	}
	beforeEnd(endDeliver)
	b.end()
	if err := <-b.stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	check(t, "outcomes", b.gotRows(), "a1:failed#1 "+outcome)
	if delivering.Load() {
		t.Error("the lane has ended, but its Deliver call is still running")
	}
	close(b.outcomes)
}
