package composite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// destination is where the sinks of both members deliver to.
type destination struct {
	mu   sync.Mutex
	got  []sinktest.Received
	away bool
	gone string // the topic that is away
}

func (d *destination) accept(m *sinks.Message) {
	e := m.Event
	columns := map[string]string{}
	for name, value := range map[string]string{"tenant_id": e.TenantID, "correlation_id": e.CorrelationID, "causation_id": e.CausationID} {
		if value != "" {
			columns[name] = value
		}
	}
	d.got = append(d.got, sinktest.Received{ID: e.ID, Payload: slices.Clone(e.Payload), Columns: columns})
}

// set changes the destination, and returns a function that changes it back.
func (d *destination) set(to func()) func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	to()
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.away, d.gone = false, ""
	}
}

// end is a sink for several lanes that delivers to a destination. If it is picky, it refuses every third message permanently.
type end struct {
	*destination
	picky  bool
	seen   atomic.Int64
	topics sinks.Away[string]
}

func (s *end) AskNow() { s.topics.AskNow() }

func (s *end) Deliver(ctx context.Context, batch []sinks.Message) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b sinks.Batch
	b.Begin(batch)
	now := time.Now()
	for i := range batch {
		m := &batch[i]
		wait := s.topics.Wait(m.Topic, now)
		switch {
		case ctx.Err() != nil || s.away:
			b.Fail(i, fmt.Errorf("%w: refused to connect", sinks.ErrUnavailable))
		case b.Blocked(i):
			b.Fail(i, nil)
		case wait > 0:
			b.Fail(i, sinks.PutOff(wait))
		case s.gone == m.Topic:
			s.topics.Found(m.Topic, now)
			b.Fail(i, sinks.ErrTopicUnavailable)
		case m.Event.EventType == "never" || s.picky && s.seen.Add(1)%3 == 0:
			b.Fail(i, errPermanent)
		case m.Event.EventType == "not now":
			b.Fail(i, errRefused)
		default:
			s.topics.Answered(m.Topic)
			s.accept(m)
		}
	}
	return b.Errors()
}

func (s *end) Close() error { return nil }

func (s *end) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case s.away:
		return nil, errors.New("refused to connect")
	}
	var found []sinks.TopicCheck
	for _, topic := range topics {
		c := sinks.TopicCheck{Kind: "topic", Topic: topic}
		if topic == s.gone {
			c.Err, c.Remedy = errors.New("it does not exist"), "make "+topic
		}
		found = append(found, c)
	}
	return found, nil
}

// The suite passes, even if the first member is picky. What such a member has not accepted holds later messages back from it, so
// that a message may be refused because not every member was asked.
func TestConformance(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]func() *end{
		"equal members":  func() *end { return &end{} },
		"a picky member": func() *end { return &end{picky: true} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sinktest.Run(t, func(testing.TB) *sinktest.Harness { return harness(first()) })
		})
	}
}

func harness(first *end) *sinktest.Harness {
	d := &destination{}
	first.destination = d
	address := func(e *outbox.Event) (string, string) { return e.EventType, e.AggregateID }
	mark := func(word string) func(*sinks.Message) {
		return func(m *sinks.Message) { m.Event.EventType = word }
	}
	h := &sinktest.Harness{
		Sink: NewAny(
			Member{Name: "first", Sink: first, Address: address},
			Member{Name: "second", Sink: &end{destination: d}, Address: address},
		),
		Topic: "topic",
		Received: func() []sinktest.Received {
			d.mu.Lock()
			defer d.mu.Unlock()
			return slices.Clone(d.got)
		},
		Away: func() func() { return d.set(func() { d.away = true }) },
		TopicAway: func(m *sinks.Message) func() {
			m.Topic, m.Event.EventType = "gone", "gone" // the members' topics come from the event
			return d.set(func() { d.gone = "gone" })
		},
		Refuse: mark("not now"),
		MissingTopic: func() (string, func()) {
			return "gone", d.set(func() { d.gone = "gone" })
		},
	}
	if !first.picky {
		h.Permanent = mark("never")
	}
	return h
}
