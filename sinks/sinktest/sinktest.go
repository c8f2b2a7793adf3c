// Package sinktest is the suite that every sink passes: the rules of sinks.Sink, each put to a real or faked
// destination. Its own test shows for each rule a sink that breaks it and is found out.
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

// Harness is a sink, the means to see what its destination has, and those to bring about what can go wrong there. A
// rule whose means are nil is skipped.
type Harness struct {
	Sink sinks.Sink
	// Received is all that the destination has accepted so far, the events of each aggregate in order.
	Received func() []Received
	// Topic of all messages; their key is the aggregate's id.
	Topic string
	// MaxPayload is the largest that the destination takes; 0: as large as any.
	MaxPayload int

	// Away puts the destination out of reach (connections are refused) until back is called.
	Away func() (back func())
	// Hang makes it take requests and answer none until back is called, when it may or may not act on them.
	Hang func() (back func())
	// Permanent changes a message so that the destination will never accept it, Refuse so that it does not this time.
	Permanent, Refuse func(m *sinks.Message)

	awayWithin time.Duration // shorter in our own test
}

// Received is an event as the destination has it.
type Received struct {
	ID      string
	Payload []byte // nil: none
	// Columns are those of tenant_id, correlation_id and causation_id that are there.
	Columns map[string]string
}

// rule is one of the contract.
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
	{"context ended", contextEnded},
	{"repetitions", repetitions},
	{"new is no repetition", newIsNoRepetition},
}

// Run puts all rules to harnesses that open makes, a fresh one with an empty destination for each.
func Run(t *testing.T, open func(t testing.TB) *Harness) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.check(t, open(t))
		})
	}
}

// canary is in all that an error must not tell.
const canary = "canary"

// What expect takes for repeats.
const (
	once       = "once"
	orRepeated = "or repeated"
)

const (
	lateness   = time.Second     // of a Deliver, at most, after the end of its context
	awayWithin = 8 * time.Second // a destination that refuses connections is known to be away
)

// message n of an aggregate. Its id tells both.
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

// interleaved is perAggregate messages of each aggregate, as a busy stream has them.
func interleaved(h *Harness, perAggregate int, aggregates ...string) (batch []sinks.Message) {
	for n := range perAggregate {
		for _, a := range aggregates {
			batch = append(batch, message(h, a, n))
		}
	}
	return batch
}

// clone copies a batch and what it refers to.
func clone(batch []sinks.Message) []sinks.Message {
	out := slices.Clone(batch)
	for i := range out {
		e := *out[i].Event
		e.Payload, e.Metadata = bytes.Clone(e.Payload), bytes.Clone(e.Metadata)
		out[i].Event = &e
	}
	return out
}

// deliver calls Deliver and checks what holds for every call.
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
		for _, class := range []error{sinks.ErrPermanent, sinks.ErrUnavailable, sinks.ErrNotAttempted} {
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
			if errors.Is(err, sinks.ErrNotAttempted) && ctx.Err() == nil {
				t.Errorf("%s was not attempted, nothing before it failed, and there was time", id)
			}
		case errors.Is(err, sinks.ErrNotAttempted):
		case errors.Is(err, sinks.ErrUnavailable) && errors.Is(before, sinks.ErrUnavailable): // unknown together
		default:
			t.Errorf("%s stands behind a failure: want ErrNotAttempted, got %v", id, err)
		}
	}
	return errs
}

// mustDeliver delivers a batch that nothing is the matter with.
func mustDeliver(ctx context.Context, t testing.TB, h *Harness, batch []sinks.Message) {
	t.Helper()
	for i, err := range deliver(ctx, t, h, batch) {
		if err != nil {
			t.Fatalf("%s: %v", batch[i].Event.ID, err)
		}
	}
}

// deliverAgain is a lane that tries again in place what was not accepted, in its order, until nothing is left.
func deliverAgain(t testing.TB, h *Harness, batch []sinks.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range batch { // as far as anybody knows
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

// expect checks that the destination has exactly these messages, those of each aggregate in this order. With repeats,
// each may be there more than once: what counts then is where it is first.
func expect(t testing.TB, h *Harness, want []sinks.Message, repeats string) {
	t.Helper()
	events := make(map[string]*outbox.Event)
	wantOrder := make(map[string][]string)
	for i := range want {
		e := want[i].Event
		events[e.ID] = e
		wantOrder[e.AggregateID] = append(wantOrder[e.AggregateID], e.ID)
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
			order[e.AggregateID] = append(order[e.AggregateID], r.ID)
		}
		seen[r.ID] = true
	}
	for a, ids := range wantOrder {
		if !slices.Equal(ids, order[a]) {
			t.Errorf("aggregate %s: want %v, got %v", a, ids, order[a])
		}
	}
}
