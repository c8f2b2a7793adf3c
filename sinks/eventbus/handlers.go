package eventbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// chain is what a Deliver has for one aggregate.
type chain struct {
	bus       *Bus
	aggregate sinks.Aggregate
	indexes   []int            // in the batch
	messages  []*sinks.Message // copies
	results   chan<- result
	known     int // outcomes; of Deliver

	ended, abandoned bool // guarded by Bus.mu
}

// run calls the handlers of one message after the other, until one is not accepted or ctx ends. The place and the
// aggregate are given back before the last outcome is told: the next Deliver may follow it at once.
func (c *chain) run(ctx context.Context) {
	n := 0
	err := errors.New("a handler ended its goroutine (runtime.Goexit)") // unless it is overwritten
	defer func() {
		c.bus.release(c)
		if n < len(c.indexes) {
			c.results <- result{c.indexes[n], err}
		}
	}()
	for ; ; n++ {
		m := c.messages[n]
		if ctx.Err() != nil {
			n = len(c.indexes) // nobody waits
			return
		}
		outcome := c.bus.handle(ctx, m)
		last := n == len(c.indexes)-1
		if outcome != nil || last {
			err = outcome
			return
		}
		c.results <- result{c.indexes[n], nil}
	}
}

func (b *Bus) handle(ctx context.Context, m *sinks.Message) error {
	for _, h := range b.fitting(m.Event.EventType) {
		err := call(ctx, h, m)
		if err != nil && ctx.Err() != nil { // it says so in its own words
			return fmt.Errorf("%w: no handler has accepted it in time: %w", sinks.ErrUnavailable, context.Cause(ctx))
		}
		if err != nil {
			return refusal(err, m)
		}
	}
	return nil
}

// call is the one place that recovers: a handler is the user's code, and his mistake about one event must not end the
// connector for all.
func call(ctx context.Context, h handler, m *sinks.Message) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case error:
			err = &handlerError{text: "a handler panicked: " + redact(v.Error(), m)}
		case string:
			err = &handlerError{text: "a handler panicked: " + redact(v, m)}
		default: // printing it might print the message
			err = &handlerError{text: fmt.Sprintf("a handler panicked with a %T", v)}
		}
	}()
	return h(ctx, m)
}

// handlerError is what a handler returned. It is of one class at most, whatever it wraps, and tells no payload.
type handlerError struct {
	text  string
	class error // nil: refused
	err   error // nil: a panic
}

func (e *handlerError) Error() string { return e.text }

// Is tells classes apart; what is wrapped may be of several, or of one that is not a handler's to use.
func (e *handlerError) Is(target error) bool {
	switch target {
	case sinks.ErrPermanent, sinks.ErrUnavailable, sinks.ErrNotAttempted:
		return target == e.class
	}
	return errors.Is(e.err, target)
}

// As finds what says more about the error, such as when to come again.
func (e *handlerError) As(target any) bool { return e.err != nil && errors.As(e.err, target) }

func refusal(err error, m *sinks.Message) error {
	var panicked *handlerError
	if errors.As(err, &panicked) && panicked.err == nil {
		return panicked
	}
	e := &handlerError{text: "a handler refused it: " + redact(err.Error(), m), err: err}
	switch {
	case errors.Is(err, sinks.ErrPermanent):
		e.class = sinks.ErrPermanent
	case errors.Is(err, sinks.ErrUnavailable):
		e.class = sinks.ErrUnavailable
	}
	return e
}

const maxText = 500 // bytes of a handler's words

// redact takes the payload and the metadata out of a text, and shortens it. It finds them as they are only.
func redact(text string, m *sinks.Message) string {
	for _, secret := range [][]byte{m.Event.Payload, m.Event.Metadata} {
		if len(secret) > 2 { // such as {}
			text = strings.ReplaceAll(text, string(secret), "[left out]")
		}
	}
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// clone copies a message and what it refers to.
func clone(m *sinks.Message) *sinks.Message {
	c, e := *m, *m.Event
	e.Payload, e.Metadata = bytes.Clone(e.Payload), bytes.Clone(e.Metadata)
	if e.MaxRetries != nil {
		n := *e.MaxRetries
		e.MaxRetries = &n
	}
	c.Event = &e
	return &c
}
