package connector

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// turnStep is how long a lane waits for the lane whose turn comes before its own, when the breaker is half-open.
const turnStep = 100 * time.Millisecond

// BreakerConfig says when a sink is left alone.
type BreakerConfig struct {
	Enabled bool
	// MaxFailures is the number of Deliver calls in a row that found the destination away.
	MaxFailures int
	// ResetTimeout is how long the sink is left alone before one message asks whether it is back.
	ResetTimeout time.Duration
}

// breakerState is the state of a sink's breaker. The numbers are those of the metric.
type breakerState uint8

const (
	// breakerClosed: the sink is called.
	breakerClosed breakerState = iota
	// breakerHalfOpen: one message, the probe, asks whether the destination is back.
	breakerHalfOpen
	// breakerOpen: the sink is left alone.
	breakerOpen
)

var breakerStateNames = [...]string{"closed", "half-open", "open"}

func (s breakerState) String() string { return breakerStateNames[s] }

// breakerOwner is what a breaker knows of its sink.
type breakerOwner struct {
	name   string // of the sink
	never  bool   // park_after: never. Nothing is parked, so the lanes are not asked to park
	logger *slog.Logger
	// changed is called with the first state and each new one, in their order. asksAt is when the breaker asks next, if it is open.
	// It must not log, and must not wait for anything.
	changed func(state breakerState, asksAt time.Time)
}

// breaker decides when a sink is left alone. It judges the destination, never a message, and has one reason to open: calls in
// a row that found the destination away. It outlives sessions. The lanes call it from their own goroutines, and it wakes them by
// lane.ask.
type breaker struct {
	breakerOwner
	cfg BreakerConfig

	closed atomic.Bool // whether state is breakerClosed. Lanes ask before each Deliver, and need no lock for this answer

	mu      sync.Mutex // held for a few lines, never while something is logged
	state   breakerState
	failed  int         // calls in a row that found the destination away, with nothing accepted and nothing answered
	lanes   []*lane     // of the running session
	last    int         // the lane that probed last
	half    time.Time   // when the breaker became half-open, or when the last probe ended that was not attempted
	probing bool        // a probe is being delivered
	timer   *time.Timer // makes the breaker half-open
}

func newBreaker(owner breakerOwner, cfg BreakerConfig) *breaker {
	b := &breaker{breakerOwner: owner, cfg: cfg}
	b.closed.Store(true)
	b.changed(breakerClosed, time.Time{})
	return b
}

// attach gives the breaker the lanes of a new session. If the session before has ended without the answer to its probe, another
// lane may probe.
func (b *breaker) attach(lanes []*lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lanes, b.probing = lanes, false
}

// close ends the breaker's timer.
func (b *breaker) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lanes = nil
	if b.timer != nil {
		b.timer.Stop()
	}
}

// permission says whether a lane may start a Deliver.
type permission struct {
	ok    bool
	probe bool          // with one message only
	wait  time.Duration // if not ok: ask again after this time; 0: the breaker wakes the lane
	open  bool          // not ok, because the sink is left alone
}

// may reports whether this lane may start a Deliver now. claim does that.
func (b *breaker) may(lane int, now time.Time) permission {
	if b.closed.Load() {
		return permission{ok: true}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mayLocked(lane, now)
}

// mayLocked is may for a caller that holds mu.
func (b *breaker) mayLocked(lane int, now time.Time) permission {
	switch {
	case b.state == breakerClosed:
		return permission{ok: true}
	case b.state == breakerOpen:
		return permission{open: true}
	case b.probing || len(b.lanes) == 0:
		return permission{}
	}
	// Lanes take turns: a lane whose messages are never answered must not keep the others out.
	n := len(b.lanes)
	turn := ((lane-b.last-1)%n + n) % n
	if wait := b.half.Add(time.Duration(turn) * min(turnStep, b.cfg.ResetTimeout/time.Duration(2*n))).Sub(now); wait > 0 {
		return permission{wait: wait}
	}
	return permission{ok: true, probe: true}
}

// claim starts a Deliver, as far as the breaker is concerned. It may fail although may has just permitted it, because another
// lane was faster. Each call that was claimed is ended by judge.
func (b *breaker) claim(lane int, now time.Time) permission {
	if b.closed.Load() {
		return permission{ok: true}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.mayLocked(lane, now)
	if p.probe {
		b.probing, b.last = true, lane
	}
	return p
}

// verdict counts what the answers to one Deliver say of the destination. What was not attempted says nothing.
type verdict struct {
	accepted, away, answered int
	news                     bool // a message was tried for the first time: failures that are only repeated say nothing new
	ended                    bool // the session has ended the call, which says nothing of the destination
	probe                    bool // the call was a probe: see permission
}

// judge ends a call that was claimed.
func (b *breaker) judge(v verdict) {
	b.mu.Lock()
	log := b.judgeLocked(v)
	b.mu.Unlock()
	if log != nil {
		log()
	}
}

// judgeLocked does what a verdict asks for. It returns a function that logs it, for after mu was released, or nil. The caller holds mu.
func (b *breaker) judgeLocked(v verdict) (log func()) {
	if v.accepted > 0 {
		b.failed = 0
	}
	if v.probe {
		b.probing = false
		switch {
		case b.state != breakerHalfOpen: // it was opened or closed meanwhile
			return nil
		case v.accepted > 0 || v.answered > 0:
			b.set(breakerClosed)
			b.failed = 0
			b.wake()
			return func() { b.logger.Debug("breaker closed: the sink answers again", "sink", b.name) }
		case v.away > 0 && !v.ended:
			b.open()
			return func() { b.logger.Debug("breaker open again: the sink is still away", "sink", b.name) }
		}
		b.half = time.Now() // the probe was not attempted: another lane, or another message, asks at once
		b.wake()
		return nil
	}
	switch {
	case b.state != breakerClosed || !b.cfg.Enabled || v.accepted > 0 || v.ended:
		return nil
	case v.answered > 0:
		b.failed = 0
	case v.away > 0 && (v.news || b.never):
		b.failed++
	}
	if b.failed < b.cfg.MaxFailures {
		return nil
	}
	b.open()
	return func() {
		b.logger.Debug("breaker open: the destination is away, and the sink is left alone", "sink", b.name, "for", b.cfg.ResetTimeout.String())
	}
}

// set changes the state. The caller holds mu.
func (b *breaker) set(state breakerState) {
	b.state = state
	b.closed.Store(state == breakerClosed)
	var asksAt time.Time
	if state == breakerOpen {
		asksAt = time.Now().Add(b.cfg.ResetTimeout)
	}
	b.changed(state, asksAt)
}

// open leaves the sink alone for the reset time, and asks the lanes to park. The caller holds mu.
func (b *breaker) open() {
	b.set(breakerOpen)
	if !b.never {
		for _, l := range b.lanes {
			l.ask(askPark)
		}
	}
	b.timer = time.AfterFunc(b.cfg.ResetTimeout, b.askNow)
}

// askNow makes an open breaker half-open: the reset time is over, or a person wants to know now. In another state it does
// nothing.
func (b *breaker) askNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != breakerOpen || b.lanes == nil {
		return
	}
	b.timer.Stop()
	b.set(breakerHalfOpen)
	b.half = time.Now()
	b.wake()
}

// wake makes all lanes look what they may do now. The caller holds mu.
func (b *breaker) wake() {
	for _, l := range b.lanes {
		l.ask(0)
	}
}
