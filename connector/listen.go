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
	// countEvery is how often what is owed is counted.
	countEvery = 30 * time.Second
	// minCountGap is the least time between two counts.
	minCountGap = 200 * time.Millisecond
	// listenRetry is how long to wait before LISTEN is tried again.
	listenRetry = time.Second
	// countTimeout bounds a count, which may have to look at millions of rows.
	countTimeout = time.Minute
)

// listen keeps a connection that hears of what people do, until ctx ends. While it has none, lanes look at the table by
// themselves every 30 s.
func (c *Connector) listen(ctx context.Context, s *session) {
	for fine := false; ctx.Err() == nil; {
		err := c.listenOnce(ctx, s, func() {
			if !fine {
				c.cfg.Health.Set("keeper:listen", monitoring.Component{OK: true})
			}
			fine = true
		})
		if ctx.Err() != nil {
			return
		}
		if fine {
			c.cfg.Logger.Warn("keeper tries again", "duty", "listen", "err", err)
		}
		fine = false
		c.cfg.Health.Set("keeper:listen", monitoring.Component{Detail: errText(err)})
		_ = pause(ctx, listenRetry) // the loop sees that ctx has ended
	}
}

func (c *Connector) listenOnce(ctx context.Context, s *session, fine func()) error {
	beginning, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := c.connect(beginning)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // nothing is lost with it
	}()
	if err := ledger.ListenChanged(beginning, conn); err != nil {
		return err
	}
	for _, l := range s.lanes { // nobody has heard what was said until now
		l.ask(askReread)
	}
	for {
		began := time.Now()
		if err := c.readPausedAndCounts(ctx, conn, s); err != nil {
			return err
		}
		fine()
		// Counting millions of rows must not become all that the server does.
		if err := c.awaitChange(ctx, conn, s, 20*time.Since(began)); err != nil {
			return err
		}
	}
}

type notificationSource interface {
	WaitForNotification(ctx context.Context) (*pgconn.Notification, error)
}

// awaitChange returns when something has changed, or it is time to count again, but not before rest is over.
func (c *Connector) awaitChange(ctx context.Context, conn notificationSource, s *session, rest time.Duration) error {
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
		id, ok := c.schema().ChangedProcessor(n.Payload)
		if !ok || s.bySink[id] == nil {
			continue
		}
		for _, l := range s.bySink[id] {
			l.ask(askReread)
		}
		// Many changes may follow each other. They are counted together.
		if soon := now.Add(max(minCountGap, rest)); soon.Before(until) {
			until = soon
		}
	}
}

// readPausedAndCounts asks which sinks are paused and what each has in outbox_parked.
func (c *Connector) readPausedAndCounts(ctx context.Context, db ledger.Querier, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	if err := c.readPaused(ctx, db, s); err != nil {
		return err
	}
	counts, err := c.schema().CountParked(ctx, db, s.processors())
	if err != nil {
		return err
	}
	for id, count := range counts {
		s.bySink[id][0].state.counted(count)
	}
	return nil
}

// readPaused tells the lanes whether a person has paused their sink.
func (c *Connector) readPaused(ctx context.Context, db ledger.Querier, s *session) error {
	all, err := c.schema().ReadActivity(ctx, db, s.processors())
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

func (s *session) processors() []int32 {
	var ids []int32
	for id := range s.bySink {
		ids = append(ids, id)
	}
	return ids
}
