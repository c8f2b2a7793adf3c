// Package composite is the sink that is made of others, of which any may accept a message: the first that does is enough.
package composite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Member is one of them.
type Member struct {
	Name string
	Sink sinks.Sink
	// Address gives the topic and key of an event at this member.
	Address func(*outbox.Event) (topic, key string)
}

// Any gives each message to its members in their order, until one accepts it. An aggregate whose messages fail over has
// some at one member and some at another: order holds at each, and what a member did in silence before it failed may be
// repeated at the next.
type Any struct{ members []Member }

// NewAny makes it of one member or more, which it closes.
func NewAny(members ...Member) *Any { return &Any{members: members} }

// Deliver gives each member what those before it have not accepted, and an equal share of the time that is left, so that
// one that never answers leaves some to the others. A message is permanently refused only where every member says so.
func (a *Any) Deliver(ctx context.Context, batch []sinks.Message) []error {
	errs := make([]error, len(batch))
	owed := make([]int, len(batch)) // their places in the batch
	for i := range batch {
		owed[i] = i
	}
	rest := make([]sinks.Message, 0, len(batch))
	for n, m := range a.members {
		rest = rest[:0]
		for _, i := range owed {
			msg := batch[i]
			msg.Topic, msg.Key = m.Address(msg.Event)
			// A member before may lead to the same destination, and have been heard there.
			msg.New = msg.New && !errors.Is(errs[i], sinks.ErrUnavailable)
			rest = append(rest, msg)
		}
		results := a.try(ctx, n, rest)
		left := owed[:0]
		for j, i := range owed {
			var err error
			if results != nil {
				err = results[j]
			}
			if err == nil {
				errs[i] = nil // whatever those before it said
				continue
			}
			left = append(left, i)
			if !errors.Is(err, sinks.ErrNotAttempted) {
				err = fmt.Errorf("%s: %w", m.Name, err)
			}
			errs[i] = hopeful(errs[i], err)
		}
		if owed = left; len(owed) == 0 {
			return nil
		}
	}
	return behind(batch, errs)
}

// try is one member's turn.
func (a *Any) try(ctx context.Context, n int, batch []sinks.Message) []error {
	if deadline, ok := ctx.Deadline(); ok {
		share := time.Until(deadline) / time.Duration(len(a.members)-n)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, share, fmt.Errorf("no answer within its share of %s", share.Round(time.Millisecond)))
		defer cancel()
	}
	return a.members[n].Sink.Deliver(ctx, batch)
}

// hopeful is the one of two errors that leaves more hope: with one member that is away the message is not refused, and
// with one that may take it next time it is not refused for good. before is nil at the first member.
func hopeful(before, now error) error {
	switch {
	case errors.Is(before, sinks.ErrNotAttempted) && errors.Is(now, sinks.ErrPermanent):
		// A member before was not asked. The next try asks it first, as what stood before the message is gone then.
		return fmt.Errorf("%v, and not every member was asked", now) //nolint:errorlint // its class is not the message's
	case before == nil, errors.Is(before, sinks.ErrNotAttempted):
		return now
	case errors.Is(before, sinks.ErrUnavailable), errors.Is(now, sinks.ErrPermanent), errors.Is(now, sinks.ErrNotAttempted):
		return before
	}
	return now
}

// behind keeps the contract's words: the first of an aggregate that was not accepted says why, those behind it were not
// attempted.
func behind(batch []sinks.Message, errs []error) []error {
	failed := map[sinks.Aggregate]bool{}
	for i, err := range errs {
		if err == nil {
			continue
		}
		a := batch[i].Aggregate()
		if failed[a] {
			errs[i] = sinks.ErrNotAttempted
		}
		failed[a] = true
	}
	return errs
}

// Close closes all members.
func (a *Any) Close() error {
	var errs []error
	for _, m := range a.members {
		if err := m.Sink.Close(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
		}
	}
	return errors.Join(errs...)
}
