package connector

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// A destination that rejects duplicates may mistake an event for another one with the same id. What it says then must not count
// as delivered. So a lane tells the sink which messages are new (sinks.Message.New): those that no earlier session can have
// sent, and for which the sink has answered each try of this session with a refusal.
//
//  1. A session ends clean if every outcome is recorded and no lane holds a message that was tried and is not settled. It writes
//     that into the checkpoint (session.leave). The next session then knows: what is not in the ledger was never sent.
//  2. After any other end, such as a crash, everything that committed before the new session began may have been sent. It cannot
//     be more than that: the session before read only what the server had written by the time when it lost the slot.
//     seenBefore is how far the server had written when the new session had the slot.
//  3. The same holds for rows that an earlier session left in outbox_parked, because their last try may not be recorded. If such
//     a row is refused now, it is written with one more try than it has refusals, so that it never counts as new again. As long
//     as one of these rows was not tried, or something that committed before seenBefore is not settled, a session does not
//     end clean.
//  4. A row that a person retries begins with one more try than it has refusals, unless each of its tries was refused: see
//     retryRows in ledger/client_change.go.
//  5. If one member of a composite gave no answer and another one refused the message, that refusal is no proof
//     (sinks.IsUncertain). The message then counts as one that an earlier session may have sent.

// mayRepeat reports whether an earlier session may already have sent the event at this position.
func mayRepeat(pos checkpoint.Position, seenBefore pglogrepl.LSN) bool {
	// An event with a negative index never came on the stream. It may have been sent before there was a slot.
	return pos.LSN < seenBefore || pos.Index < 0
}

// isNew reports whether the destination cannot have accepted d yet.
func (d *delivery) isNew() bool { return !d.repeats && !d.isUncertain() }

// isUncertain reports whether the outcome of some try of d is unknown, so that the sink may have accepted it. tries counts all
// tries, attempts only those that were refused.
func (d *delivery) isUncertain() bool { return d.attempts < d.tries }

// leaveTimeout is how long a session that has ended clean may take to write that into the checkpoint.
const leaveTimeout = 2 * time.Second

// leavesNothing reports whether everything is settled that this session or an earlier one may have sent to a sink. It is called
// after the lanes have ended and their outcomes are recorded. An earlier session may have sent what committed before
// seenBefore.
func leavesNothing(lanes []*lane, t *checkpoint.Tracker, seenBefore pglogrepl.LSN) bool {
	return t.Confirmed() >= seenBefore && !slices.ContainsFunc(lanes, func(l *lane) bool { return len(l.hand.list) > 0 })
}

// leave writes into the checkpoint that the session has ended, and whether it was clean: everything that was sent is in the ledger. If that
// cannot be written, no harm is done: the next session takes more messages than necessary for possible repetitions. A session that ends
// while the one before it may still have a lease does not sign off, because its successor would deliver at once.
func (s *session) leave(ctx context.Context) {
	if time.Now().Before(s.lease.notBefore) {
		return
	}
	seenBefore := s.reader.seenBefore
	d := ledger.Departure{Epoch: s.reader.start.Epoch, Clean: leavesNothing(s.lanes, s.tracker, seenBefore), Processors: s.processors(), SeenBefore: seenBefore}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := s.c.db.leave(ctx, d); err != nil {
		s.c.cfg.Logger.Debug("the end of the session was not recorded", "slot", s.c.cfg.Source.Slot, "err", err)
	}
}
