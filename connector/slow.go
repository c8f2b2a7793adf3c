package connector

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// slowTicks is how often within park_after the rule asks which sink the reader waits for.
const slowTicks = 40

// What the reader waits for, if it is not the lane of a processor.
const (
	waitsForNobody int32 = 0
	waitsForRing   int32 = -1
)

// slowRule protects sinks from each other. If a sink has made the reader wait for more than half of the last park_after, while another
// sink had nothing to do, the rule has its arrivals parked. With one sink there is nobody to protect, and the WAL is the queue.
type slowRule struct {
	tracker  *checkpoint.Tracker
	waits    *atomic.Int32 // what the reader waits for
	lanes    map[int32][]*lane
	lease    *lease                     // nil: lanes need none
	ticks    map[int32]*[slowTicks]bool // for each processor and each of the last ticks: it made the reader wait while another was idle
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

// tick notes which sink blocks the reader at this moment, and asks the lanes of slow sinks to park.
func (s *slowRule) tick() {
	blocks := s.blocks()
	if s.lease != nil && s.lease.wait(time.Now()) > 0 {
		blocks = waitsForNobody // no lane may deliver, which is no fault of its sink
	}
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

// blocks returns the sink that the reader is waiting for: the one whose lane channel is full, or the one that has not settled the oldest
// event of a full ring.
func (s *slowRule) blocks() int32 {
	waits := s.waits.Load()
	if waits != waitsForRing {
		return waits
	}
	head := s.tracker.Head() + 1
	for id, lanes := range s.lanes {
		for _, l := range lanes {
			if l.shown.oldest.Load() == head {
				return id
			}
		}
	}
	return waitsForNobody
}

// anotherIdle reports whether some sink other than this one has nothing to do.
func (s *slowRule) anotherIdle(than int32) bool {
	for id, lanes := range s.lanes {
		idle := id != than
		for _, l := range lanes {
			idle = idle && l.shown.idle.Load()
		}
		if idle {
			return true
		}
	}
	return false
}
