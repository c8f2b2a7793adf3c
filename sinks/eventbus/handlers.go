package eventbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// chain holds the messages of one aggregate in a call of Deliver.
type chain struct {
	bus       *Bus
	aggregate sinks.Aggregate
	indexes   []int            // of the messages in the batch
	messages  []*sinks.Message // copies
	results   chan<- result
	next      int // index of the first message whose outcome is not known; only Deliver uses it

	ended, abandoned bool // guarded by Bus.mu
}

// run calls the handlers for one message after the other, until a message is not accepted or ctx ends. It gives back the
// place and the aggregate before it sends the last outcome, because the next Deliver may begin at once after that.
func (c *chain) run(ctx context.Context) {
	n := 0
	err := errors.New("a handler ended its goroutine (runtime.Goexit)") // stands if call never returns
	defer func() {
		c.bus.release(c)
		if n < len(c.indexes) {
			c.results <- result{c.indexes[n], err}
		}
	}()
	for ; ; n++ {
		m := c.messages[n]
		if ctx.Err() != nil {
			n = len(c.indexes) // nobody waits for results
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
		if err != nil && ctx.Err() != nil { // the handler's own error only says that ctx has ended
			return fmt.Errorf("%w: no handler has accepted it in time: %w", sinks.ErrUnavailable, context.Cause(ctx))
		}
		if err != nil {
			return refusal(err, m)
		}
	}
	return nil
}

// call calls a handler. It is the only place that recovers from a panic: a handler is the user's code, and a mistake in
// it about one event must not end the connector for all.
func call(ctx context.Context, h handler, m *sinks.Message) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case error:
			err = &handlerError{text: "a handler panicked: " + redact(v.Error(), m)}
		case string:
			err = &handlerError{text: "a handler panicked: " + redact(v, m)}
		default: // only the type, as the value might contain the message
			err = &handlerError{text: fmt.Sprintf("a handler panicked with a %T", v)}
		}
	}()
	return h(ctx, m)
}

// handlerError is the error of a handler. It belongs to at most one class, whatever it wraps, and does not contain the
// payload.
type handlerError struct {
	text  string
	class error // nil if the message was refused
	err   error // nil if the handler panicked
}

func (e *handlerError) Error() string { return e.text }

// Is reports whether the error belongs to the class target. The wrapped error may belong to several classes, or to one
// that a handler must not use.
func (e *handlerError) Is(target error) bool {
	switch target {
	case sinks.ErrPermanent, sinks.ErrUnavailable, sinks.ErrTopicUnavailable, sinks.ErrNotAttempted:
		return target == e.class
	}
	return errors.Is(e.err, target)
}

// As finds an error within the wrapped one, such as the one that says when to try again.
func (e *handlerError) As(target any) bool { return e.err != nil && errors.As(e.err, target) }

func refusal(err error, m *sinks.Message) error {
	var panicked *handlerError
	if errors.As(err, &panicked) && panicked.err == nil {
		return panicked
	}
	e := &handlerError{text: "a handler refused it: " + redact(err.Error(), m), err: err}
	if class := sinks.ClassOf(err); !errors.Is(class, sinks.ErrNotAttempted) { // the order of events is no business of a handler
		e.class = class
	}
	return e
}

// maxText is how many bytes of the text of a handler's error are kept.
const maxText = 500

// redact removes the payload and the metadata from a text, and shortens it. It finds them only if they are unchanged.
func redact(text string, m *sinks.Message) string {
	for _, secret := range [][]byte{m.Event.Payload, m.Event.Metadata} {
		if len(secret) > 2 { // shorter ones, such as {}, may occur in any text
			text = strings.ReplaceAll(text, string(secret), "[left out]")
		}
	}
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// clone copies a message and its event.
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
