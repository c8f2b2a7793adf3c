package service

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// answering is a sink that gives each message the same answer.
type answering struct{ err *error }

func (s answering) Deliver(_ context.Context, batch []sinks.Message) []error {
	var b sinks.Batch
	b.Begin(batch)
	for i := range batch {
		if *s.err != nil {
			b.Fail(i, *s.err)
		}
	}
	return b.Errors()
}

func (s answering) Close() error { return nil }

// The state of the members outlives the sink of a session. What is known of a member's absence ends with that sink.
func TestMembersOfAny(t *testing.T) {
	t.Parallel()
	var first, second error
	open := func(err *error) func() (sinks.Sink, error) {
		return func() (sinks.Sink, error) { return answering{err}, nil }
	}
	either, err := anyOf(config.Sink{Name: "either", Type: config.SinkComposite, Composite: &config.Composite{}},
		[]connector.Sink{{Name: "first", Open: open(&first)}, {Name: "second", Open: open(&second)}})
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string, want ...monitoring.MemberStatus) {
		t.Helper()
		if diff := cmp.Diff(want, either.Members()); diff != "" {
			t.Errorf("%s: -want +got:\n%s", when, diff)
		}
	}
	check("before the first session", monitoring.MemberStatus{Name: "first"}, monitoring.MemberStatus{Name: "second"})
	batch := make([]sinks.Message, 3)
	for i := range batch {
		batch[i].Event = &outbox.Event{ID: fmt.Sprint(i), AggregateType: "t", AggregateID: fmt.Sprint(i)}
	}
	for session := range int64(2) {
		s, err := either.Open()
		if err != nil {
			t.Fatal(err)
		}
		first = sinks.ErrUnavailable
		s.Deliver(t.Context(), batch)
		check("the first is away", monitoring.MemberStatus{Name: "first", Delivered: session, Away: true}, monitoring.MemberStatus{Name: "second", Delivered: 3 + 3*session})
		if session == 1 {
			_ = s.Close()
			check("after the session", monitoring.MemberStatus{Name: "first", Delivered: 1}, monitoring.MemberStatus{Name: "second", Delivered: 6})
			break
		}
		first = nil
		s.Deliver(t.Context(), batch[:1])
		check("it is back", monitoring.MemberStatus{Name: "first", Delivered: 1}, monitoring.MemberStatus{Name: "second", Delivered: 3})
	}
}
