// Package composite makes one sink out of several members. A message is accepted as soon as one of them has accepted it.
package composite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Member is one of the sinks that a composite is made of.
type Member struct {
	Name string
	Sink sinks.Sink
	// Address returns the topic and key that an event has at this member.
	Address func(*outbox.Event) (topic, key string)
	// Topics are the topics of this member that can be named before there is an event. Check looks for them.
	Topics []string
	// Tell is called with each answer of this member, and with each failure to get one, and with the zero Answer when the
	// composite is closed. Several lanes may call it at the same time. It may be nil.
	Tell func(Answer)
}

// Answer is what one Deliver, or one check, says of a member.
type Answer struct {
	Accepted int  // how many messages the member has accepted
	Away     bool // it has answered nothing; of a check: it cannot be used
	Check    bool // a check says this
}

// Any gives each message to its members, in their order, until one accepts it. If members fail, the messages of one
// aggregate may be spread over several members. Each member gets its messages in order. A member may have accepted a
// message although it did not answer; the next member then gets the message too.
type Any struct{ members []Member }

var _ sinks.Chooser = (*Any)(nil)

// NewAny makes a sink out of one or more members. Its Close closes them.
func NewAny(members ...Member) *Any { return &Any{members: members} }

// Deliver does what DeliverBy does.
func (a *Any) Deliver(ctx context.Context, batch []sinks.Message) []error {
	errs, _ := a.DeliverBy(ctx, batch)
	return errs
}

// DeliverBy gives each member the messages that the members before it have not accepted. Each member gets an equal share
// of the time that is left, so that one that never answers leaves time for the others. What becomes of a message that no
// member accepts is in the comment of failure.
func (a *Any) DeliverBy(ctx context.Context, batch []sinks.Message) (errs []error, by []string) {
	if len(batch) == 0 {
		return nil, nil
	}
	by = make([]string, len(batch))
	failures := make([]failure, len(batch))
	owed := make([]int, len(batch)) // the places in batch of the messages that no member has accepted yet
	for i := range batch {
		owed[i] = i
	}
	rest := make([]sinks.Message, 0, len(batch))
	for n, m := range a.members {
		rest = rest[:0]
		for _, i := range owed {
			msg := batch[i]
			msg.Topic, msg.Key = m.Address(msg.Event)
			// Both members may lead to the same destination.
			msg.New = msg.New && !failures[i].uncertain
			rest = append(rest, msg)
		}
		results := a.try(ctx, n, rest)
		left := owed[:0]
		for j, i := range owed {
			if results == nil || results[j] == nil {
				by[i] = m.Name
				continue
			}
			left = append(left, i)
			failures[i].add(m.Name, results[j])
		}
		if owed = left; len(owed) == 0 {
			return nil, by
		}
	}
	var b sinks.Batch
	b.Begin(batch)
	for _, i := range owed {
		if err := failures[i].err(); sinks.IsUncertain(err) {
			b.Lose(i, err)
		} else {
			b.Fail(i, err)
		}
	}
	return b.Errors(), by
}

// try lets member n deliver, within its share of the time.
func (a *Any) try(ctx context.Context, n int, batch []sinks.Message) []error {
	m, within := &a.members[n], ctx
	if deadline, ok := ctx.Deadline(); ok {
		share := time.Until(deadline) / time.Duration(len(a.members)-n)
		var cancel context.CancelFunc
		within, cancel = context.WithTimeoutCause(ctx, share, fmt.Errorf("no answer within its share of %s", share.Round(time.Millisecond)))
		defer cancel()
	}
	errs := m.Sink.Deliver(within, batch)
	// A call that the connector has ended early says nothing about the member.
	if m.Tell != nil && !errors.Is(ctx.Err(), context.Canceled) {
		if answer, known := answerOf(len(batch), errs); known {
			m.Tell(answer)
		}
	}
	return errs
}

// answerOf returns what the results of a Deliver of n messages say of the member. known is false if they say nothing, because
// nothing was attempted.
func answerOf(n int, errs []error) (a Answer, known bool) {
	if errs == nil {
		return Answer{Accepted: n}, true
	}
	answered := false
	for _, err := range errs {
		switch {
		case err == nil:
			a.Accepted++
			answered = true
		case errors.Is(err, sinks.ErrNotAttempted):
		case errors.Is(err, sinks.ErrUnavailable):
			a.Away = true
		default:
			answered = true
		}
	}
	known = answered || a.Away
	a.Away = a.Away && !answered
	return a, known
}

// Close closes all members.
func (a *Any) Close() error {
	var errs []error
	for _, m := range a.members {
		if err := m.Sink.Close(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
		}
		if m.Tell != nil {
			m.Tell(Answer{}) // nobody asks it any more, so nobody knows whether it is away
		}
	}
	return errors.Join(errs...)
}

// AskNow implements sinks.Rememberer.
func (a *Any) AskNow() {
	for _, m := range a.members {
		if r, ok := m.Sink.(sinks.Rememberer); ok {
			r.AskNow()
		}
	}
}
