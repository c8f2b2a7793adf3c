// Package publisher makes a sink of a type that publishes one event at a time.
package publisher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Publisher publishes one event at a time.
//
// Publish returns nil when the destination has durably accepted the event. An error uses up a retry, unless it wraps one of these:
//
//   - sinks.ErrUnavailable: the destination is away. Enough of these in a row open the breaker.
//   - sinks.ErrTopicUnavailable: the destination answers, but the topic, queue or URL to which this event goes is away. The breaker
//     does not count it. It is for a Publisher whose events go to several of them. sinks.Away remembers those that are away; of them
//     Publish may return sinks.PutOff without asking.
//   - sinks.ErrPermanent: the event will never be accepted.
//
// Errors are logged and kept in the ledger, so they must not contain a payload or a credential. Publish should return soon after
// ctx has ended.
//
// Several lanes call Publish at the same time, but never two for the same aggregate. The events of an aggregate come in
// the order of their commits. The entry belongs to Publish, which may keep and change it.
type Publisher interface {
	Publish(ctx context.Context, entry *outbox.OutboxEntry) error
	GetName() string
}

// Sink passes events on to a Publisher. If the Publisher has a method Close() error, Close calls it.
type Sink struct {
	to Publisher

	mu      sync.Mutex
	running map[sinks.Aggregate]struct{} // the aggregates for which a Publish still runs although its Deliver has returned
}

// New makes a sink that publishes by to.
func New(to Publisher) *Sink { return &Sink{to: to, running: map[sinks.Aggregate]struct{}{}} }

// Deliver publishes the messages of batch one after the other. It does not wait for a Publish that goes on after ctx
// has ended. Until that has returned, further messages of its aggregate fail with ErrUnavailable, because they must not
// overtake it. Messages for which no time is left are ErrNotAttempted, or ErrUnavailable if the destination has answered
// nothing in this call.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	var b sinks.Batch
	b.Begin(batch)
	notBegun := sinks.ErrUnavailable
	for i := range batch {
		if b.Blocked(i) {
			b.Fail(i, sinks.ErrNotAttempted)
			continue
		}
		if ctx.Err() != nil {
			b.Fail(i, fmt.Errorf("%w: not published in time: %w", notBegun, context.Cause(ctx)))
			continue
		}
		err := s.one(ctx, batch[i].Aggregate(), &batch[i])
		if !errors.Is(err, sinks.ErrUnavailable) && !errors.Is(err, sinks.ErrNotAttempted) { // the destination has answered
			notBegun = sinks.ErrNotAttempted
		}
		if err != nil {
			b.Fail(i, err)
		}
	}
	return b.Errors()
}

func (s *Sink) one(ctx context.Context, a sinks.Aggregate, m *sinks.Message) error {
	s.mu.Lock()
	_, busy := s.running[a]
	s.mu.Unlock()
	if busy {
		return fmt.Errorf("%w: %s is still at work on an earlier event of the aggregate", sinks.ErrUnavailable, s.to.GetName())
	}
	done := make(chan error, 1)
	entry := entryOf(m)
	go func() {
		err := fmt.Errorf("%s ended its goroutine (runtime.Goexit)", s.to.GetName()) // stands if Publish never returns
		defer func() {
			s.mu.Lock() // so that the code below sees both changes or none
			defer s.mu.Unlock()
			done <- err
			delete(s.running, a)
		}()
		err = s.publish(ctx, entry)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case err := <-done: // Publish has returned at the same moment
		return err
	default:
		s.running[a] = struct{}{}
		return fmt.Errorf("%w: %s gave no answer: %w", sinks.ErrUnavailable, s.to.GetName(), context.Cause(ctx))
	}
}

// publish calls Publish and turns a panic into an error: one event must not end the process.
func (s *Sink) publish(ctx context.Context, entry *outbox.OutboxEntry) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s panicked: %T", s.to.GetName(), r) // only the type, as the value may contain the payload
		}
	}()
	if err := s.to.Publish(ctx, entry); err != nil {
		return publishError{s.to.GetName(), err}
	}
	return nil
}

// publishError is an error of a Publisher. It belongs to at most one class, whatever it wraps. A Publisher can return
// sinks.ErrNotAttempted only with a time: the order of events is no business of its.
type publishError struct {
	name string
	err  error
}

func (e publishError) Error() string { return e.name + ": " + e.err.Error() }

// classes are the classes of errors. If an error wraps several, it belongs to the first of them.
var classes = []error{sinks.ErrPermanent, sinks.ErrNotAttempted, sinks.ErrTopicUnavailable, sinks.ErrUnavailable}

// Is reports whether the error belongs to the class target, or wraps target if that is no class.
func (e publishError) Is(target error) bool {
	if !slices.Contains(classes, target) {
		return errors.Is(e.err, target)
	}
	return target == e.class()
}

// class returns the class of the error, or nil if that is an ordinary refusal.
func (e publishError) class() error {
	for _, class := range classes {
		if errors.Is(e.err, class) && (class != sinks.ErrNotAttempted || sinks.RetryAfter(e.err) > 0) { //nolint:errorlint // it is the class itself
			return class
		}
	}
	return nil
}

// As finds an error within the one that the Publisher has returned.
func (e publishError) As(target any) bool { return errors.As(e.err, target) }

func entryOf(m *sinks.Message) *outbox.OutboxEntry {
	e := m.Event
	entry := &outbox.OutboxEntry{
		ID: e.ID, AggregateType: e.AggregateType, AggregateID: e.AggregateID, EventType: e.EventType, EventVersion: e.EventVersion,
		Payload: bytes.Clone(e.Payload), CreatedAt: e.CreatedAt,
		TenantID: e.TenantID, CorrelationID: e.CorrelationID, CausationID: e.CausationID, RetryCount: max(m.Attempt-1, 0),
	}
	dec := json.NewDecoder(bytes.NewReader(e.Metadata))
	dec.UseNumber()
	if dec.Decode(&entry.Metadata) != nil {
		entry.Metadata = nil
	}
	return entry
}

// Close closes the Publisher if it has a method Close() error.
func (s *Sink) Close() error {
	if c, ok := s.to.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}
