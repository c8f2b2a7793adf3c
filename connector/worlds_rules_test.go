package connector

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// told is what the connector was told of one event by one sink, and what it made of that. The world's mutex guards it.
type told struct {
	asked     int       // tries, whatever their outcome
	refusals  int       // since a person has last retried it
	first     time.Time // when it was first tried
	last      error     // the last answer
	failedAt  int       // how many acceptances the sink had answered before that
	notBefore time.Time // when the sink wants to be asked again, as it has said in session putOffIn
	putOffIn  int
}

// sinkRules check what a connector makes of the failures of one sink. They know only what the sink has answered and what the ledger
// was given. Acceptances are counted, so that it does not matter in which order two lanes heard of theirs.
type sinkRules struct {
	events      map[*worldEvent]*told
	acceptances int // that were answered
}

// processRules are what one process knows of a sink, and its successor does not.
type processRules struct {
	deaths []int // failedAt of those that died; the last ones

	level   float64 // due rows that were tried beyond the rate of a suspect sink
	levelAt time.Time

	breaker  breakerState
	away     int       // calls since it was closed that found the destination away
	openedAt time.Time // when it was last closed until then
	probes   int       // since then
	allowed  int       // probes that a person or a new session may have caused since then
}

func (s *worldSink) told(e *worldEvent) *told {
	t := s.rules.events[e]
	if t == nil {
		t = &told{}
		s.rules.events[e] = t
	}
	return t
}

// breakerIs notes a new state of the breaker.
func (s *worldSink) breakerIs(r *processRules, to breakerState) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if r.breaker == breakerClosed && to == breakerOpen {
		s.w.stats.Opened++
		r.openedAt, r.probes, r.allowed = time.Now(), 0, 0
		if r.away < s.w.cfg.maxFailures {
			s.w.violation("opened", "the breaker of sink%d is open after %d calls that found it away", s.n, r.away)
		}
	}
	if to == breakerClosed {
		r.away = 0
	}
	r.breaker = to
}

// suspectForSure reports whether the connector must know that the sink is suspect: five messages have died, and no acceptance was
// answered since the first of them failed.
func (c *worldClient) suspectForSure() bool {
	r := c.mine
	n := len(r.deaths)
	return n >= deathBudget && slices.Min(r.deaths[n-deathBudget:]) == c.rules.acceptances
}

// given checks that the connector may give the sink these messages now.
func (c *worldClient) given(events []*worldEvent) {
	w, r, now := c.w, c.mine, time.Now()
	for _, e := range events {
		if c.told(e).asked == 0 {
			c.inTime.firsts++
		}
		if t := c.told(e); t.notBefore.After(now) && t.putOffIn == c.session && !w.cfg.never {
			w.violation("asked early", "sink%d: %v is given again %s before the time that was named", c.n, e, t.notBefore.Sub(now))
		}
	}
	due, fresh := c.rowsOf(events)
	if due > 0 && fresh > 0 {
		w.violation("mixed", "sink%d is given %d fresh rows and %d due ones in one call", c.n, fresh, due)
	}
	probe := r.breaker != breakerClosed && len(events) == 1
	if !c.suspectForSure() {
		r.level, r.levelAt = 0, now
		return
	}
	r.level = max(0, r.level-now.Sub(r.levelAt).Seconds()*suspectRate)
	r.levelAt = now
	if !probe {
		w.stats.Paced += due
		r.level += float64(due)
	}
	if r.level > float64(w.cfg.batch)+0.5 {
		w.violation("hammered", "sink%d is suspect, and %.1f due rows are tried beyond the rate", c.n, r.level)
		r.level = 0
	}
}

// rowsOf returns how many of these events have a row that is due, and how many one that is fresh. It leaves out what a person has
// changed.
func (c *worldClient) rowsOf(events []*worldEvent) (due, fresh int) {
	l := c.w.ledger
	l.parked.mu.Lock()
	defer l.parked.mu.Unlock()
	for _, e := range events {
		row := l.parked.of(processor(c.n), e.id)
		switch {
		case row == nil || row.dead || l.displaced[worldDelivery{processor(c.n), e}]:
		case row.due.IsZero():
			fresh++
		default:
			due++
		}
	}
	return due, fresh
}

// answered notes what the connector is told of a message, by a call that began then.
func (c *worldClient) answered(e *worldEvent, began time.Time, err error) {
	t, r := c.told(e), &c.rules
	if errors.Is(err, sinks.ErrNotAttempted) {
		if after := sinks.RetryAfter(err); after > 0 && !c.p.isKilled() {
			c.w.stats.PutOff++
			t.notBefore, t.putOffIn = time.Now().Add(after), c.session
		}
		return
	}
	t.asked++
	if t.first.IsZero() {
		t.first = began
	}
	if c.p.isKilled() || c.epoch < c.w.delivering { // whoever delivers now hears nothing of it
		return
	}
	t.last = err
	switch class := classOf(err); class {
	case accepted:
		r.acceptances++
	case refused, permanentlyRefused:
		t.refusals++
		t.failedAt = r.acceptances
	case away, topicAway, notAttempted:
		if class == away {
			c.inTime.hurt[e.aggregate] = true
		}
		t.failedAt = r.acceptances
	}
}

// probed checks that an open breaker lets no more messages through than one in a reset time, one for each that a person or a new
// session may have caused, and those that were on their way when it opened. It is called when such a message was tried.
func (c *worldClient) probed() {
	r := c.mine
	c.w.stats.Probes++
	r.probes++
	if most := 1 + c.p.lanes + r.allowed + int(time.Since(r.openedAt)/c.w.cfg.reset); r.probes > most {
		c.w.violation("away hammered", "sink%d: %d messages in %s after the breaker has opened, of at most %d", c.n, r.probes, time.Since(r.openedAt), most)
		r.openedAt, r.probes = time.Now(), 0
	}
}

// checkOutcome checks an outcome that the connector gives to the ledger.
func (s *worldSink) checkOutcome(e *worldEvent, o checkpoint.Outcome) {
	t, key := s.told(e), worldDelivery{o.Processor, e}
	most := t.asked
	if e.pos.LSN < s.w.seen { // one more stands for what an earlier session may have done: see unsent.go
		most++
	}
	if o.Parked != nil && o.Parked.Tries > most && !s.w.ledger.displaced[key] {
		s.w.violation("try counted", "sink%d: %v has %d tries, and was tried %d times", s.n, e, o.Parked.Tries, t.asked)
	}
	if o.Status == checkpoint.Dead {
		s.checkDeath(e, t)
	}
}

// checkDeath checks that nothing dies but of a refusal after all of its attempts, or of its age; and no more than the budget allows.
func (s *worldSink) checkDeath(e *worldEvent, t *told) {
	w, r := s.w, s.w.ledger.recording.p.rules[s.n]
	r.deaths = append(r.deaths, t.failedAt)
	if n := len(r.deaths); n > deathBudget {
		r.deaths = r.deaths[n-deathBudget-1:]
		if slices.Min(r.deaths) == s.rules.acceptances {
			w.violation("death budget", "sink%d: %v is the sixth to die since something was accepted", s.n, e)
		}
	}
	if w.cfg.giveUpAfter > 0 && !t.first.IsZero() && time.Since(t.first) > w.cfg.giveUpAfter || w.ledger.displaced[worldDelivery{processor(s.n), e}] {
		return
	}
	switch class := classOf(t.last); {
	case class != refused && class != permanentlyRefused:
		w.violation("dead of an outage", "sink%d: %v died of %v", s.n, e, t.last)
	case class == refused && t.refusals <= e.mostRetries(&w.cfg):
		w.violation("dead early", "sink%d: %v died after %d refusals", s.n, e, t.refusals)
	}
}

// retried notes that a person retries this event.
func (t *told) retried() { t.refusals, t.notBefore = 0, time.Time{} }

// askedNow notes that a person wants the sink asked now.
func (s *worldSink) askedNow() {
	for _, p := range s.w.living {
		p.rules[s.n].allowed++
	}
	for _, t := range s.rules.events {
		t.notBefore = time.Time{}
	}
}

// mostRetries returns how many refusals e outlives.
func (e *worldEvent) mostRetries(c *worldConfig) int {
	if n, err := strconv.Atoi(e.retries); err == nil {
		return n
	}
	return c.maxRetries
}
