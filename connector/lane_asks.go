package connector

import (
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// What a lane can be asked for.
const (
	askPark   uint32 = 1 << iota // park arrivals from now on: the breaker is open, or the sink is too slow
	askReread                    // read the table again: somebody has changed rows
	askRetry                     // try what is in hand again now: a person wants the sink asked
	askBack                      // what has waited for the destination is due: it answers again
	askChunk                     // read the table: a job has parked rows
)

// ask asks something of the lane and wakes it. With 0 it only wakes it. Safe for all goroutines.
func (l *lane) ask(what uint32) {
	l.asks.Or(what)
	select {
	case l.asked <- struct{}{}:
	default:
	}
}

// takeAsks takes what others have asked for since the last step.
func (l *lane) takeAsks(now time.Time) {
	// This comes before the asks: if the job is done, its last chunk is among the asks, and the lane must not read behind it.
	l.table.before = l.backlog.before()
	asks := l.asks.Swap(0)
	if asks&askReread != 0 || !now.Before(l.table.rereadAt) {
		l.table.changed = true
	}
	if !now.Before(l.table.rereadAt) {
		l.table.rereadAt = now.Add(rereadEvery)
	}
	if asks&askReread != 0 {
		l.rows = nil                              // a person may have deleted some of these rows,
		l.table.floor.at = checkpoint.MinPosition // or made others untried
	}
	if asks&askChunk != 0 {
		var first checkpoint.Position
		l.table.chunk, first = l.backlog.chunk()
		l.table.floor.others(first)
		l.table.changed = true
	}
	if asks&askRetry != 0 {
		l.hand.at = time.Time{}
	}
	if asks&askBack != 0 {
		l.answersAgain(now)
	}
	if asks&askPark != 0 {
		if l.mode == modeParking && !l.breaker.closed.Load() {
			l.rows = nil // the next read finds the row for the probe
		}
		l.park = l.mode != modeParking
	}
}
