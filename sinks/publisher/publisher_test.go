package publisher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// custom is a publisher such as a user might write.
type custom struct {
	mu      sync.Mutex
	got     []sinktest.Received
	answers func(context.Context, *outbox.OutboxEntry) error
	closed  bool
}

func (c *custom) GetName() string { return "custom_publisher" }

func (c *custom) Close() error {
	c.closed = true
	return nil
}

func (c *custom) Publish(ctx context.Context, e *outbox.OutboxEntry) error {
	if c.answers != nil {
		if err := c.answers(ctx, e); err != nil {
			return err
		}
	}
	columns := map[string]string{}
	for name, value := range map[string]string{"tenant_id": e.TenantID, "correlation_id": e.CorrelationID, "causation_id": e.CausationID} {
		if value != "" {
			columns[name] = value
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, sinktest.Received{ID: e.ID, Payload: bytes.Clone(e.Payload), Columns: columns})
	return nil
}

func (c *custom) received() []sinktest.Received {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(testing.TB) *sinktest.Harness {
		var topics sinks.Away[string]
		var isBack atomic.Bool
		c := &custom{answers: func(_ context.Context, e *outbox.OutboxEntry) error {
			switch e.EventType {
			case "refuse":
				return errors.New("500")
			case "never":
				return sinks.ErrPermanent
			case "other queue":
				now := time.Now()
				if wait := topics.Wait(e.EventType, now); wait > 0 {
					return sinks.PutOff(wait)
				}
				if !isBack.Load() {
					topics.Found(e.EventType, now)
					return fmt.Errorf("no such queue: %w", sinks.ErrTopicUnavailable)
				}
				topics.Answered(e.EventType)
			}
			return nil
		}}
		return &sinktest.Harness{
			Sink: New(c), Received: c.received, Topic: "none",
			Refuse: func(m *sinks.Message) { m.Event.EventType = "refuse" }, Permanent: func(m *sinks.Message) { m.Event.EventType = "never" },
			TopicAway: func(m *sinks.Message) func() {
				m.Topic, m.Event.EventType = "other", "other queue"
				return func() { isBack.Store(true) }
			},
		}
	})
}

func message(aggregate, id string) sinks.Message {
	return sinks.Message{Event: &outbox.Event{ID: id, AggregateType: "t", AggregateID: aggregate}, Attempt: 1}
}

// If a Publish does not end in time, further messages of its aggregate wait until it has ended. Other aggregates go on.
func TestPublishOutlivesItsDeliver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &custom{answers: func(_ context.Context, e *outbox.OutboxEntry) error {
			if e.ID == "a1" {
				time.Sleep(time.Minute) // and does not look at ctx
			}
			return nil
		}}
		s := New(c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		errs := s.Deliver(ctx, []sinks.Message{message("b", "b1"), message("a", "a1"), message("a", "a2")})
		if len(errs) != 3 || errs[0] != nil || !errors.Is(errs[1], sinks.ErrUnavailable) || !errors.Is(errs[2], sinks.ErrNotAttempted) {
			t.Fatalf("%v", errs)
		}
		errs = s.Deliver(t.Context(), []sinks.Message{message("a", "a2"), message("c", "c1")})
		if len(errs) != 2 || !errors.Is(errs[0], sinks.ErrUnavailable) || errs[1] != nil {
			t.Errorf("while it runs: %v", errs)
		}
		time.Sleep(time.Minute)
		if errs := s.Deliver(t.Context(), []sinks.Message{message("a", "a2")}); errs != nil {
			t.Errorf("after it: %v", errs)
		}
		var ids []string
		for _, r := range c.received() {
			ids = append(ids, r.ID)
		}
		if got := strings.Join(ids, " "); got != "b1 c1 a1 a2" {
			t.Errorf("published %s", got)
		}
	})
}

// What a slow Publisher has no time for was not attempted. If nothing has answered, the destination is away.
func TestNoTimeToPublish(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		slow  string // the event whose Publish takes all the time
		wants []error
	}{
		{"b1", []error{nil, sinks.ErrUnavailable, sinks.ErrNotAttempted, sinks.ErrNotAttempted}},
		{"a1", []error{sinks.ErrUnavailable, sinks.ErrUnavailable, sinks.ErrUnavailable, sinks.ErrNotAttempted}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(&custom{answers: func(ctx context.Context, e *outbox.OutboxEntry) error {
				if e.ID == test.slow {
					<-ctx.Done()
					return fmt.Errorf("%w: %w", sinks.ErrUnavailable, ctx.Err())
				}
				return nil
			}})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			errs := s.Deliver(ctx, []sinks.Message{message("a", "a1"), message("b", "b1"), message("c", "c1"), message("c", "c2")})
			for i, want := range test.wants {
				if !errors.Is(errs[i], want) {
					t.Errorf("%s is slow, message %d: want %v, got %v", test.slow, i, want, errs[i])
				}
			}
		})
	}
}

func TestPanicIsARefusal(t *testing.T) {
	t.Parallel()
	s := New(&custom{answers: func(context.Context, *outbox.OutboxEntry) error { panic("canary") }})
	errs := s.Deliver(t.Context(), []sinks.Message{message("a", "a1")})
	if len(errs) != 1 || errs[0] == nil || strings.Contains(errs[0].Error(), "canary") || errors.Is(errs[0], sinks.ErrUnavailable) {
		t.Errorf("%v", errs)
	}
}

// If Publish ends its goroutine (as t.FailNow does in a test), the message is refused, and nobody waits for it.
func TestGoexitIsARefusal(t *testing.T) {
	t.Parallel()
	s := New(&custom{answers: func(_ context.Context, e *outbox.OutboxEntry) error {
		if e.ID == "a1" {
			runtime.Goexit()
		}
		return nil
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	errs := s.Deliver(ctx, []sinks.Message{message("a", "a1"), message("b", "b1")})
	if len(errs) != 2 || errs[0] == nil || errors.Is(errs[0], sinks.ErrUnavailable) || errs[1] != nil {
		t.Fatalf("%v", errs)
	}
	if errs := s.Deliver(ctx, []sinks.Message{message("a", "a2")}); errs != nil {
		t.Errorf("its aggregate: %v", errs)
	}
}

// An error of a Publisher belongs to one class, whatever it wraps. Without a time, it never belongs to sinks.ErrNotAttempted. Such a
// message would be tried again for ever, without a row in the ledger.
func TestErrorsAreOfOneClass(t *testing.T) {
	t.Parallel()
	special := &net.DNSError{Err: "special"}
	for _, test := range []struct {
		err  error
		want error // nil: refused
	}{
		{special, nil},
		{sinks.ErrNotAttempted, nil},
		{errors.Join(special, sinks.ErrNotAttempted, sinks.ErrUnavailable), sinks.ErrUnavailable},
		{errors.Join(sinks.ErrUnavailable, sinks.ErrPermanent), sinks.ErrPermanent},
		{errors.Join(sinks.ErrUnavailable, sinks.ErrTopicUnavailable), sinks.ErrTopicUnavailable},
		{errors.Join(sinks.ErrTopicUnavailable, sinks.ErrPermanent), sinks.ErrPermanent},
		{errors.Join(special, sinks.ErrTopicUnavailable, sinks.PutOff(time.Second)), sinks.ErrNotAttempted},
		{sinks.After(time.Second, special), nil},
	} {
		s := New(&custom{answers: func(context.Context, *outbox.OutboxEntry) error { return test.err }})
		errs := s.Deliver(t.Context(), []sinks.Message{message("a", "a1")})
		if len(errs) != 1 || errs[0] == nil {
			t.Fatalf("%v: %v", test.err, errs)
		}
		for _, class := range classes {
			if errors.Is(errs[0], class) != errors.Is(test.want, class) {
				t.Errorf("%v: %v", test.err, errs[0])
			}
		}
		if got, want := sinks.RetryAfter(errs[0]), sinks.RetryAfter(test.err); got != want {
			t.Errorf("%v: after %s, want %s", test.err, got, want)
		}
		var dns *net.DNSError
		if errors.As(test.err, &dns) && !errors.As(errs[0], &dns) {
			t.Errorf("%v: what it wraps is gone", test.err)
		}
	}
}

// The entry belongs to the Publisher, which may change it, and may keep it after its context has ended.
func TestEntryIsACopy(t *testing.T) {
	t.Parallel()
	m := message("a", "a1")
	m.Event.Payload = []byte("payload")
	s := New(&custom{answers: func(_ context.Context, e *outbox.OutboxEntry) error {
		e.Payload[0] = '#'
		return nil
	}})
	if errs := s.Deliver(t.Context(), []sinks.Message{m}); errs != nil || string(m.Event.Payload) != "payload" {
		t.Errorf("%v, payload %s", errs, m.Event.Payload)
	}
}

func TestEntry(t *testing.T) {
	t.Parallel()
	created := time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC)
	e := &outbox.Event{
		ID: "1", AggregateType: "order", AggregateID: "42", EventType: "paid", EventVersion: 2, Payload: []byte(`{"a": 1}`),
		Metadata: []byte(`{"n": 12345678901234567890, "s": "x"}`), CreatedAt: created, TenantID: "acme", CorrelationID: "c1", CausationID: "c0",
	}
	want := &outbox.OutboxEntry{
		ID: "1", AggregateType: "order", AggregateID: "42", EventType: "paid", EventVersion: 2, Payload: json.RawMessage(`{"a": 1}`),
		Metadata: map[string]any{"n": json.Number("12345678901234567890"), "s": "x"}, CreatedAt: created,
		TenantID: "acme", CorrelationID: "c1", CausationID: "c0", RetryCount: 3,
	}
	if diff := cmp.Diff(want, entryOf(&sinks.Message{Event: e, Attempt: 4})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, metadata := range []string{"", "[1]", "text", "null"} {
		if got := entryOf(&sinks.Message{Event: &outbox.Event{Metadata: []byte(metadata)}}); got.Metadata != nil || got.RetryCount != 0 {
			t.Errorf("metadata %q: %v", metadata, got.Metadata)
		}
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	c := &custom{}
	if err := New(c).Close(); err != nil || !c.closed {
		t.Errorf("closed %t: %v", c.closed, err)
	}
}
