package sinks

import (
	"errors"
	"slices"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// messagesOf returns one message for each letter, of the aggregate with this name.
func messagesOf(aggregates string) []Message {
	var all []Message
	for _, a := range aggregates {
		all = append(all, Message{Event: &outbox.Event{AggregateType: "t", AggregateID: string(a)}})
	}
	return all
}

func TestBatchChains(t *testing.T) {
	t.Parallel()
	var b Batch
	for range 2 { // the second time in the memory of the first
		b.Begin(messagesOf("abacba"))
		if want := []int32{0, 1, 3}; !slices.Equal(b.Heads(), want) {
			t.Errorf("heads %v, want %v", b.Heads(), want)
		}
		var next, aggregates []int
		for i := range b.Messages {
			next, aggregates = append(next, b.Next(i)), append(aggregates, b.Aggregate(i))
		}
		if want := []int{2, 4, 5, -1, -1, -1}; !slices.Equal(next, want) {
			t.Errorf("next %v, want %v", next, want)
		}
		if want := []int{0, 1, 0, 2, 1, 0}; !slices.Equal(aggregates, want) {
			t.Errorf("aggregates %v, want %v", aggregates, want)
		}
		if errs := b.Errors(); errs != nil {
			t.Errorf("all accepted: want nil, got %v", errs)
		}
	}
}

func TestBatchKeepsOrder(t *testing.T) {
	t.Parallel()
	refused, lost := errors.New("refused"), errors.New("lost")
	var b Batch
	b.Begin(messagesOf("abacbaa"))
	b.Fail(2, refused)
	if b.Blocked(1) || !b.Blocked(5) {
		t.Errorf("b is blocked: %t, a: %t", b.Blocked(1), b.Blocked(5))
	}
	b.Fail(5, refused)
	b.Lose(6, lost)
	b.FailRest(1, lost)
	errs := b.Errors()
	if want := []error{nil, lost, refused, nil, ErrNotAttempted, ErrNotAttempted, lost}; !slices.Equal(errs, want) {
		t.Errorf("got %v\nwant %v", errs, want)
	}
	if b.Begin(messagesOf("abacbaa")); b.Blocked(6) || b.Errors() != nil {
		t.Error("the failures of one call are those of the next")
	}
	if !errors.Is(errs[1], lost) {
		t.Error("the errors that were returned are used again")
	}
}
