// Package sinks holds the contract between the connector and a destination. One package below it implements it for
// each kind of destination; sinktest is the suite that every one of them passes.
package sinks

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Message is one event on its way to one sink.
type Message struct {
	// Event is shared with other sinks: read it, never change it.
	Event *outbox.Event
	// Topic and Key are the route's, expanded for this event.
	Topic string
	Key   string
	// LSN (of the transaction's commit record) and Index (among the transaction's inserts, from 0) are the event's
	// position: unique, and in the order of commit.
	LSN   pglogrepl.LSN
	Index int64
	// CommitTime is when the transaction committed, by PostgreSQL's clock.
	CommitTime time.Time
	// Attempt counts the tries of this message, from 1.
	Attempt int
	// Origin names the table that the event comes from, as the function Origin makes it. UniqueID puts it before an id that
	// is unique within its table only.
	Origin string
	// New says that the destination cannot have accepted this message before: no session before this one can have sent it,
	// and each try so far was refused by an answer. A destination that says of it that it has it already takes it for
	// another one, and would lose it: that is an error. Of a message that is not New such an answer means that it was accepted.
	New bool
}

// Sink delivers messages to one destination.
//
// Deliver returns nil when the destination has durably accepted all of batch. Otherwise it returns one error a
// message, in the order of batch, nil where that message was accepted. Each error is of one of three classes:
//
//   - ErrPermanent: this very message can never be accepted (too large, an illegal topic name). It becomes a dead
//     letter. A refusal of several messages together says nothing of one: Deliver sends them again, fewer at a time,
//     one by one in the end.
//   - ErrUnavailable: the destination is away (cannot dial, time-out, not leader, unknown topic, no right to it).
//     It uses up no attempt, however often.
//   - anything else: this message was refused this time. It uses up an attempt.
//
// After a message of an aggregate that was not accepted, for whatever reason, no later message of the same aggregate
// in the batch may be accepted: those return ErrNotAttempted. So does what there was no time to begin, which says nothing of
// the destination. Order across aggregates is of no concern.
//
// Deliver returns when ctx ends, at the latest; what was on the wire then is of unknown outcome and is reported as
// ErrUnavailable, all of an aggregate that was. It does not retry beyond what a client library does by itself within
// the deadline. What it knows to be away it fails at once. A message that the destination has already (it refuses
// duplicates) was accepted, unless it is New. It must not keep batch, nor change it, after it has
// returned. Errors hold no payload, header, credential or address with credentials.
//
// Deliver is called by several lanes at once; Close only after the last Deliver has returned.
type Sink interface {
	Deliver(ctx context.Context, batch []Message) []error
	Close() error
}

var (
	// ErrPermanent marks a message that this destination will never accept.
	ErrPermanent = errors.New("permanently refused")
	// ErrUnavailable marks a destination that is away.
	ErrUnavailable = errors.New("unavailable")
	// ErrNotAttempted marks a message that stands behind one of its aggregate that was not accepted, or that there was no time
	// to begin.
	ErrNotAttempted = errors.New("not attempted")
)

// After says of err that the destination asked not to be tried again before d has passed. Its class stays.
func After(d time.Duration, err error) error { return afterError{err, d} }

// RetryAfter is what After says of err; 0 if nothing.
func RetryAfter(err error) time.Duration {
	after, _ := errors.AsType[afterError](err)
	return after.wait
}

type afterError struct {
	error
	wait time.Duration
}

func (e afterError) Unwrap() error { return e.error }
