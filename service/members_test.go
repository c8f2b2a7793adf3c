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
	"github.com/pyairtable-compose/outbox-cdc/sinks/composite"
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

// A check asks less than a Deliver, so that a member which refuses messages and passes checks stays away.
func TestCheckedMember(t *testing.T) {
	t.Parallel()
	var (
		accepted   = composite.Answer{Accepted: 1}
		failed     = composite.Answer{Away: true}
		checked    = composite.Answer{Check: true}
		notChecked = composite.Answer{Check: true, Away: true}
	)
	for _, test := range []struct {
		name    string
		answers []composite.Answer
		away    bool
	}{
		{"nobody has asked", nil, false},
		{"checks pass while messages fail", []composite.Answer{failed, checked, checked}, true},
		{"it accepts", []composite.Answer{failed, checked, accepted}, false},
		{"a check finds it away", []composite.Answer{accepted, notChecked}, true},
		{"and a check finds it back", []composite.Answer{notChecked, checked}, false},
		{"a check has seen the absence, too", []composite.Answer{failed, notChecked, checked}, false},
		{"messages fail after a check did", []composite.Answer{notChecked, failed, checked}, true},
		{"it accepts after a check failed", []composite.Answer{notChecked, accepted}, false},
		{"the session ends", []composite.Answer{failed, {}}, false},
	} {
		m := &memberState{}
		for _, a := range test.answers {
			m.note(a)
		}
		if m.isAway() != test.away {
			t.Errorf("%s: away is %t, want %t", test.name, m.isAway(), test.away)
		}
	}
}

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
