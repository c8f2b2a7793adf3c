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
}

// Any gives each message to its members, in their order, until one accepts it. If members fail, the messages of one
// aggregate may be spread over several members. Each member gets its messages in order. A member may have accepted a
// message although it did not answer; the next member then gets the message too.
type Any struct{ members []Member }

// NewAny makes a sink out of one or more members. Its Close closes them.
func NewAny(members ...Member) *Any { return &Any{members: members} }

// Deliver gives each member the messages that the members before it have not accepted. Each member gets an equal share
// of the time that is left, so that one that never answers leaves time for the others. A message is permanently refused
// only if every member refuses it permanently.
func (a *Any) Deliver(ctx context.Context, batch []sinks.Message) []error {
	errs := make([]error, len(batch))
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
			// If an earlier member did not answer, the message may have arrived, and both members may lead to the same
			// destination.
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
				errs[i] = nil // the errors of earlier members no longer matter
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

// try lets member n deliver, within its share of the time.
func (a *Any) try(ctx context.Context, n int, batch []sinks.Message) []error {
	if deadline, ok := ctx.Deadline(); ok {
		share := time.Until(deadline) / time.Duration(len(a.members)-n)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, share, fmt.Errorf("no answer within its share of %s", share.Round(time.Millisecond)))
		defer cancel()
	}
	return a.members[n].Sink.Deliver(ctx, batch)
}

// hopeful returns the one of two errors that leaves more hope that the message will be accepted. If a member is away,
// the message is not refused. If a member may accept it next time, it is not refused permanently. before is nil at the
// first member.
func hopeful(before, now error) error {
	switch {
	case errors.Is(before, sinks.ErrNotAttempted) && errors.Is(now, sinks.ErrPermanent):
		// An earlier member was not asked, because an earlier message of the aggregate was not accepted there. The next
		// try asks that member first.
		return fmt.Errorf("%v, and not every member was asked", now) //nolint:errorlint // its class is not the message's
	case before == nil, errors.Is(before, sinks.ErrNotAttempted):
		return now
	case errors.Is(before, sinks.ErrUnavailable), errors.Is(now, sinks.ErrPermanent), errors.Is(now, sinks.ErrNotAttempted):
		return before
	}
	return now
}

// behind applies the contract's rule on order: only the first message of an aggregate that was not accepted keeps its
// error. The later ones get ErrNotAttempted.
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
