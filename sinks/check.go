package sinks

import (
	"context"
	"errors"
)

// Checker is a Sink that can look whether its destination would take messages, without sending one.
type Checker interface {
	Sink
	// Check dials the destination, logs in, and looks whether these topics are there and may be written to, as far as that can be
	// known without writing. It changes nothing: it makes no topic, and it does not touch what Deliver remembers. Topics are those
	// that can be named in advance: none of them comes from a field of an event. There may be none.
	//
	// An error means that the destination as a whole cannot be used now: it is away, it refuses the login (RefusedLogin), or the
	// check could not be made. Otherwise there is one TopicCheck for each topic, in the order of topics.
	//
	// Check returns at the latest when ctx ends, and follows the rules of Deliver for what an error may contain. It may be called
	// while Deliver runs.
	Check(ctx context.Context, topics []string) ([]TopicCheck, error)
}

// TopicCheck is what a Checker has found out about a topic.
type TopicCheck struct {
	// Kind is what the destination calls it, for people: "topic", "stream", "subject", "URL".
	Kind  string
	Topic string
	// Err is nil if the topic is there. Otherwise it says why messages to it will not be accepted now.
	Err error
	// Remedy is the command that makes the topic, ready to be copied, or empty if there is none or none is needed. It holds no
	// credentials.
	Remedy string
}

// RefusedLogin adds to err that the destination has refused our credentials: a password, a key, a token. The class of err stays
// the same. The connector then reads the files of secrets again: somebody may have exchanged them.
func RefusedLogin(err error) error { return loginError{err} }

// IsRefusedLogin reports whether RefusedLogin was added to err, or to an error that err wraps.
func IsRefusedLogin(err error) bool {
	_, refused := errors.AsType[loginError](err)
	return refused
}

type loginError struct{ error }

func (e loginError) Unwrap() error { return e.error }
