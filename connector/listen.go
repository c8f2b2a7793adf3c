package connector

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Changed is the channel on which whoever has changed rows of outbox_parked, or paused or resumed a sink, tells so. The
// payload is "schema of the ledger:processor", as channels belong to the whole database.
const Changed = "outbox_changed"

const (
	// countEvery is how often what is owed is counted.
	countEvery = 30 * time.Second
	// countPace is the least time between two counts.
	countPace = 200 * time.Millisecond
	// listenRetry is how long to wait before LISTEN is tried again.
	listenRetry = time.Second
	// stockTimeout bounds a count, which may have to look at millions of rows.
	stockTimeout = time.Minute
)

// listen keeps a connection that hears of what people do, until ctx ends. While it has none, lanes look at the table by
// themselves every 30 s.
func (c *Connector) listen(ctx context.Context, s *session) {
	for fine := false; ctx.Err() == nil; {
		err := c.listenOnce(ctx, s, func() {
			if !fine {
				c.cfg.Health.Set("keeper:listen", true, "")
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
		c.cfg.Health.Set("keeper:listen", false, errText(err))
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
	if _, err := conn.Exec(beginning, "listen "+Changed); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for _, l := range s.lanes { // what was said before nobody has heard
		l.ask(askLook)
	}
	for {
		began := time.Now()
		if err := c.takeStock(ctx, conn, s); err != nil {
			return err
		}
		fine()
		// Counting millions of rows must not become all that the server does.
		if err := c.awaitChange(ctx, conn, s, 20*time.Since(began)); err != nil {
			return err
		}
	}
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

type notified interface {
	WaitForNotification(ctx context.Context) (*pgconn.Notification, error)
}

// awaitChange returns when something has changed, or it is time to count again, but not before rest is over.
func (c *Connector) awaitChange(ctx context.Context, conn notified, s *session, rest time.Duration) error {
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
		for id, lanes := range s.bySink {
			if n.Payload != fmt.Sprintf("%s:%d", c.cfg.Source.LedgerSchema, id) {
				continue
			}
			for _, l := range lanes {
				l.ask(askLook)
			}
			// Many changes may follow each other: they are counted together.
			if soon := now.Add(max(countPace, rest)); soon.Before(until) {
				until = soon
			}
		}
	}
}

// takeStock asks which sinks are paused and what each has in outbox_parked.
func (c *Connector) takeStock(ctx context.Context, conn querier, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, stockTimeout)
	defer cancel()
	if err := c.readPauses(ctx, conn, s); err != nil {
		return err
	}
	rows, err := conn.Query(ctx, c.sql(`select p.id, count(*) filter (where k.status = 'parked'), count(*) filter (where k.status = 'dead'),
			coalesce(extract(epoch from clock_timestamp() - min(k.parked_at) filter (where k.status = 'parked')), 0)::float8
		from ledger.outbox_processors p left join ledger.outbox_parked k on k.processor_id = p.id where p.id = any ($1) group by p.id`), s.processors())
	if err != nil {
		return fmt.Errorf("count parked rows: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int32
		var o owed
		var oldest float64
		if err := rows.Scan(&id, &o.parked, &o.dead, &oldest); err != nil {
			return fmt.Errorf("count parked rows: %w", err)
		}
		o.oldest = time.Duration(oldest * float64(time.Second))
		s.bySink[id][0].state.owes(o)
	}
	return rows.Err()
}

// readPauses tells lanes whether a person has paused their sink.
func (c *Connector) readPauses(ctx context.Context, conn querier, s *session) error {
	rows, err := conn.Query(ctx, c.sql("select id, not is_active from ledger.outbox_processors where id = any ($1)"), s.processors())
	if err != nil {
		return fmt.Errorf("read which sinks are paused: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int32
		var paused bool
		if err := rows.Scan(&id, &paused); err != nil {
			return fmt.Errorf("read which sinks are paused: %w", err)
		}
		lanes := s.bySink[id]
		lanes[0].state.isPaused(paused)
		if lanes[0].paused.Swap(paused) != paused {
			for _, l := range lanes {
				l.ask(0)
			}
		}
	}
	return rows.Err()
}

func (s *session) processors() []int32 {
	var ids []int32
	for id := range s.bySink {
		ids = append(ids, id)
	}
	return ids
}

// reviseParked makes the times of parked rows those of this configuration: none is further away than the longest backoff, and a
// dead row holds its aggregate or not.
func (c *Connector) reviseParked(ctx context.Context, ids map[string]int32) error {
	var all []int32
	for _, id := range ids {
		all = append(all, id)
	}
	d := c.cfg.Delivery
	_, err := c.pool.Exec(ctx, c.sql(`update ledger.outbox_parked set next_attempt_at = now() + $2
		where processor_id = any ($1) and next_attempt_at > now() + $2 and next_attempt_at < 'infinity'`), all, d.Retry.Max)
	if err == nil && d.Block {
		_, err = c.pool.Exec(ctx, c.sql(`update ledger.outbox_parked set next_attempt_at = 'infinity'
			where processor_id = any ($1) and status = 'dead' and next_attempt_at is null`), all)
	} else if err == nil {
		_, err = c.pool.Exec(ctx, c.sql(`update ledger.outbox_parked set next_attempt_at = null
			where processor_id = any ($1) and status = 'dead' and next_attempt_at is not null`), all)
	}
	if err != nil {
		return fmt.Errorf("revise outbox_parked: %w", err)
	}
	return nil
}
