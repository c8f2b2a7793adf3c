package replication

import "time"

// A walsender is slowed by a reader that takes every message at once: it wakes the reader up for each, and sends tiny
// segments. A reader that drains the socket and then sleeps makes it two and a half times as fast. So: read until
// nothing is there, then let the bytes of a fast stream pile up for drainPause. Measured; see docs/design.md.
//
// A slow stream is read as soon as anything is there, but not twice within calmPause. At some thousand transactions a
// second a reader that is woken for each takes the processor away from the very sender that it waits for, which then
// falls behind: by 200 ms at 2,000 a second on two slow processors, where a millisecond's rest leaves it at 1.
const (
	drainPause = 8 * time.Millisecond
	calmPause  = time.Millisecond
	fastRate   = 8 << 20 // bytes a second; below half of it a read gets what is there at once again
	fastAfter  = 4 * time.Millisecond
	slowAfter  = 20 * time.Millisecond
	worseFor   = 5 // windows in a row at less than half the speed: one says little on a busy machine
	banned     = 10 * time.Second
)

// pacer decides whether to pause. It has no clock of its own.
type pacer struct {
	fast   bool    // the stream is fast
	paused float64 // bytes a second, as last measured without pausing
	worse  int     // windows in a row in which pausing cost half the speed or more
	noTill time.Time

	last time.Time // when something was read

	start   time.Time // of the window being measured
	bytes   int
	drained bool // the socket was found empty in this window: its rate is the sender's
	stalled bool // the reader waited for others in this window: its rate says nothing of the sender
}

func (p *pacer) read(now time.Time, n int) {
	p.bytes += n
	if n > 0 {
		p.last = now
	}
	window := fastAfter
	if p.fast {
		window = slowAfter
	}
	if p.start.IsZero() {
		p.start = now
		return
	}
	took := now.Sub(p.start)
	if took < window {
		return
	}
	rate := float64(p.bytes) / took.Seconds()
	switch {
	case !p.fast && rate > fastRate:
		p.fast = true
		p.paused = 0
		if p.drained && !p.stalled {
			p.paused = rate
		}
	case p.fast && rate <= fastRate/2 && !p.stalled:
		p.fast = false
	case !p.drained || p.stalled:
		// Not the sender's rate.
	case !now.After(p.noTill):
		p.paused = rate
	case p.fast && rate < p.paused/2:
		// Pauses make it slower: small send buffers, or a proxy in between.
		if p.worse++; p.worse == worseFor {
			p.worse, p.noTill = 0, now.Add(banned)
		}
	case p.fast:
		p.worse = 0
	}
	p.start, p.bytes, p.drained, p.stalled = now, 0, false, false
}

// empty is told that the socket is empty, and says how long to pause now; not at all, where that is not above 0.
func (p *pacer) empty(now time.Time) time.Duration {
	p.drained = true
	if p.fast && now.After(p.noTill) {
		return drainPause
	}
	return p.last.Add(calmPause).Sub(now)
}

// stall is told that the reader had to wait for somebody else.
func (p *pacer) stall() { p.stalled = true }
