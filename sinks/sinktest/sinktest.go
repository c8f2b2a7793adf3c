// Package sinktest is the suite of tests that every sink passes. It checks each rule of sinks.Sink with a real or a
// faked destination. The package's own test has, for each rule, a sink that breaks it, and shows that the suite finds
// it.
package sinktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Harness is a sink, with functions that show what its destination has, and functions that make the destination fail. A
// rule that needs a function which is nil is skipped.
type Harness struct {
	Sink sinks.Sink
	// Received returns all events that the destination has accepted so far, those of each aggregate in the order of arrival.
	Received func() []Received
	// Topic of all messages. Their key is the id of the aggregate.
	Topic string
	// MaxPayload is the size of the largest payload that the destination accepts. 0 means no limit.
	MaxPayload int

	// Away makes the destination refuse connections until back is called.
	Away func() (back func())
	// Hang makes the destination take requests without answering until back is called. Whether it then carries them out
	// is up to it.
	Hang func() (back func())
	// TopicAway changes a message so that it has another topic than Topic, the same one for every message. That topic is
	// away, missing or forbidden until back is called; while the destination itself answers. After back, messages with this
	// topic are accepted, and Received returns them too. TopicAway is called several times before the first back; each back
	// that it has returned does the same.
	TopicAway func(m *sinks.Message) (back func())
	// Permanent changes a message so that the destination will never accept it. Refuse changes one so that the
	// destination does not accept it this time.
	Permanent, Refuse func(m *sinks.Message)

	// MissingTopic returns a topic that the destination has not got while others are there, and create, which makes it. It is
	// nil where every topic will do.
	MissingTopic func() (topic string, create func())
	// WrongLogin returns a sink like Sink, whose credentials the destination refuses.
	WrongLogin func() sinks.Checker

	awayWithin time.Duration // set only by the package's own test, to a shorter time
}

// Received is an event that has arrived at the destination.
type Received struct {
	ID      string
	Payload []byte // nil if there was none
	// Columns has the values of tenant_id, correlation_id and causation_id that have arrived.
	Columns map[string]string
}

// rule is a rule of the contract.
type rule struct {
	name  string
	check func(t testing.TB, h *Harness)
}

var rules = []rule{
	{"accepts in order", acceptsInOrder},
	{"nothing to do", nothingToDo},
	{"payload byte for byte", payloadByteForByte},
	{"NULL is left out", nullIsLeftOut},
	{"several lanes", severalLanes},
	{"batch is borrowed", batchIsBorrowed},
	{"permanent", permanent},
	{"refused", refused},
	{"away", away},
	{"hang", hang},
	{"topic away", topicAway},
	{"topic put off", topicPutOff},
	{"context ended", contextEnded},
	{"repetitions", repetitions},
	{"new is no repetition", newIsNoRepetition},
}

// Run checks all rules. For each it calls open, which makes a new Harness with an empty destination.
func Run(t *testing.T, open func(t testing.TB) *Harness) {
	for _, r := range slices.Concat(rules, checkRules) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.check(t, open(t))
		})
	}
}

// canary is a word in everything that an error must not contain.
const canary = "canary"

// Values of the parameter repeats of expect.
const (
	once       = "once"
	orRepeated = "or repeated"
)

const (
	lateness   = time.Second     // how long after the end of its context a Deliver may return
	awayWithin = 8 * time.Second // how soon a sink must find out that its destination refuses connections
)

// message makes message n of an aggregate. Its id consists of both.
func message(h *Harness, aggregate string, n int) sinks.Message {
	return sinks.Message{
		Event: &outbox.Event{
			ID: fmt.Sprintf("%s-%d", aggregate, n), AggregateType: "Order", AggregateID: aggregate,
			EventType: "OrderChanged", EventVersion: 2,
			Payload:  fmt.Appendf(nil, `{"note":"%s","aggregate":%q,"n":%d}`, canary, aggregate, n),
			Metadata: []byte(`{"user":"` + canary + `"}`),
			TenantID: canary + "-tenant", CorrelationID: canary + "-correlation", CausationID: canary + "-causation",
			CreatedAt: time.Now().Add(-time.Minute),
		},
		Topic: h.Topic, Key: aggregate, LSN: 1, Index: int64(n), CommitTime: time.Now(), Attempt: 1, New: true,
	}
}

// interleaved makes perAggregate messages for each aggregate. Those of the aggregates alternate, as on a busy stream.
func interleaved(h *Harness, perAggregate int, aggregates ...string) (batch []sinks.Message) {
	for n := range perAggregate {
		for _, a := range aggregates {
			batch = append(batch, message(h, a, n))
		}
	}
	return batch
}

// clone copies a batch, and the events to which it refers.
func clone(batch []sinks.Message) []sinks.Message {
	out := slices.Clone(batch)
	for i := range out {
		e := *out[i].Event
		e.Payload, e.Metadata = bytes.Clone(e.Payload), bytes.Clone(e.Metadata)
		out[i].Event = &e
	}
	return out
}

// deliver calls Deliver, and checks the rules that hold for every call.
func deliver(ctx context.Context, t testing.TB, h *Harness, batch []sinks.Message) []error {
	t.Helper()
	errs := h.Sink.Deliver(ctx, batch)
	if errs == nil {
		return nil
	}
	if len(errs) != len(batch) {
		t.Fatalf("%d errors for %d messages", len(errs), len(batch))
	}
	if !slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		t.Errorf("all accepted: want nil, got %d nil errors", len(errs))
	}
	failed := make(map[string]error)
	for i, err := range errs {
		id, aggregate := batch[i].Event.ID, batch[i].Event.AggregateID
		before, behind := failed[aggregate]
		if err == nil {
			if behind {
				t.Errorf("%s was accepted behind a message of its aggregate that was not: %v", id, before)
			}
			continue
		}
		if strings.Contains(err.Error(), canary) {
			t.Errorf("error of %s tells what it must not: %v", id, err)
		}
		classes := 0
		for _, class := range []error{sinks.ErrPermanent, sinks.ErrUnavailable, sinks.ErrTopicUnavailable, sinks.ErrNotAttempted} {
			if errors.Is(err, class) {
				classes++
			}
		}
		if classes > 1 {
			t.Errorf("error of %s is of %d classes: %v", id, classes, err)
		}
		switch {
		case !behind:
			failed[aggregate] = err
			checkFirst(ctx, t, id, err)
		case errors.Is(err, sinks.ErrNotAttempted):
		case isAway(err) && isAway(before): // the outcome of both is unknown
		default:
			t.Errorf("%s stands behind a failure: want ErrNotAttempted, got %v", id, err)
		}
	}
	return errs
}

// checkFirst checks the error of a message of whose aggregate none has failed before.
func checkFirst(ctx context.Context, t testing.TB, id string, err error) {
	t.Helper()
	if !errors.Is(err, sinks.ErrNotAttempted) || ctx.Err() != nil {
		return
	}
	switch wait := sinks.RetryAfter(err); {
	case wait <= 0:
		t.Errorf("%s was not attempted, nothing before it failed, and there was time: want an error, or a time to try it at", id)
	case wait > sinks.LongestAway:
		t.Fatalf("%s was put off for %v, want at most %v", id, wait, sinks.LongestAway)
	}
}

// isAway reports whether an error leaves open whether the message was accepted.
func isAway(err error) bool {
	return errors.Is(err, sinks.ErrUnavailable) || errors.Is(err, sinks.ErrTopicUnavailable)
}

// mustDeliver delivers a batch, all of which must be accepted.
func mustDeliver(ctx context.Context, t testing.TB, h *Harness, batch []sinks.Message) {
	t.Helper()
	for i, err := range deliver(ctx, t, h, batch) {
		if err != nil {
			t.Fatalf("%s: %v", batch[i].Event.ID, err)
		}
	}
}

// deliverAgain delivers a batch, and delivers again, in order, what was not accepted, until nothing is left.
func deliverAgain(t testing.TB, h *Harness, batch []sinks.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range batch { // an earlier try may have been accepted
		batch[i].New = false
	}
	for len(batch) > 0 {
		once, cancelOnce := context.WithTimeout(ctx, 5*time.Second)
		errs := deliver(once, t, h, batch)
		cancelOnce()
		var rest []sinks.Message
		for i, err := range errs {
			if err != nil {
				rest = append(rest, batch[i])
			}
		}
		batch = rest
		if len(batch) > 0 && ctx.Err() != nil {
			t.Fatalf("the destination is back, and %d messages are not accepted: %v", len(batch), errors.Join(errs...))
		}
		if len(batch) > 0 {
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// expect checks that the destination has exactly these messages, those of each aggregate and topic in this order. If repeats is
// orRepeated, a message may have arrived more than once, and only its first copy has to be in order.
func expect(t testing.TB, h *Harness, want []sinks.Message, repeats string) {
	t.Helper()
	events := make(map[string]*outbox.Event)
	within := make(map[string]string) // by event id, the aggregate and the topic within which order can be seen
	wantOrder := make(map[string][]string)
	for i := range want {
		e := want[i].Event
		a := e.AggregateID + " in " + want[i].Topic
		events[e.ID], within[e.ID] = e, a
		wantOrder[a] = append(wantOrder[a], e.ID)
	}
	seen := make(map[string]bool)
	order := make(map[string][]string)
	for _, r := range h.Received() {
		e := events[r.ID]
		switch {
		case e == nil:
			t.Errorf("%s was accepted, and should not have been", r.ID)
			continue
		case seen[r.ID] && repeats == once:
			t.Errorf("%s is there twice", r.ID)
		}
		if !bytes.Equal(r.Payload, e.Payload) || (r.Payload == nil) != (e.Payload == nil) {
			t.Errorf("payload of %s: want %.60q (nil: %t, %d bytes), got %.60q (nil: %t, %d bytes)",
				r.ID, e.Payload, e.Payload == nil, len(e.Payload), r.Payload, r.Payload == nil, len(r.Payload))
		}
		if !seen[r.ID] {
			order[within[r.ID]] = append(order[within[r.ID]], r.ID)
		}
		seen[r.ID] = true
	}
	for a, ids := range wantOrder {
		if !slices.Equal(ids, order[a]) {
			t.Errorf("aggregate %s: want %v, got %v", a, ids, order[a])
		}
	}
}
