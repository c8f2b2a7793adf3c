package eventbus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

func TestBusConformance(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(testing.TB) *sinktest.Harness {
		h := &recordingHandler{}
		b := NewBus(0)
		b.Subscribe("Order*", h.handle)
		mark := func(eventType string) func(*sinks.Message) {
			return func(m *sinks.Message) { m.Event.EventType = eventType }
		}
		return &sinktest.Harness{
			Sink:     struct{ sinks.Sink }{b}, // without Check, which knows nothing of what handlers need
			Received: h.received, Topic: "any", Away: h.goAway, Hang: h.hang,
			Permanent: mark("OrderPoisoned"), Refuse: mark("OrderRefused"),
		}
	})
}

// TestBusCheck: the bus is there until handlers that do not return have taken all its places.
func TestBusCheck(t *testing.T) {
	t.Parallel()
	h := &recordingHandler{}
	b := NewBus(1)
	b.Subscribe("*", h.handle)
	if found, err := b.Check(t.Context(), []string{"a", "b"}); err != nil || len(found) != 2 || found[1].Topic != "b" || found[1].Err != nil {
		t.Errorf("%v, %v", found, err)
	}
	back := h.hang()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	b.Deliver(ctx, []sinks.Message{message("a", "o-1", "1", 1)})
	if _, err := b.Check(t.Context(), nil); !errors.Is(err, errAllBusy) {
		t.Errorf("all places are taken, and Check says: %v", err)
	}
	back()
	eventually(t, "the handler returns", func() error {
		_, err := b.Check(t.Context(), nil)
		return err
	})
}

// recordingHandler accepts, and in the end keeps what it was given.
type recordingHandler struct {
	mu      sync.Mutex
	log     []*sinks.Message
	away    bool
	hanging chan struct{}
}

func (h *recordingHandler) handle(_ context.Context, m *sinks.Message) error {
	h.mu.Lock()
	away, hanging := h.away, h.hanging
	h.mu.Unlock()
	if hanging != nil {
		<-hanging
	}
	switch {
	case away:
		return fmt.Errorf("the database: %w: %s", sinks.ErrUnavailable, m.Event.Payload)
	case m.Event.EventType == "OrderPoisoned":
		return fmt.Errorf("%w: %s", sinks.ErrPermanent, m.Event.Payload)
	case m.Event.EventType == "OrderRefused":
		panic("not today: " + string(m.Event.Payload) + string(m.Event.Metadata))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, m)
	return nil
}

func (h *recordingHandler) goAway() func() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.away = false
	}
}

func (h *recordingHandler) hang() func() {
	h.mu.Lock()
	defer h.mu.Unlock()
	hanging := make(chan struct{})
	h.hanging = hanging
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		close(hanging)
		h.hanging = nil
	}
}

func (h *recordingHandler) received() (all []sinktest.Received) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.log {
		r := sinktest.Received{ID: m.Event.ID, Payload: m.Event.Payload, Columns: map[string]string{
			"tenant_id": m.Event.TenantID, "correlation_id": m.Event.CorrelationID, "causation_id": m.Event.CausationID,
		}}
		maps.DeleteFunc(r.Columns, func(_, v string) bool { return v == "" })
		all = append(all, r)
	}
	return all
}

func ofType(eventType string) []sinks.Message {
	m := message("any", "o-1", "1", 10)
	m.Event.EventType = eventType
	return []sinks.Message{m}
}

func TestPatterns(t *testing.T) {
	t.Parallel()
	for pattern, cases := range map[string]map[string]bool{
		"payment.*":   {"payment.captured": true, "payment.captured.v2": true, "payment.": true, "payment": false, "paymentXcaptured": false, "x.payment.a": false},
		"*":           {"": true, "payment.captured": true, "line\nbreak": true},
		"*.captured":  {"payment.captured": true, "captured": false, "payment.captured.v2": false},
		"order.v?":    {"order.v1": true, "order.vé": true, "order.v": false, "order.v12": false},
		"a*c":         {"abc": true, "ac": true, "abcd": false},
		`[a-z]+(\d)|`: {`[a-z]+(\d)|`: true, "abc1": false, "": false},
		`\*`:          {`\*`: true, `\anything`: true, "*": false},
		"":            {"": true, "a": false},
	} {
		b := NewBus(0)
		b.Subscribe(pattern, nil)
		for eventType, want := range cases {
			if got := len(b.fitting(eventType)) == 1; got != want {
				t.Errorf("pattern %q, event type %q: want %t, got %t", pattern, eventType, want, got)
			}
		}
	}
}

// TestSubscriptions: all that fit are called, in their order, up to the first error; what nobody wants is accepted; and
// subscriptions change at any time.
func TestSubscriptions(t *testing.T) {
	t.Parallel()
	b := NewBus(0)
	var calls []string
	handler := func(name string, err error) func(context.Context, *sinks.Message) error {
		return func(context.Context, *sinks.Message) error {
			calls = append(calls, name)
			return err
		}
	}
	deliver := func(eventType string, want ...string) []error {
		t.Helper()
		calls = nil
		errs := b.Deliver(t.Context(), ofType(eventType))
		if !slices.Equal(calls, want) {
			t.Errorf("%s: want calls of %v, got %v", eventType, want, calls)
		}
		return errs
	}
	accepts := func(eventType string, want ...string) {
		t.Helper()
		if errs := deliver(eventType, want...); errs != nil {
			t.Errorf("%s: %v", eventType, errs)
		}
	}
	accepts("payment.captured")
	b.Subscribe("payment.*", handler("first", nil))
	cancel := b.Subscribe("payment.failed", handler("second", errors.New("no")))
	b.Subscribe("*", handler("third", nil))
	accepts("payment.captured", "first", "third")
	if errs := deliver("payment.failed", "first", "second"); errs == nil {
		t.Error("what a handler refuses is accepted")
	}
	accepts("order.placed", "third")
	cancel()
	cancel()
	accepts("payment.failed", "first", "third")
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

type retryAfter struct{ error }

func TestHandlersErrors(t *testing.T) {
	t.Parallel()
	later := retryAfter{errors.New("later")}
	const payload = "xxxxxxxxxx"
	var none []error
	for name, c := range map[string]struct {
		handler func() error
		class   error // nil: refused
		text    string
	}{
		"refused":     {func() error { return later }, nil, "a handler refused it: later"},
		"permanent":   {func() error { return fmt.Errorf("no: %w", sinks.ErrPermanent) }, sinks.ErrPermanent, "a handler refused it: no: permanently refused"},
		"unavailable": {func() error { return sinks.ErrUnavailable }, sinks.ErrUnavailable, "a handler refused it: unavailable"},
		"topic away": {
			func() error { return fmt.Errorf("ledger: %w", sinks.ErrTopicUnavailable) }, sinks.ErrTopicUnavailable,
			"a handler refused it: ledger: topic unavailable",
		},
		"two classes":      {func() error { return errors.Join(sinks.ErrUnavailable, sinks.ErrPermanent) }, sinks.ErrPermanent, ""},
		"two away":         {func() error { return errors.Join(sinks.ErrUnavailable, sinks.ErrTopicUnavailable) }, sinks.ErrTopicUnavailable, ""},
		"not a handler's":  {func() error { return sinks.ErrNotAttempted }, nil, "a handler refused it: not attempted"},
		"payload":          {func() error { return errors.New("bad " + payload) }, nil, "a handler refused it: bad [left out]"},
		"panic with text":  {func() error { panic("bad " + payload) }, nil, "a handler panicked: bad [left out]"},
		"panic with error": {func() error { panic(fmt.Errorf("bad: %w", sinks.ErrPermanent)) }, nil, "a handler panicked: bad: permanently refused"},
		"panic of Go":      {func() error { return none[1] }, nil, "a handler panicked: runtime error: index out of range [1] with length 0"},
		"panic with data":  {func() error { panic([]byte(payload)) }, nil, "a handler panicked with a []uint8"},
		"panic with nil":   {func() error { panic(nil) }, nil, "a handler panicked: panic called with nil argument"},
		"Goexit":           {func() error { runtime.Goexit(); return nil }, nil, "a handler ended its goroutine (runtime.Goexit)"},
		"long":             {func() error { return errors.New(strings.Repeat("é", 1000)) }, nil, "a handler refused it: " + strings.Repeat("é", maxText/2) + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := NewBus(1)
			cancel := b.Subscribe("*", func(context.Context, *sinks.Message) error { return c.handler() })
			batch := []sinks.Message{message("t", "a", "1", len(payload)), message("t", "a", "2", 10), message("t", "b", "3", 10)}
			errs := b.Deliver(t.Context(), batch)
			if len(errs) != 3 || errs[0] == nil || errs[2] == nil || !errors.Is(errs[1], sinks.ErrNotAttempted) {
				t.Fatalf("got %v", errs)
			}
			if c.text != "" && errs[0].Error() != c.text {
				t.Errorf("want %q, got %q", c.text, errs[0])
			}
			for _, class := range []error{sinks.ErrPermanent, sinks.ErrUnavailable, sinks.ErrTopicUnavailable, sinks.ErrNotAttempted} {
				if got, want := errors.Is(errs[0], class), c.class != nil && errors.Is(c.class, class); got != want {
					t.Errorf("%v: want %t, got %t", class, want, got)
				}
			}
			if as := (retryAfter{}); name == "refused" && !errors.As(errs[0], &as) {
				t.Error("the handler's own error is not to be found")
			}
			cancel()
			if errs := b.Deliver(t.Context(), batch); errs != nil {
				t.Errorf("after that: %v", errs)
			}
		})
	}
}

// TestHangingHandler keeps its aggregate, and one of the places, until it returns.
func TestHangingHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBus(2)
		hang := make(chan struct{})
		var mu sync.Mutex
		var calls []string
		b.Subscribe("*", func(_ context.Context, m *sinks.Message) error {
			mu.Lock()
			calls = append(calls, m.Event.ID)
			mu.Unlock()
			if strings.HasPrefix(m.Event.ID, "hang") {
				<-hang
			}
			return nil
		})
		deliver := func(takes time.Duration, batch ...sinks.Message) []error {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			errs := b.Deliver(ctx, batch)
			if took := time.Since(began); took != takes {
				t.Errorf("want a Deliver of %v, got %v", takes, took)
			}
			return errs
		}
		a := func(id string) sinks.Message { return message("t", "a", id, 10) }
		other := func(id string) sinks.Message { return message("t", "b", id, 10) }

		errs := deliver(time.Second, a("1"), a("hang"), a("3"), other("4"), other("5"))
		if errs[0] != nil || errs[3] != nil || errs[4] != nil || !errors.Is(errs[1], sinks.ErrUnavailable) || !errors.Is(errs[2], sinks.ErrNotAttempted) {
			t.Fatalf("the first: %v", errs)
		}
		errs = deliver(0, a("hang"), a("3"), other("6"))
		if !errors.Is(errs[0], errBusy) || !errors.Is(errs[1], sinks.ErrNotAttempted) || errs[2] != nil {
			t.Fatalf("the second: %v", errs)
		}
		if err := b.Close(); err == nil {
			t.Error("Close reports no handler that is still running")
		}
		errs = deliver(time.Second, message("t", "c", "hang too", 10))
		expectAll(t, errs, 1, sinks.ErrUnavailable)
		errs = deliver(0, other("7"), other("8"))
		if !errors.Is(errs[0], errAllBusy) || !errors.Is(errs[0], sinks.ErrUnavailable) || !errors.Is(errs[1], sinks.ErrNotAttempted) {
			t.Fatalf("with all places taken: %v", errs)
		}
		close(hang)
		synctest.Wait()
		if errs := deliver(0, a("hang"), a("3"), other("7")); errs != nil {
			t.Fatalf("after all: %v", errs)
		}
		want := []string{"1", "3", "4", "5", "6", "7", "hang", "hang", "hang too"}
		slices.Sort(calls)
		if !slices.Equal(calls, want) {
			t.Errorf("want calls of %v, got %v", want, calls)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestConcurrency: as many aggregates at a time as there are places, over all Delivers, and one message of each.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBus(3)
		var mu sync.Mutex
		running, most := map[string]int{}, 0
		b.Subscribe("*", func(_ context.Context, m *sinks.Message) error {
			mu.Lock()
			running[m.Event.AggregateID]++
			most = max(most, len(running))
			if running[m.Event.AggregateID] > 1 {
				t.Errorf("two messages of %s at a time", m.Event.AggregateID)
			}
			mu.Unlock()
			<-time.After(time.Second)
			mu.Lock()
			delete(running, m.Event.AggregateID)
			mu.Unlock()
			return nil
		})
		began := time.Now()
		var lanes sync.WaitGroup
		for lane := range 2 {
			lanes.Go(func() {
				var batch []sinks.Message
				for i := range 12 {
					batch = append(batch, message("t", fmt.Sprint(lane, "-", i%6), fmt.Sprint(i), 10))
				}
				if errs := b.Deliver(t.Context(), batch); errs != nil {
					t.Error(errs)
				}
			})
		}
		lanes.Wait()
		if took := time.Since(began); most != 3 || took != 8*time.Second {
			t.Errorf("24 seconds' work, three at a time: took %v, %d at a time", took, most)
		}
	})
}

// TestNoTimeToCall: messages for which a slow handler leaves no time were not attempted. If nothing was answered, the bus is away.
func TestNoTimeToCall(t *testing.T) {
	t.Parallel()
	for slow, class := range map[string]error{"b": sinks.ErrNotAttempted, "a": sinks.ErrUnavailable} {
		synctest.Test(t, func(t *testing.T) {
			b := NewBus(1)
			b.Subscribe("*", func(ctx context.Context, m *sinks.Message) error {
				if m.Event.AggregateID == slow {
					<-ctx.Done()
					return sinks.ErrUnavailable
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			errs := b.Deliver(ctx, []sinks.Message{
				message("t", "a", "1", 10), message("t", "b", "2", 10), message("t", "c", "3", 10), message("t", "c", "4", 10),
			})
			if len(errs) != 4 || !errors.Is(errs[2], class) || !errors.Is(errs[3], sinks.ErrNotAttempted) {
				t.Errorf("%s is slow: want %v, got %v", slow, class, errs)
			}
			synctest.Wait()
		})
	}
}

// TestHandlerKnowsDeadline: what it says then, in its own words, is no refusal, and it keeps nothing.
func TestHandlerKnowsDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBus(0)
		b.Subscribe("*", func(ctx context.Context, _ *sinks.Message) error {
			<-ctx.Done()
			return fmt.Errorf("my query: %w", ctx.Err())
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		expectAll(t, b.Deliver(ctx, ofType("x")), 1, sinks.ErrUnavailable)
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}
