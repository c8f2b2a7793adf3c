package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/wait"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

type worldMode int

const (
	modeWell worldMode = iota
	modeDown
	modeSilent // nothing answers
	modeSlow
	modePermanent // permanent for everything
	modeRefused   // refused for everything
	modeCrawl
	modeFlaky
)

var modeNames = []string{"well", "down", "a black hole", "slow", "broken", "refusing", "crawling", "flaky"}

// acceptance is what became of one event at one sink.
type acceptance struct {
	count     int
	known     map[int]int // what sessions know of acceptances and have not recorded
	committed bool        // the ledger calls it delivered
	unknown   int         // tries of which nobody knows how they ended: each may be an acceptance
	refused   int
	places    map[checkpoint.Position]bool // at which it was given to the sink
}

// worldSink is a destination.
type worldSink struct {
	w           *simulation
	n           int
	mode        worldMode
	oneTry      bool
	acceptances map[*worldEvent]*acceptance
	order       map[string][]*worldEvent // first acceptances, by aggregate
	delivers    map[string]int           // Deliver calls, by their first message
	topics      []worldTopic
	checks      int // how often a connector has checked it
	rules       sinkRules
	inTime      inTime
	recovery    recovery
}

func newWorldSink(w *simulation, n int) *worldSink {
	return &worldSink{w: w, n: n, acceptances: map[*worldEvent]*acceptance{}, order: map[string][]*worldEvent{}, delivers: map[string]int{}, topics: make([]worldTopic, w.cfg.topics), rules: sinkRules{events: map[*worldEvent]*told{}}, inTime: newInTime()}
}

// planModes makes the sink well and ill by turns.
func (s *worldSink) planModes() {
	if s.w.cfg.calm {
		s.planOutage()
		return
	}
	modes := []worldMode{modeDown, modeSilent, modeSlow, modePermanent, modeRefused, modeCrawl, modeDown, modeSilent}
	if s.w.cfg.flaky {
		modes = append(modes, modeFlaky, modeFlaky, modeFlaky)
	}
	r := s.w.random("modes", s.n)
	set := func(m worldMode) bool {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		if s.w.faults {
			s.mode = m
			s.w.trace("sink%d is %s", s.n, modeNames[m])
		}
		return s.w.faults
	}
	var ill, well func()
	ill = func() {
		mode := modes[r.IntN(len(modes))]
		if !set(mode) || (mode == modePermanent || mode == modeRefused) && r.chance(0.15) {
			return // it stays so until all heals
		}
		s.w.after(r.between(20*timeUnit, 1500*timeUnit), well)
	}
	well = func() {
		if set(modeWell) {
			s.w.after(r.between(10*timeUnit, 700*timeUnit), ill)
		}
	}
	s.w.after(r.between(10*timeUnit, 700*timeUnit), ill)
}

// acceptanceOf returns what became of e at this sink. The world's lock is held.
func (s *worldSink) acceptanceOf(e *worldEvent) *acceptance {
	a := s.acceptances[e]
	if a == nil {
		a = &acceptance{known: map[int]int{}, places: map[checkpoint.Position]bool{}}
		s.acceptances[e] = a
	}
	return a
}

func (s *worldSink) accept(events []*worldEvent) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, e := range events {
		a := s.acceptanceOf(e)
		a.count++
		s.w.stats.Accepted++
		if a.count == 1 {
			s.checkInTime(e)
			s.order[e.aggregate] = append(s.order[e.aggregate], e)
		} else {
			s.w.stats.Again++
		}
		s.w.trace("sink%d ACCEPTS %v #%d", s.n, e, a.count)
	}
}

// worldClient is a session's client of a sink.
type worldClient struct {
	*worldSink
	p       *worldProcess
	mine    *processRules // of this process
	session int
	epoch   int32
	rested  rested
}

func (c *worldClient) Close() error { return nil }

// worldCall is what is to happen in one Deliver call.
type worldCall struct {
	r         random
	events    []*worldEvent
	errs      []error
	now, late []*worldEvent // accepted while it runs, and after its time-out
	silent    bool          // no answer before its deadline
	took      time.Duration

	began time.Time
	probe bool         // the breaker was not closed
	away  map[int]bool // topics that were found away

	mayBeLate  bool                // messages without an answer may be accepted after the time-out
	unanswered map[string]lateness // of the last message without an answer, by aggregate
}

// lateness says when a message that gets no answer is accepted.
type lateness int

const (
	acceptedWhileItRuns lateness = iota
	acceptedAfterTimeout
	acceptedNever
)

var (
	errWorldPermanent   = fmt.Errorf("400: %w", sinks.ErrPermanent)
	errWorldUnavailable = fmt.Errorf("dial: %w", sinks.ErrUnavailable)
	errWorldTimeout     = fmt.Errorf("no answer: %w", sinks.ErrUnavailable)
	errWorldRefused     = errors.New("500")
)

// Deliver does the worst that the contract of sinks allows.
func (c *worldClient) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if c.p.isKilled() {
		return slices.Repeat([]error{sinks.ErrNotAttempted}, len(batch))
	}
	p := c.plan(batch)
	if c.p.runs(ctx) != nil {
		return c.cut(p)
	}
	accepting := p.r.between(0, p.took-1)
	if !c.p.slept(ctx, accepting) {
		if p.r.chance(0.5) { // the destination goes on with what it has received
			c.w.after(p.r.between(0, 10*timeUnit), func() { c.accept(p.now) })
		}
		return c.cut(p)
	}
	c.accept(p.now)
	switch {
	case p.silent:
		c.hangs()
		select {
		case <-ctx.Done():
		case <-c.p.killed:
		}
		if len(p.late) > 0 {
			c.w.after(p.r.between(0, 400*timeUnit), func() { c.accept(p.late) })
		}
	case !c.p.slept(ctx, p.took-accepting):
		return c.cut(p)
	}
	return c.answer(p)
}

// slept waits for d and returns true, or false if ctx ends before that.
func slept(ctx context.Context, d time.Duration) bool { return wait.For(ctx, d) == nil }

// cut answers a call that the session has ended. The session does not know what was accepted.
func (c *worldClient) cut(p *worldCall) []error {
	for i, err := range p.errs {
		if !errors.Is(err, sinks.ErrNotAttempted) {
			p.errs[i] = fmt.Errorf("%w: %w", context.Canceled, sinks.ErrUnavailable)
		}
	}
	return c.answer(p)
}

// answer returns the results of a call, and notes what the session knows from now on. A session that was killed learns nothing.
func (c *worldClient) answer(p *worldCall) []error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if c.w.cfg.remembers {
		c.rested.learn(p.away, p.now)
	}
	if slices.ContainsFunc(p.errs, func(err error) bool { return classOf(err) == away }) {
		c.mine.away++
	}
	c.noteCall(p)
	if p.probe && slices.ContainsFunc(p.errs, func(err error) bool { return !errors.Is(err, sinks.ErrNotAttempted) }) {
		c.probed()
	}
	for i, e := range p.events {
		a := c.acceptanceOf(e)
		c.answered(e, p.began, p.errs[i])
		switch err := p.errs[i]; {
		case err == nil && !c.p.isKilled():
			a.known[c.session]++
		case err == nil || errors.Is(err, errWorldTimeout) || errors.Is(err, errWorldTopicHang) || errors.Is(err, context.Canceled):
			a.unknown++
		}
	}
	c.w.trace("sink%d answers %v: %v", c.n, p.events, p.errs)
	if slices.IndexFunc(p.errs, func(err error) bool { return err != nil }) < 0 && p.r.chance(0.5) {
		return nil
	}
	return p.errs
}

// plan draws what happens to a batch, and checks that the lane was right to send it.
func (c *worldClient) plan(batch []sinks.Message) *worldCall {
	w := c.w
	w.step()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Delivers++
	c.begins()
	c.recovery.calls++
	if len(batch) == 0 || len(batch) > w.cfg.batch {
		w.violation("batch", "%d messages", len(batch))
	}
	first := batch[0].Event.ID
	c.delivers[first]++
	p := &worldCall{r: w.random("deliver", c.n, first, c.delivers[first]), errs: make([]error, len(batch)), began: time.Now(), probe: c.mine.breaker != breakerClosed}
	for i := range batch {
		p.events = append(p.events, c.checkMessage(&batch[i]))
	}
	w.trace("sink%d is given %v (%s)", c.n, p.events, modeNames[c.mode])
	c.given(p.events)
	p.draw(c)
	return p
}

func (c *worldClient) checkMessage(m *sinks.Message) *worldEvent {
	w, e := c.w, c.w.events[m.Event.ID]
	at := checkpoint.Position{LSN: m.LSN, Index: m.Index}
	if !c.mayStandAt(e, at) || string(m.Event.Payload) != e.payload() || m.Key != e.aggregate || m.Topic != e.eventType() || m.Attempt < 1 {
		w.violation("changed", "sink%d: %v came as %s, payload %q, key %q, attempt %d", c.n, e, at, m.Event.Payload, m.Key, m.Attempt)
	}
	a := c.acceptanceOf(e)
	a.places[w.ledger.original(worldDelivery{processor(c.n), e}, at)] = true
	if m.New {
		w.stats.New++
	}
	switch {
	case a.committed:
		w.violation("again", "sink%d: %v, which the ledger calls delivered", c.n, e)
	case m.New && (a.count > 0 || a.unknown > 0):
		w.violation("new", "sink%d: %v came as new, accepted %d times before, %d tries of unknown outcome", c.n, e, a.count, a.unknown)
	case a.known[c.session] > 0:
		w.violation("again", "sink%d: %v, which this session knows to be accepted", c.n, e)
	}
	return e
}

func (p *worldCall) draw(c *worldClient) {
	r, cfg, mode := p.r, &c.w.cfg, c.mode
	failed := map[string]bool{} // aggregates of which a message was not accepted
	cut := len(p.events)        // from here on there is no answer
	if mode == modeSilent {
		cut = 0
	} else if c.w.faults && !cfg.calm && r.chance(0.01) {
		cut = r.IntN(cut + 1)
	}
	p.mayBeLate, p.unanswered = r.chance(cfg.late), map[string]lateness{}
	p.away = map[int]bool{}
	begun := len(p.events) // from here on there is no time to begin
	if c.w.faults && !cfg.calm && r.chance(0.05) {
		begun = r.IntN(begun + 1)
	}
	for i, e := range p.events {
		a, f := c.acceptanceOf(e), e.reactions[c.n]
		switch {
		case failed[e.aggregate] || i >= begun:
			p.errs[i], failed[e.aggregate] = sinks.ErrNotAttempted, true
			continue
		case c.rested.putOff(e.topic) > 0 && !p.away[e.topic]:
			p.errs[i], failed[e.aggregate] = sinks.ErrNotAttempted, true
			if _, behind := p.unanswered[e.aggregate]; !behind {
				p.errs[i] = sinks.After(c.rested.putOff(e.topic), sinks.ErrNotAttempted)
			}
			continue
		case i >= cut:
			p.errs[i], p.silent = errWorldTimeout, true
			p.leaveUnanswered(c, e)
			continue
		case mode == modeDown:
			p.errs[i] = errWorldUnavailable
		case mode == modeFlaky && r.chance(0.4):
			if p.errs[i] = errWorldUnavailable; r.chance(0.2) {
				p.errs[i], p.silent = errWorldTimeout, true
			}
		case mode == modePermanent:
			p.errs[i] = errWorldPermanent
		case mode == modeRefused:
			p.errs[i] = errWorldRefused
		case c.topics[e.topic].away && c.topics[e.topic].hangs:
			p.errs[i], p.silent, p.away[e.topic] = errWorldTopicHang, true, true
			if f.accepts(a) && p.mayBeLate {
				p.late = append(p.late, e)
			}
		case c.topics[e.topic].away:
			p.errs[i], p.away[e.topic] = errWorldTopic, true
		case f.accepts(a):
			p.now = append(p.now, e)
			continue
		default:
			a.refused++
			p.errs[i] = map[reactionKind]error{
				reactionPermanent: errWorldPermanent, reactionRefused: errWorldRefused, reactionRefusedTimes: errWorldRefused, reactionUnavailable: errWorldUnavailable, reactionTimeout: errWorldTimeout,
			}[f.kind]
			p.silent = p.silent || f.kind == reactionTimeout
		}
		failed[e.aggregate] = true
		if !cfg.calm && r.chance(0.05) {
			p.errs[i] = sinks.After(r.between(0, 10*time.Minute), p.errs[i])
		}
	}
	p.took = r.between(timeUnit, 8*timeUnit)
	if cfg.quick {
		p.took = r.between(time.Millisecond, 10*time.Millisecond)
	} else if r.chance(0.5) {
		p.took = r.between(time.Millisecond, timeUnit)
	}
	switch mode {
	case modeSlow:
		p.took = r.between(20*timeUnit, 120*timeUnit)
	case modeCrawl:
		p.took = r.between(100*timeUnit, 200*timeUnit-1)
	}
}

// leaveUnanswered draws whether e, which gets no answer, is accepted all the same, and when. Of an aggregate nothing is accepted earlier than
// the message before it, and nothing after one that is never accepted.
func (p *worldCall) leaveUnanswered(c *worldClient, e *worldEvent) {
	when := p.unanswered[e.aggregate]
	if when == acceptedWhileItRuns && (c.mode == modeSilent && p.r.chance(0.7) || p.r.chance(0.5)) {
		when = acceptedAfterTimeout
	}
	if when == acceptedAfterTimeout && (!p.mayBeLate || p.r.chance(0.3)) || !e.reactions[c.n].accepts(c.acceptanceOf(e)) {
		when = acceptedNever
	}
	p.unanswered[e.aggregate] = when
	switch when {
	case acceptedWhileItRuns:
		p.now = append(p.now, e)
	case acceptedAfterTimeout:
		p.late = append(p.late, e)
	case acceptedNever:
	}
}
