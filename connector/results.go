package connector

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/wait"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// resultsDatabase is PostgreSQL as the results need it.
type resultsDatabase interface {
	// writeResults writes the results of minutes. It may be called again with the same batch.
	writeResults(ctx context.Context, batch *ledger.ResultBatch) error
	// readResults reads the past of these sinks.
	readResults(ctx context.Context, processors []int32) (ledger.ResultHistory, error)
}

func (p *postgres) writeResults(ctx context.Context, batch *ledger.ResultBatch) error {
	return p.WriteResults(ctx, p.pool, batch)
}

func (p *postgres) readResults(ctx context.Context, processors []int32) (ledger.ResultHistory, error) {
	return p.ReadResults(ctx, p.pool, processors)
}

// resultsBatch is what is being written of the results of all sinks: a batch stays as it is until it is known to be written, because
// the answer to a try may have been lost. It outlives sessions. Only keepResults uses it, and the end of the session after that.
type resultsBatch struct {
	ledger.ResultBatch
	taken map[*sinkResults]int // how many minutes of each are in it
}

// keepResults writes the results of each minute to the ledger soon after it is over, and reads the past once, until ctx ends. A minute without
// events costs no statement.
func (c *Connector) keepResults(ctx context.Context, s *session) {
	goes := dutyReport{c: c, duty: "objectives"}
	read := false
	for {
		err := c.writeResults(ctx, s, completeMinute)
		if err == nil && !read {
			err = c.readResults(ctx, s)
			read = err == nil
		}
		if ctx.Err() != nil {
			return
		}
		goes.report(err)
		pause := s.untilNextMinute(time.Now())
		if err != nil {
			pause = min(pause, dutyRetry)
		}
		if wait.For(ctx, pause) != nil {
			return
		}
	}
}

// untilNextMinute returns how long it is until the present minute is over.
func (s *session) untilNextMinute(now time.Time) time.Duration {
	for _, lanes := range s.bySink { // all have the same clock
		return lanes[0].objective.untilNextMinute(now)
	}
	return time.Minute
}

func (o *sinkResults) untilNextMinute(now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	now = now.Add(o.clock)
	return now.Truncate(time.Minute).Add(time.Minute).Sub(now)
}

// writeResults writes the minutes that are over, and with endedMinute the present one too.
func (c *Connector) writeResults(ctx context.Context, s *session, upTo completeness) error {
	b := &c.kept.results
	for {
		fresh := len(b.Minutes) == 0
		if fresh {
			c.kept.results = resultsBatch{ResultBatch: ledger.ResultBatch{ID: rand.Text()}, taken: map[*sinkResults]int{}}
			for id, lanes := range s.bySink {
				o := lanes[0].objective
				minutes := o.over(time.Now(), upTo)
				for i := range minutes {
					minutes[i].Processor = id
				}
				b.Minutes = append(b.Minutes, minutes...)
				b.taken[o] = len(minutes)
			}
		}
		if len(b.Minutes) == 0 {
			return nil
		}
		writing, cancel := context.WithTimeout(ctx, dutyTimeout)
		err := c.db.writeResults(writing, &b.ResultBatch)
		cancel()
		if err != nil {
			return err
		}
		for o, n := range b.taken {
			o.written(n)
		}
		c.kept.results = resultsBatch{}
		if fresh {
			return nil
		}
	}
}

// lastResults is how long the end of a session may wait for the last minute to be written.
const lastResults = time.Second

// leaveResults writes what the session has counted in its last minute. What cannot be written stays for the next session of this process.
func (s *session) leaveResults(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastResults)
	defer cancel()
	if err := s.c.writeResults(ctx, s, endedMinute); err != nil {
		s.c.cfg.Logger.Debug("the results of the last minute were not written", "slot", s.c.cfg.Source.Slot, "err", err)
	}
}

// readResults reads the past of all sinks.
func (c *Connector) readResults(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	asked := time.Now()
	history, err := c.db.readResults(ctx, s.processors())
	if err != nil {
		return err
	}
	for id, lanes := range s.bySink {
		lanes[0].objective.remember(id, &history, asked)
	}
	return nil
}
