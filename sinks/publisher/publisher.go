// Package publisher makes a sink of a type that publishes one event at a time.
package publisher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Publisher publishes one event. Publish returns nil once the destination has durably accepted it. Another error uses up a
// retry, unless it wraps sinks.ErrUnavailable (the destination is away) or sinks.ErrPermanent (this event will never be
// accepted). Errors are logged and kept in the ledger: they hold no payload and no credential. It returns soon after ctx has
// ended. It is called by several lanes at once, but never for one aggregate twice at the same time, and for each aggregate
// in the order of commits. The entry is its own.
type Publisher interface {
	Publish(ctx context.Context, entry *outbox.OutboxEntry) error
	GetName() string
}

// Sink gives a Publisher its events. If the Publisher has a Close() error, Close calls it.
type Sink struct {
	to Publisher

	mu      sync.Mutex
	running map[sinks.Aggregate]struct{} // whose Publish has outlived its Deliver
}

// New makes a sink of to.
func New(to Publisher) *Sink { return &Sink{to: to, running: map[sinks.Aggregate]struct{}{}} }

// Deliver publishes the messages of batch one after the other. A Publish that does not end with ctx is left to itself; until
// it has ended its aggregate is unavailable, as what follows must not overtake it.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	errs := make([]error, len(batch))
	failed := map[sinks.Aggregate]bool{}
	for i := range batch {
		a := batch[i].Aggregate()
		if failed[a] {
			errs[i] = sinks.ErrNotAttempted
			continue
		}
		if errs[i] = s.one(ctx, a, &batch[i]); errs[i] != nil {
			failed[a] = true
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return errs
}

func (s *Sink) one(ctx context.Context, a sinks.Aggregate, m *sinks.Message) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", sinks.ErrUnavailable, context.Cause(ctx))
	}
	s.mu.Lock()
	_, busy := s.running[a]
	s.mu.Unlock()
	if busy {
		return fmt.Errorf("%w: %s is still at work on an earlier event of the aggregate", sinks.ErrUnavailable, s.to.GetName())
	}
	done := make(chan error, 1)
	entry := entryOf(m)
	go func() {
		err := fmt.Errorf("%s ended its goroutine (runtime.Goexit)", s.to.GetName()) // unless it is overwritten
		defer func() {
			s.mu.Lock() // both or none of it is seen below
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
	case err := <-done: // it ended meanwhile
		return err
	default:
		s.running[a] = struct{}{}
		return fmt.Errorf("%w: %s gave no answer: %w", sinks.ErrUnavailable, s.to.GetName(), context.Cause(ctx))
	}
}

// publish turns a panic into a refusal: one event must not end the process.
func (s *Sink) publish(ctx context.Context, entry *outbox.OutboxEntry) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s panicked: %T", s.to.GetName(), r) // its text may hold the payload
		}
	}()
	if err := s.to.Publish(ctx, entry); err != nil {
		return publishError{s.to.GetName(), err}
	}
	return nil
}

// publishError is of one class at most, whatever it wraps; sinks.ErrNotAttempted is not the Publisher's to use.
type publishError struct {
	name string
	err  error
}

func (e publishError) Error() string { return e.name + ": " + e.err.Error() }

// Is tells classes apart.
func (e publishError) Is(target error) bool {
	switch target {
	case sinks.ErrNotAttempted:
		return false
	case sinks.ErrUnavailable:
		return errors.Is(e.err, target) && !errors.Is(e.err, sinks.ErrPermanent)
	}
	return errors.Is(e.err, target)
}

// As finds what the Publisher returned.
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

// Close closes the Publisher, if it can be.
func (s *Sink) Close() error {
	if c, ok := s.to.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}
