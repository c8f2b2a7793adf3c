package connector

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// A destination that refuses duplicates may mistake an event for another one with the same id, and what it says then must not
// count as delivered. So a lane tells the sink which messages are new (sinks.Message.New): those that no earlier session can
// have sent, and that were refused by an answer at each try of ours.
//
//  1. A session that ends with every outcome recorded, and nothing in its lanes that was tried and not settled, writes so into
//     the checkpoint (leave). The next one starts clean: what is not in the ledger was never sent.
//  2. After any other end, and a crash is one, whatever committed before this session began may have been sent: the session
//     before read no further than the server had written when it lost the slot. seenBefore is that position.
//  3. The same holds for rows of outbox_parked from before, whose last try may not be recorded. One that is refused now is
//     written with a try more than were refused, so that it never passes for new again. As long as there is one that was not
//     tried, or something of the stream from before is not settled, a session does not leave clean.
//  4. What a person retries begins with one try more than were refused, unless all were: see retryRows in admin/change.go.

// mayRepeat reports whether an earlier session may already have sent the event at this position.
func mayRepeat(pos checkpoint.Position, seenBefore pglogrepl.LSN) bool {
	return pos.LSN < seenBefore || pos.Index < 0 // what the stream never carried may have been sent before there was a slot
}

// isNew says that the destination cannot have accepted d.
func (d *delivery) isNew() bool { return !d.repeats && !d.isUncertain() }

// isUncertain says whether the outcome of some try of d is unknown: the sink may have accepted it. Attempts count the tries that were
// refused; tries count all.
func (d *delivery) isUncertain() bool { return d.attempts < d.tries }

// leaveTimeout bounds how long a session that ends tries to say that it ended clean.
const leaveTimeout = 2 * time.Second

// leavesNothing says whether everything that a session may have sent to a sink is settled. It is asked after the lanes have
// ended and the outcomes are recorded. What committed before seenBefore may have been sent by an earlier session.
func leavesNothing(lanes []*lane, t *checkpoint.Tracker, seenBefore pglogrepl.LSN) bool {
	return t.Confirmed() >= seenBefore && !slices.ContainsFunc(lanes, func(l *lane) bool { return len(l.inHand) > 0 })
}

// leave tells the next session, if it is so, that nothing was sent of which the ledger does not know. If this cannot be
// written, the next session only takes more for a repetition than it need.
func (s *session) leave(ctx context.Context) {
	if !leavesNothing(s.lanes, s.tracker, s.reader.seenBefore) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	processors := slices.Collect(maps.Keys(s.bySink))
	if err := s.c.schema().Leave(ctx, s.c.pool, s.c.cfg.Source.Slot, s.reader.start.Epoch, processors, s.reader.seenBefore); err != nil {
		s.c.cfg.Logger.Debug("a clean end was not recorded", "slot", s.c.cfg.Source.Slot, "err", err)
	}
}
