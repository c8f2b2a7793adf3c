package connector

import (
	"context"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	// countEvery is how often the parked rows are counted. Between two counts the numbers follow the changes that are told: see owedRows.
	countEvery = 30 * time.Second
	// countTimeout bounds one count, which may have to read millions of rows.
	countTimeout = time.Minute
	// countRest and lookRest are for how long a count and a look for the oldest row rest, in times of what they have taken. Counts of
	// millions of rows must not be all that the server does.
	countRest = 20
	lookRest  = 10
	// countRetry is when a count that has failed is tried again, unless it has failed because it took too long.
	countRetry = 5 * time.Second
	// countTick is the least time between two looks for the oldest parked row.
	countTick = time.Second
)

// countsDatabase is PostgreSQL as counting needs it.
type countsDatabase interface {
	// countParked counts the parked rows of these sinks. It may have to look at millions of rows.
	countParked(ctx context.Context, processors []int32) (ledger.ParkedCounts, error)
	// oldestParked finds the oldest parked row of a sink.
	oldestParked(ctx context.Context, q ledger.OldestQuery) (ledger.OldestParked, error)
}

// changed takes what a transaction has changed in outbox_parked. The recorder's goroutine calls it, and the listener's.
func (s *session) changed(changes []ledger.RowChange) {
	for _, c := range changes {
		if lanes := s.bySink[c.Processor]; lanes != nil {
			lanes[0].state.owedChanged(c)
		}
	}
}

// countSoon makes the next count come as soon as the rest after the last one allows.
func (s *session) countSoon() {
	select {
	case s.recount <- struct{}{}:
	default:
	}
}

// keepCounts counts the parked rows until ctx ends: every countEvery, and as soon as its rest allows if countSoon asks for it. The first
// count waits for LISTEN, but for countTick at most: what a person changes after the count and before LISTEN is not heard.
func (c *Connector) keepCounts(ctx context.Context, s *session) {
	goes := dutyReport{c: c, duty: "counts"}
	due, restEnds := time.Now().Add(countTick), time.Time{}
	for {
		wait := time.NewTimer(time.Until(due))
		select {
		case <-s.recount:
			due = restEnds
		case <-wait.C:
			began := time.Now()
			err := c.count(ctx, s)
			if ctx.Err() != nil {
				break
			}
			goes.report(err)
			took := time.Since(began)
			restEnds = time.Now().Add(countRest * took)
			due = later(began.Add(countEvery), restEnds)
			if err != nil && took < countTimeout {
				due = time.Now().Add(countRetry)
			}
		case <-ctx.Done():
		}
		wait.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *Connector) count(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	for _, lanes := range s.bySink {
		lanes[0].state.countBegins()
	}
	counts, err := c.db.countParked(ctx, s.processors())
	for id, lanes := range s.bySink {
		var count *ledger.ParkedCount
		if found, ok := counts.Sinks[id]; ok && err == nil {
			count = &found
		}
		lanes[0].state.countEnds(counts.Point, count)
	}
	return err
}

// keepOldest looks for the oldest parked row of each sink when it may be another one than before, until ctx ends. Every second it also
// brings the numbers in /readyz up to date.
func (c *Connector) keepOldest(ctx context.Context, s *session) {
	goes := dutyReport{c: c, duty: "oldest parked"}
	var restEnds time.Time
	for wait.For(ctx, countTick) == nil {
		if began := time.Now(); !began.Before(restEnds) {
			err := c.lookForOldest(ctx, s)
			if ctx.Err() != nil {
				return
			}
			goes.report(err)
			restEnds = time.Now().Add(lookRest * time.Since(began))
		}
		for _, lanes := range s.bySink {
			lanes[0].state.owedShown()
		}
	}
}

func (c *Connector) lookForOldest(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	for id, lanes := range s.bySink {
		state := lanes[0].state
		from, stale := state.oldestIsStale()
		if !stale {
			continue
		}
		prefix := s.tracker.Snapshot(time.Now()).Prefix.LSN
		oldest, err := c.db.oldestParked(ctx, ledger.OldestQuery{Processor: id, From: from, Window: c.cfg.Delivery.MaxInFlight})
		if err != nil {
			state.oldestUnknown()
			return err
		}
		state.oldestFound(oldest, prefix)
	}
	return nil
}

// The methods of sinkState by which listener, recorder, keepCounts and keepOldest tell what they know of the sink's parked rows.

func (s *sinkState) owedChanged(c ledger.RowChange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed.add(c, time.Now())
}

func (s *sinkState) countBegins() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed.begin()
}

func (s *sinkState) countEnds(point ledger.CountPoint, count *ledger.ParkedCount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed.end(point, count, time.Now())
	s.show()
}

func (s *sinkState) oldestIsStale() (from pglogrepl.LSN, stale bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owed.look()
}

func (s *sinkState) oldestUnknown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed.stale = true
}

func (s *sinkState) oldestFound(oldest ledger.OldestParked, prefix pglogrepl.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed.found(oldest, prefix, time.Now())
}

// owedShown shows the numbers in /readyz. It is called every second, because they change too often for each change to be shown.
func (s *sinkState) owedShown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owed.isShown() || !s.inSession {
		return
	}
	s.health.Set("sink:"+s.name, s.snapshot().Component())
}

// owedUnknown forgets the numbers: another process changes the rows now.
func (s *sinkState) owedUnknown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed = owedRows{}
}
