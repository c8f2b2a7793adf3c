package sinks_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// queues is a sink with several topics, the queues of a broker.
type queues struct {
	away sinks.Away[string] // all lanes share it
	send func(ctx context.Context, queue string, m *sinks.Message) error
}

var errNoQueue = errors.New("no such queue")

func (s *queues) Deliver(ctx context.Context, batch []sinks.Message) []error {
	var b sinks.Batch
	b.Begin(batch)
	for i := range batch {
		m := &batch[i]
		wait := s.away.Wait(m.Topic, time.Now())
		switch {
		case b.Blocked(i):
			b.Fail(i, sinks.ErrNotAttempted)
			continue
		case wait > 0:
			b.Fail(i, sinks.PutOff(wait))
			continue
		}
		err := s.send(ctx, m.Topic, m)
		switch {
		case err == nil:
			s.away.Answered(m.Topic)
		case errors.Is(err, errNoQueue):
			s.away.Found(m.Topic, time.Now())
			b.Fail(i, fmt.Errorf("%w: %w", sinks.ErrTopicUnavailable, err))
		default: // the broker gave no answer
			b.Fail(i, fmt.Errorf("%w: %w", sinks.ErrUnavailable, err))
		}
	}
	return b.Errors()
}

func (s *queues) Close() error { return nil }

// A topic that is away stops its own messages, and those of their aggregates. It is not asked twice.
func ExampleAway() {
	s := &queues{send: func(_ context.Context, queue string, m *sinks.Message) error {
		if queue == "invoices" {
			return errNoQueue
		}
		fmt.Println(m.Event.ID, "is in", queue)
		return nil
	}}
	message := func(id, aggregate, queue string) sinks.Message {
		return sinks.Message{Event: &outbox.Event{ID: id, AggregateType: "order", AggregateID: aggregate}, Topic: queue}
	}
	errs := s.Deliver(context.Background(), []sinks.Message{
		message("1", "a", "orders"), message("2", "a", "invoices"), message("3", "a", "orders"),
		message("4", "b", "invoices"), message("5", "c", "orders"),
	})
	for i, err := range errs {
		if err != nil {
			fmt.Printf("%d: %v\n", i+1, err)
		}
	}
	// Output:
	// 1 is in orders
	// 5 is in orders
	// 2: topic unavailable: no such queue
	// 3: not attempted
	// 4: not attempted: its topic was found away, and is not asked again yet
}
