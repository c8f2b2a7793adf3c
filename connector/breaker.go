package connector

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// turnStep is how long a lane waits for the lane whose turn comes before its own, when the breaker is half-open.
	turnStep = 100 * time.Millisecond
	// nothingToAsk is for how long a breaker must have been half-open without a probe, before it is certain that no lane has a message
	// to ask with. A lane that has one needs a read of its rows first.
	nothingToAsk = 5 * time.Second
)

// BreakerConfig says when a sink is left alone.
type BreakerConfig struct {
	Enabled bool
	// MaxFailures is the number of Deliver calls in a row that found the destination away.
	MaxFailures int
	// ResetTimeout is how long the sink is left alone before one message asks whether it is back. No message waits longer for a
	// destination that was away, also where the breaker is not enabled.
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
	early   bool        // it has asked before its time, because something said that the destination is back; not again before its time
	gone    bool        // the last call that says something of the destination had nothing accepted and nothing answered
	backAt  time.Time   // when the destination answered again, and what had waited for it became due
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
	if b.state == breakerHalfOpen {
		b.half = time.Now() // no lane of this session has had the time to find a message to ask with: see nothingToAsk
	}
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
	lease time.Duration // there is no lease: look again after this time. Nothing is parked for that
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

// answers reports whether the destination is there: it has accepted or refused something.
func (v verdict) answers() bool { return v.accepted > 0 || v.answered > 0 && !v.ended }

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
	switch {
	case v.probe:
		return b.judgeProbe(v)
	case b.state != breakerClosed:
		if v.answers() { // a call that began before the breaker opened
			b.askEarly()
		}
		return nil
	case v.answers():
		b.failed = 0
		if b.gone {
			b.answersAgain()
		}
		return nil
	case v.ended || v.away == 0:
		return nil
	}
	b.gone = true
	if v.news || b.never {
		b.failed++
	}
	if !b.cfg.Enabled || b.failed < b.cfg.MaxFailures {
		return nil
	}
	b.early = false
	b.open()
	return func() {
		b.logger.Debug("breaker open: the destination is away, and the sink is left alone", "sink", b.name, "for", b.cfg.ResetTimeout.String())
	}
}

// judgeProbe is judgeLocked for a probe. The caller holds mu.
func (b *breaker) judgeProbe(v verdict) (log func()) {
	b.probing = false
	switch {
	case b.state != breakerHalfOpen: // it was opened or closed meanwhile
		return nil
	case v.answers():
		b.closeNow()
		return func() { b.logger.Debug("breaker closed: the sink answers again", "sink", b.name) }
	case v.away > 0 && !v.ended:
		b.open()
		return func() { b.logger.Debug("breaker open again: the sink is still away", "sink", b.name) }
	}
	b.half = time.Now() // the probe was not attempted: another lane, or another message, asks at once
	b.wake()
	return nil
}

// closeNow ends an outage: what has waited for the destination is due. The caller holds mu.
func (b *breaker) closeNow() {
	b.set(breakerClosed)
	b.failed, b.backAt = 0, time.Time{}
	b.answersAgain()
}

// answersAgain makes due what has waited for the destination. While the breaker is closed it does so once in a reset time at most: the
// messages of a destination that is away for every second call must not lose their backoff. The caller holds mu.
func (b *breaker) answersAgain() {
	b.gone = false
	now := time.Now()
	if !b.backAt.IsZero() && now.Before(b.backAt.Add(b.cfg.ResetTimeout)) {
		return
	}
	b.backAt = now
	for _, l := range b.lanes {
		l.ask(askBack)
	}
}

// backSince reports whether the destination has answered again after this time, so that what has waited for it became due.
func (b *breaker) backSince(t time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.backAt.After(t)
}

// checked notes that a check has reached the destination, which is no proof that it accepts messages. So an open breaker asks with a
// message now. If there is no message to ask with, the check is all that anybody can know, and the breaker closes.
func (b *breaker) checked() {
	b.mu.Lock()
	closes := b.state == breakerHalfOpen && !b.probing && time.Since(b.half) >= nothingToAsk
	if closes {
		b.closeNow()
	} else {
		b.askEarly()
	}
	b.mu.Unlock()
	if closes {
		b.logger.Debug("breaker closed: a check has reached the destination, and no message waits for it", "sink", b.name)
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
	b.timer = time.AfterFunc(b.cfg.ResetTimeout, b.askInTime)
}

// askInTime makes an open breaker half-open: the reset time is over.
func (b *breaker) askInTime() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.early = false
	b.ask()
}

// askNow makes an open breaker half-open, because a person wants to know now. In another state it does nothing.
func (b *breaker) askNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ask()
}

// askEarly makes an open breaker half-open, because something says that the destination is back. It does so once in a reset time at
// most. The caller holds mu.
func (b *breaker) askEarly() {
	if b.state == breakerOpen && !b.early {
		b.early = true
		b.ask()
	}
}

// ask makes an open breaker half-open. The caller holds mu.
func (b *breaker) ask() {
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
