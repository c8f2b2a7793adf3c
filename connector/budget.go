package connector

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// deathBudget is how many messages of a sink may die before the sink has to accept something again.
	deathBudget = 5
	// suspectRate is how many due rows a second all lanes of a suspect sink try, and suspectCall the most that they try in one call.
	// Together they are 50: so many the receiver may be asked for in any second.
	suspectRate = 40
	suspectCall = 10
)

// budget is the death budget of a sink, which all of its lanes share. A receiver that refuses everything costs five dead letters,
// not all events: a message that may not die is parked, and tried again later. Each acceptance gives the whole budget back.
// While it is used up, the sink is suspect. Then its due rows are tried at a low rate, so that a thousand poisoned messages do
// not keep the receiver busy. Arrivals and fresh rows do not wait for that.
//
// The budget counts messages, not aggregates, one by one and in the order of a call's messages. It belongs to the connector and
// outlives sessions; a new process begins with five.
type budget struct {
	// changed is called when the sink becomes suspect, and when it is no longer. It must not log, and must not wait for anything.
	changed func(suspect bool)

	deaths atomic.Int32 // since the last acceptance. It changes only while mu is held

	mu     sync.Mutex // held for a few lines
	nextAt time.Time  // while suspect: no due row is tried before
	lanes  []*lane    // of the running session
}

func newBudget(changed func(suspect bool)) *budget { return &budget{changed: changed} }

// attach gives the budget the lanes of a new session.
func (b *budget) attach(lanes []*lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lanes = lanes
}

// suspect reports whether the budget is used up.
func (b *budget) suspect() bool { return b.deaths.Load() >= deathBudget }

// mayDie takes one death out of the budget, and reports whether there was one left.
func (b *budget) mayDie() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.suspect() {
		return false
	}
	if b.deaths.Add(1) == deathBudget {
		b.changed(true)
	}
	return true
}

// accepted gives the whole budget back. It is called for each message that was accepted, and costs nothing if none has died.
func (b *budget) accepted() {
	if b.deaths.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.suspect()
	b.deaths.Store(0)
	b.nextAt = time.Time{}
	if was {
		b.changed(false)
		for _, l := range b.lanes { // their due rows need not wait any longer
			l.ask(0)
		}
	}
}

// dueAt returns when a call with due rows may begin. The zero time says at once.
func (b *budget) dueAt() time.Time {
	if !b.suspect() {
		return time.Time{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nextAt
}

// take takes the turn of n due rows, if it has come. The next call with due rows has to wait until the rate allows for these.
func (b *budget) take(n int, now time.Time) bool {
	if !b.suspect() {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Before(b.nextAt) {
		return false
	}
	b.moveOn(n, now)
	return true
}

// count counts due rows that do not wait for their turn: those of a probe.
func (b *budget) count(n int, now time.Time) {
	if !b.suspect() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.moveOn(n, now)
}

func (b *budget) moveOn(n int, now time.Time) {
	if b.nextAt.Before(now) {
		b.nextAt = now
	}
	b.nextAt = b.nextAt.Add(time.Duration(n) * time.Second / suspectRate)
}
