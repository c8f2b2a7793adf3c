package connector

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// countEvery is how often the parked rows are counted if nobody changes anything.
	countEvery = 30 * time.Second
	// minCountGap is the least time from the end of a count until the next one.
	minCountGap = 200 * time.Millisecond
	// listenRetry is how long to wait before the next connection is made after an error.
	listenRetry = time.Second
	// countTimeout bounds one count, which may have to read millions of rows.
	countTimeout = time.Minute
)

// listener is a connection with LISTEN: pgListener, or a test's.
type listener interface {
	WaitForNotification(ctx context.Context) (*pgconn.Notification, error)
	activityReader
	// countParked counts the parked rows of these sinks. It may have to look at millions of rows.
	countParked(ctx context.Context, processors []int32) (map[int32]ledger.ParkedCount, error)
	close()
}

// listen keeps a connection with LISTEN until ctx ends. By it the connector hears at once when a person changes parked rows, pauses
// or resumes a sink, or wants it asked now. While there is no such connection, lanes still read outbox_parked every 30 s.
func (c *Connector) listen(ctx context.Context, s *session) {
	for works := false; ctx.Err() == nil; {
		err := c.listenOnce(ctx, s, func() {
			if !works {
				c.cfg.Health.Set("keeper:listen", monitoring.OK(""))
			}
			works = true
		})
		if ctx.Err() != nil {
			return
		}
		c.noteLogin(err)
		if works {
			c.cfg.Logger.Warn("keeper tries again", "duty", "listen", "err", err)
		}
		works = false
		c.cfg.Health.Set("keeper:listen", monitoring.Degraded(errText(err)))
		_ = sleep(ctx, listenRetry) // the loop sees that ctx has ended
	}
}

// listenOnce makes one connection and listens on it until an error or the end of ctx. It calls counted after each count
// that has succeeded.
func (c *Connector) listenOnce(ctx context.Context, s *session, counted func()) error {
	beginning, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := c.db.listen(beginning)
	if err != nil {
		return err
	}
	defer conn.close()
	for _, l := range s.lanes { // changes before LISTEN were not heard
		l.ask(askReread)
	}
	for {
		began := time.Now()
		if err := c.readPausedAndCounts(ctx, conn, s); err != nil {
			return err
		}
		counted()
		// A count of millions of rows takes long. The rest of 20 times as long keeps it from being all that the server does.
		if err := c.awaitChange(ctx, conn, s, 20*time.Since(began)); err != nil {
			return err
		}
	}
}

// awaitChange returns when it is time to count again: after countEvery, or already after minCountGap if a person has changed
// something, but never before rest is over. It tells the lanes of a sink of each change at once. If a person wants the sink asked now,
// it also tells the breaker.
func (c *Connector) awaitChange(ctx context.Context, conn listener, s *session, rest time.Duration) error {
	now := time.Now()
	until := now.Add(max(countEvery, rest))
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
		if !ok || s.bySink[notice.Processor] == nil {
			continue
		}
		asks := askReread
		if notice.Retry {
			asks |= askRetry
			s.bySink[notice.Processor][0].askNow()
		}
		for _, l := range s.bySink[notice.Processor] {
			l.ask(asks)
		}
		// More changes may follow soon. One count is enough for all of them.
		if soon := now.Add(max(minCountGap, rest)); soon.Before(until) {
			until = soon
		}
	}
}

// readPausedAndCounts reads which sinks are paused, counts the parked rows of each sink, and shows the counts.
func (c *Connector) readPausedAndCounts(ctx context.Context, conn listener, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	if err := s.readPaused(ctx, conn); err != nil {
		return err
	}
	counts, err := conn.countParked(ctx, s.processors())
	if err != nil {
		return err
	}
	for id, count := range counts {
		s.bySink[id][0].state.counted(count)
	}
	return nil
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
