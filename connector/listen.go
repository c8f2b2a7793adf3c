package connector

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	// pausedEvery is how often it is read which sinks are paused if nobody says that something has changed.
	pausedEvery = 30 * time.Second
	// minReadGap is the least time between two such reads.
	minReadGap = 200 * time.Millisecond
	// listenRetry is how long to wait before the next connection is made after an error.
	listenRetry = time.Second
)

// listener is a connection with LISTEN: pgListener, or a test's.
type listener interface {
	WaitForNotification(ctx context.Context) (*pgconn.Notification, error)
	activityReader
	close()
}

// listen keeps a connection with LISTEN until ctx ends. By it the connector hears at once when a person changes parked rows, pauses
// or resumes a sink, or wants it asked now. While there is no such connection, lanes still read outbox_parked every 30 s.
func (c *Connector) listen(ctx context.Context, s *session) {
	goes := dutyReport{c: c, duty: "listen"}
	for ctx.Err() == nil {
		err := c.listenOnce(ctx, s, func() { goes.report(nil) })
		if ctx.Err() != nil {
			return
		}
		goes.report(err)
		_ = wait.For(ctx, listenRetry) // the loop sees that ctx has ended
	}
}

// listenOnce makes one connection and listens on it until an error or the end of ctx. It calls works each time when it has read which
// sinks are paused.
func (c *Connector) listenOnce(ctx context.Context, s *session, works func()) error {
	beginning, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := c.db.listen(beginning)
	if err != nil {
		return err
	}
	defer conn.close()
	// Changes before LISTEN were not heard.
	s.countSoon()
	for _, l := range s.lanes {
		l.ask(askReread)
	}
	for {
		if err := readPausedInTime(ctx, conn, s); err != nil {
			return err
		}
		works()
		if err := c.awaitChange(ctx, conn, s); err != nil {
			return err
		}
	}
}

func readPausedInTime(ctx context.Context, conn listener, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return s.readPaused(ctx, conn)
}

// awaitChange returns when it is time to read again which sinks are paused: after pausedEvery, or already after minReadGap if a person has
// changed something. It tells the lanes of a sink of each change at once, and the sink's state what a command has changed. If a person
// wants the sink asked now, it also tells the breaker.
func (c *Connector) awaitChange(ctx context.Context, conn listener, s *session) error {
	now := time.Now()
	until := now.Add(pausedEvery)
	for {
		waiting, cancel := context.WithDeadline(ctx, until)
		n, err := conn.WaitForNotification(waiting)
		cancel()
		if err != nil {
			if waiting.Err() != nil && ctx.Err() == nil {
				return nil
			}
			return fmt.Errorf("wait for notifications: %w", err)
		}
		notice, ok := ledger.Schema(c.cfg.Source.LedgerSchema).ParseNotice(n.Payload)
		if ok && notice.Settles != "" && notice.Settles == c.cfg.Source.Slot {
			s.tracker.WriteIdle() // a command wants to know; see admin.Verify
		}
		if !ok || s.bySink[notice.Processor] == nil {
			continue
		}
		if notice.Rows.Transaction > 0 {
			s.changed([]ledger.RowChange{notice.Rows})
		}
		asks := askReread
		if notice.Retry {
			asks |= askRetry
			s.bySink[notice.Processor][0].askNow()
		}
		for _, l := range s.bySink[notice.Processor] {
			l.ask(asks)
		}
		// More changes may follow soon. One read is enough for all of them.
		if soon := now.Add(minReadGap); soon.Before(until) {
			until = soon
		}
	}
}

// activityReader is the database, or the listener.
type activityReader interface {
	// activity returns which of these sinks are paused.
	activity(ctx context.Context, processors []int32) (map[int32]ledger.Activity, error)
}

// readPaused reads which sinks a person has paused, and wakes the lanes of each sink for which that has changed.
func (s *session) readPaused(ctx context.Context, from activityReader) error {
	all, err := from.activity(ctx, s.processors())
	if err != nil {
		return err
	}
	for id, activity := range all {
		lanes := s.bySink[id]
		lanes[0].state.isPaused(activity)
		if paused := activity == ledger.Paused; lanes[0].paused.Swap(paused) != paused {
			for _, l := range lanes {
				l.ask(0)
			}
		}
	}
	return nil
}

// processors returns the processor ids of the session's sinks, in no order.
func (s *session) processors() []int32 {
	var ids []int32
	for id := range s.bySink {
		ids = append(ids, id)
	}
	return ids
}
