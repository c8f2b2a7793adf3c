package connector

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// slowTicks is how often within park_after it is looked for whom the reader waits.
const slowTicks = 40

// What the reader waits for, beside the processor of a lane.
const (
	waitsForNobody int32 = 0
	waitsForRing   int32 = -1
)

// slowRule protects sinks from each other: one that has made the reader wait for more than half of the last park_after, while
// another had nothing to do, has its arrivals parked. With one sink there is nobody to protect: the WAL is the queue.
type slowRule struct {
	tracker  *checkpoint.Tracker
	waits    *atomic.Int32 // what the reader waits for
	lanes    map[int32][]*lane
	ticks    map[int32]*[slowTicks]bool // the last ones: it made the reader wait while another was idle
	n        int
	interval time.Duration
}

func newSlowRule(tracker *checkpoint.Tracker, waits *atomic.Int32, lanes map[int32][]*lane, within time.Duration) *slowRule {
	s := &slowRule{tracker: tracker, waits: waits, lanes: lanes, ticks: map[int32]*[slowTicks]bool{}, interval: within / slowTicks}
	for id := range lanes {
		s.ticks[id] = new([slowTicks]bool)
	}
	return s
}

// run ends with ctx.
func (s *slowRule) run(ctx context.Context) {
	tick := time.NewTicker(max(s.interval, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.tick()
		case <-ctx.Done():
			return
		}
	}
}

func (s *slowRule) tick() {
	blocks := s.blocks()
	s.n++
	for id, ticks := range s.ticks {
		ticks[s.n%slowTicks] = id == blocks && s.anotherIdle(id)
		slow := 0
		for _, t := range ticks {
			if t {
				slow++
			}
		}
		if slow > slowTicks/2 {
			for _, l := range s.lanes[id] {
				l.ask(askPark)
			}
		}
	}
}

// blocks names the sink that the reader waits for: whose lane takes nothing, or that owes the oldest event of a full ring.
func (s *slowRule) blocks() int32 {
	waits := s.waits.Load()
	if waits != waitsForRing {
		return waits
	}
	head := s.tracker.Head() + 1
	for id, lanes := range s.lanes {
		for _, l := range lanes {
			if l.oldest.Load() == head {
				return id
			}
		}
	}
	return waitsForNobody
}

func (s *slowRule) anotherIdle(than int32) bool {
	for id, lanes := range s.lanes {
		idle := id != than
		for _, l := range lanes {
			idle = idle && l.idle.Load()
		}
		if idle {
			return true
		}
	}
	return false
}
