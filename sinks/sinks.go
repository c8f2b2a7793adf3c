// Package sinks holds the contract between the connector and a destination: Sink. For each kind of destination there is
// a package below it that implements the contract. The package sinktest is the suite of tests that all of them pass.
package sinks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Message is one event on its way to one sink.
type Message struct {
	// Event is shared with other sinks. A sink may read it, but must never change it.
	Event *outbox.Event
	// Topic and Key are what the templates of the route, or of the sink, come to for this event.
	Topic string
	Key   string
	// LSN and Index are the event's position. LSN is that of the transaction's commit record, Index the number of the
	// insert in the transaction, from 0. Positions are unique, and their order is the order of commits.
	LSN   pglogrepl.LSN
	Index int64
	// CommitTime is when the transaction committed, by PostgreSQL's clock.
	CommitTime time.Time
	// Attempt counts the tries of this message, from 1.
	Attempt int
	// Origin names the table that the event comes from, in the form that the function Origin returns. UniqueID puts it
	// before an id that is unique only within its table.
	Origin string
	// New says that the destination cannot have accepted this message before: no earlier session can have sent it, and
	// each try of this session was refused by an answer. If the destination says that it has a New message already, it
	// takes it for another message with the same id, and would lose it. The sink must return an error then. For a
	// message that is not New, the same answer means that an earlier try was accepted.
	New bool
}

// Sink delivers messages to one destination.
//
// # What Deliver returns
//
// Deliver returns nil if the destination has durably accepted all messages of batch. Otherwise it returns one error for
// each message, in the order of batch; the error is nil if that message was accepted. Every other error belongs to one
// of these classes:
//
//   - ErrPermanent: this message can never be accepted (it is too large, or its topic has an illegal name). It becomes a dead
//     letter. If the destination refuses several messages together, that says nothing about any one of them: Deliver sends them
//     again in smaller groups, and in the end one by one.
//   - ErrUnavailable: the destination is away (cannot dial, time-out, no right to anything). Such a try uses up no attempt,
//     however often it happens, and enough of them in a row open the breaker: the sink is left alone for a while.
//   - ErrTopicUnavailable: the destination answered, but what this message's topic names (a Kafka topic or partition, a Redis
//     stream or the node of its slot, a NATS subject, a URL) is away, missing or forbidden. Such a try uses up no attempt, and
//     the breaker does not count it. Only a sink whose topics differ uses this class. A sink with one topic is as good as away
//     when that topic is, and reports ErrUnavailable. Topics.Unavailable chooses.
//   - ErrNotAttempted: the message was not sent. Either an earlier message of its aggregate in this batch was not accepted, or
//     the time ran out before Deliver began with this one. With a time (After), the sink knows that the message's topic is away,
//     or the destination has asked for a pause: the message is due when that time has passed. None of this says anything about
//     the destination. If the destination as a whole is away, or has answered nothing until the time ran out, the class is
//     ErrUnavailable instead, also where nothing was sent.
//   - any other error: this message was refused this time. That uses up an attempt.
//
// If a message was not accepted, for whatever reason, no later message of the same aggregate in the batch may be
// accepted. Those return ErrNotAttempted. Messages of different aggregates may be accepted in any order.
//
// # Rules for Deliver
//
// Deliver returns at the latest when ctx ends. The outcome of messages that were on the wire then is unknown. All of them are
// reported as ErrUnavailable, or ErrTopicUnavailable if other topics have answered meanwhile, also those behind another one of
// their aggregate. If ctx was cancelled, and has not reached its deadline, that says nothing about any topic.
//
// Deliver does not try again, except for what a client library does by itself within the deadline. If it knows that the
// destination is away, it fails at once. It remembers topics that are away and asks them again at growing distances (Away), so
// that topics which never answer do not fill each call with their time-outs. If the destination refuses a message because it
// has it already, the message counts as accepted, unless it is New.
//
// Deliver must not change batch, and must not keep it after it has returned. Its errors contain no payload, no header, no
// credential and no address with credentials.
//
// Several lanes call Deliver at the same time. Close is called after the last Deliver has returned.
type Sink interface {
	Deliver(ctx context.Context, batch []Message) []error
	Close() error
}

var (
	// ErrPermanent marks a message that this destination will never accept.
	ErrPermanent = errors.New("permanently refused")
	// ErrUnavailable marks a destination that is away.
	ErrUnavailable = errors.New("unavailable")
	// ErrTopicUnavailable marks a message whose topic is away, missing or forbidden, at a destination that answers.
	ErrTopicUnavailable = errors.New("topic unavailable")
	// ErrNotAttempted marks a message that was not sent, because an earlier one of its aggregate was not accepted, because
	// there was no time to begin it, or because its topic is known to be away.
	ErrNotAttempted = errors.New("not attempted")

	errPutOff = fmt.Errorf("%w: its topic was found away, and is not asked again yet", ErrNotAttempted)
)

// Topics says whether the messages of a sink have different topics. They have, or may have, if the sink's own topic or a route
// to it contains a {field}, or if routes give it more than one topic.
type Topics uint8

const (
	OneTopic Topics = iota
	SeveralTopics
)

// Unavailable returns the class of an error that concerns what a message's topic names: see ErrTopicUnavailable.
func (t Topics) Unavailable() error {
	if t == SeveralTopics {
		return ErrTopicUnavailable
	}
	return ErrUnavailable
}

// Rememberer is a Sink that remembers what it found away, and leaves it alone for a while.
type Rememberer interface {
	Sink
	// AskNow makes the sink ask at once, with the next message, what it would otherwise leave alone: a person wants to know. Any
	// goroutine may call it while the sink is open.
	AskNow()
}

// Chooser is a Sink that gives each message to one of several destinations, its members.
type Chooser interface {
	Sink
	// DeliverBy does what Deliver does. It also returns, for each message that was accepted, the name of the member that has
	// accepted it. Both results are nil for an empty batch; members is never nil otherwise.
	DeliverBy(ctx context.Context, batch []Message) (errs []error, members []string)
}

// Uncertain adds to err that the destination may have accepted the message all the same. The class of err stays the same. A
// composite needs it, if one member gave no answer and the next one refused the message.
func Uncertain(err error) error { return uncertainError{err} }

// IsUncertain reports whether the destination may have accepted the message for which it gave err.
func IsUncertain(err error) bool {
	_, uncertain := errors.AsType[uncertainError](err)
	return uncertain || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTopicUnavailable)
}

type uncertainError struct{ error }

func (e uncertainError) Unwrap() error { return e.error }

// Throttled adds to err that the destination gets more than it wants to take. The class of err stays the same.
func Throttled(err error) error { return throttledError{err} }

// IsThrottled reports whether Throttled has added to err.
func IsThrottled(err error) bool {
	_, throttled := errors.AsType[throttledError](err)
	return throttled
}

type throttledError struct{ error }

func (e throttledError) Unwrap() error { return e.error }

// After adds to err that the destination asks not to be tried again before d has passed. The class of err stays the same.
func After(d time.Duration, err error) error { return afterError{err, d} }

// RetryAfter returns the d that After has added to err, and 0 if there is none.
func RetryAfter(err error) time.Duration {
	after, _ := errors.AsType[afterError](err)
	return after.wait
}

type afterError struct {
	error
	wait time.Duration
}

func (e afterError) Unwrap() error { return e.error }
