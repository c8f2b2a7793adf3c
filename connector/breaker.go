package connector

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// brokenAfter is of how many aggregates in a row a message must have died, and nothing accepted between, for the receiver to
// be taken for broken: it must not turn healthy events into dead letters.
const brokenAfter = 5

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

// breakerOwner is what a breaker knows of its sink.
type breakerOwner struct {
	name    string // of the sink
	never   bool   // park_after: never. Nothing is parked, so the lanes are not asked to park
	logger  *slog.Logger
	changed func(gobreaker.State) // called with the first state and each new one
}

// breaker decides when a sink is left alone. It judges the destination, never a message, and outlives sessions. The state machine is
// gobreaker's; what counts as a failure is decided here. The lanes call it from their own goroutines, and it wakes them by lane.ask.
type breaker struct {
	breakerOwner
	cfg BreakerConfig

	mu      sync.Mutex
	machine *gobreaker.TwoStepCircuitBreaker[struct{}]
	trip    bool               // the next failure that machine hears of opens it
	broken  bool               // it was opened by deaths: only an acceptance closes it
	failed  int                // calls in a row that found the destination away and had nothing accepted
	deaths  map[int64]struct{} // hashes of aggregates of which a message has died since the last acceptance
	lanes   []*lane            // of the running session
	last    int                // the lane that probed last
	half    time.Time          // since when the breaker is half-open
	probing func(err error)    // ends the probe that is being delivered; nil: there is none
	timer   *time.Timer        // makes the breaker half-open
}

var (
	errAway          = errors.New("the destination is away")
	errNothingLearnt = errors.New("nothing was learnt of the destination")
)

func newBreaker(owner breakerOwner, cfg BreakerConfig) *breaker {
	b := &breaker{breakerOwner: owner, cfg: cfg, deaths: map[int64]struct{}{}}
	b.machine = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name: b.name, MaxRequests: 1, Timeout: cfg.ResetTimeout,
		ReadyToTrip:   func(gobreaker.Counts) bool { return b.trip },
		IsExcluded:    func(err error) bool { return errors.Is(err, errNothingLearnt) },
		OnStateChange: func(_ string, _, to gobreaker.State) { b.changed(to) },
	})
	b.changed(gobreaker.StateClosed)
	return b
}

// attach gives the breaker the lanes of a new session.
func (b *breaker) attach(lanes []*lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lanes = lanes
	if b.probing != nil { // the session before ended without its answer
		b.probing(errNothingLearnt)
		b.probing = nil
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

func (b *breaker) state() gobreaker.State { return b.machine.State() }

// permission says whether a lane may start a Deliver.
type permission struct {
	ok    bool
	probe bool          // with one message only
	wait  time.Duration // if not ok: ask again after this time; 0: the breaker wakes the lane
}

// may reports whether this lane may start a Deliver now.
func (b *breaker) may(lane int, now time.Time) permission {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.state() {
	case gobreaker.StateClosed:
		return permission{ok: true}
	case gobreaker.StateHalfOpen:
		if b.probing != nil || len(b.lanes) == 0 {
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
	return permission{}
}

// claim is a Deliver that the breaker knows of.
type claim struct {
	done  func(error)
	probe bool
}

// begin claims a Deliver that may has permitted. It fails if another lane was faster. Each claim is ended by judge or cancel.
func (b *breaker) begin(lane int) (claim, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	probe := b.state() == gobreaker.StateHalfOpen
	done, err := b.machine.Allow()
	if err != nil {
		return claim{}, false
	}
	if probe {
		b.probing, b.last = done, lane
	}
	return claim{done, probe}, true
}

// cancel ends a claim without a Deliver.
func (b *breaker) cancel(c claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.done(errNothingLearnt)
	if c.probe {
		b.probing = nil
		b.half = time.Now() // the next lane has its turn
		b.wake()
	}
}

// verdict collects what the answers to one Deliver say of the destination. From weigh to judge its owner holds the breaker's lock.
type verdict struct {
	b                        *breaker
	accepted, away, answered int
	news                     bool // a message was tried for the first time: failures that are only repeated say nothing new
	ended                    bool // the session has ended the call, which says nothing of the destination
}

// weigh begins the judgement of one Deliver, and takes the breaker's lock.
func (b *breaker) weigh(v verdict) verdict {
	b.mu.Lock()
	v.b = b
	v.news = v.news || b.never
	if v.accepted > 0 {
		b.failed = 0
		clear(b.deaths)
	}
	return v
}

// brokenNow reports whether the receiver is taken for broken, so that its refusals use no attempt. This may change in the middle of a
// call.
func (v *verdict) brokenNow() bool {
	b := v.b
	return b.broken && b.state() != gobreaker.StateClosed || b.cfg.Enabled && len(b.deaths) >= brokenAfter
}

// died notes that a message of this aggregate has died.
func (v *verdict) died(hash int64) {
	b := v.b
	if v.accepted == 0 && b.cfg.Enabled && !b.never && b.state() == gobreaker.StateClosed {
		b.deaths[hash] = struct{}{}
	}
}

// closed reports whether the breaker is closed.
func (v *verdict) closed() bool { return v.b.state() == gobreaker.StateClosed }

// judge ends the judgement of a Deliver and releases the breaker's lock.
func (v *verdict) judge(c claim) {
	b := v.b
	defer b.mu.Unlock()
	if c.probe {
		b.probing = nil
		switch {
		case v.accepted > 0 || v.answered > 0 && !b.broken:
			c.done(nil)
			b.closed()
		case v.ended:
			c.done(errNothingLearnt)
		default:
			c.done(errAway)
			b.logger.Debug("breaker open again: the sink is still away", "sink", b.name)
			b.opened()
		}
		return
	}
	if b.state() != gobreaker.StateClosed || !b.cfg.Enabled || v.ended && v.accepted == 0 {
		c.done(errNothingLearnt)
		return
	}
	if v.accepted == 0 && v.answered > 0 {
		b.failed = 0
	} else if v.accepted == 0 && v.away > 0 && v.news {
		b.failed++
	}
	broken := len(b.deaths) >= brokenAfter
	if b.failed < b.cfg.MaxFailures && !broken {
		c.done(nil)
		return
	}
	b.broken = b.broken || broken
	b.trip = true
	c.done(errAway)
	b.trip = false
	if b.state() != gobreaker.StateOpen { // the call began before the last change of state
		return
	}
	why := "away"
	if b.broken {
		why = "broken"
	}
	b.logger.Warn("breaker open: the sink is left alone", "sink", b.name, "because", why, "for", b.cfg.ResetTimeout.String())
	b.opened()
}

// opened asks the lanes to park, and wakes them when the breaker is half-open.
func (b *breaker) opened() {
	if !b.never {
		for _, l := range b.lanes {
			l.ask(askPark)
		}
	}
	// gobreaker is half-open after its time-out, not at it.
	b.timer = time.AfterFunc(b.cfg.ResetTimeout+time.Microsecond, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.state() == gobreaker.StateHalfOpen {
			b.half = time.Now()
			b.wake()
		}
	})
}

// closed forgets all failures and wakes the lanes.
func (b *breaker) closed() {
	b.broken, b.failed = false, 0
	clear(b.deaths)
	b.logger.Info("breaker closed: the sink answers again", "sink", b.name)
	b.wake()
}

func (b *breaker) wake() {
	for _, l := range b.lanes {
		l.ask(0)
	}
}
