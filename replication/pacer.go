package replication

import "time"

// Two measured effects decide how the stream is read; docs/design/speed.md has the numbers.
//
// A fast stream: a reader that takes each message at once slows the walsender down, because the walsender then wakes the reader
// up for each message, and sends tiny segments. If the reader takes everything that has arrived, and then sleeps, the walsender
// is two and a half times as fast. So the reader reads until nothing is left, and then lets bytes pile up for drainPause.
//
// A slow stream is read as soon as anything has arrived, but not twice within calmPause. At some thousand transactions a second
// a reader that is woken up for each of them takes the processor away from the very walsender that it waits for. The walsender
// then falls behind: by 200 ms at 2,000 transactions a second on two slow processors, where a pause of a millisecond keeps it at
// 1 ms.
const (
	drainPause = 8 * time.Millisecond
	calmPause  = time.Millisecond

	fastBytesPerSecond = 8 << 20 // above it the stream is fast; at half of it it is slow again
	windowWhileSlow    = 4 * time.Millisecond
	windowWhileFast    = 20 * time.Millisecond

	worseWindows = 5 // in a row before pauses are given up: a single one says little on a busy machine
	pauseBan     = 10 * time.Second
)

// pacer decides for how long the reader of the stream sleeps when the socket is empty. For this it measures the speed of the
// stream in windows, and compares the speed with pauses to the speed without. It has no clock of its own.
type pacer struct {
	fast         bool      // the stream is fast
	unpausedRate float64   // bytes a second, as last measured without pauses; 0 if never
	worse        int       // windows in a row in which the stream had less than half of unpausedRate
	bannedUntil  time.Time // no pauses until then, because they made the stream slower
	lastRead     time.Time // when bytes were read last

	// The window that is being measured.
	start   time.Time
	bytes   int
	drained bool // the socket was found empty: so the rate is that of the sender
	waited  bool // the reader waited for others of our process: so the rate says nothing about the sender
}

// hasRead records that n bytes were read, and ends the window if it is over.
func (p *pacer) hasRead(now time.Time, n int) {
	p.bytes += n
	if n > 0 {
		p.lastRead = now
	}
	window := windowWhileSlow
	if p.fast {
		window = windowWhileFast
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
	sendersRate := p.drained && !p.waited
	switch {
	case !p.fast && rate > fastBytesPerSecond:
		p.fast = true
		p.unpausedRate = 0
		if sendersRate {
			p.unpausedRate = rate
		}
	case p.fast && rate <= fastBytesPerSecond/2 && !p.waited:
		p.fast = false
	case !sendersRate:
	case !now.After(p.bannedUntil):
		p.unpausedRate = rate
	case p.fast && rate < p.unpausedRate/2:
		// Pauses make it slower: send buffers may be small, or a proxy in between.
		if p.worse++; p.worse == worseWindows {
			p.worse, p.bannedUntil = 0, now.Add(pauseBan)
		}
	case p.fast:
		p.worse = 0
	}
	p.start, p.bytes, p.drained, p.waited = now, 0, false, false
}

// pauseFor is called when the socket is empty. It returns for how long the reader sleeps now; not at all if that is not above 0.
func (p *pacer) pauseFor(now time.Time) time.Duration {
	p.drained = true
	if p.fast && now.After(p.bannedUntil) {
		return drainPause
	}
	return p.lastRead.Add(calmPause).Sub(now)
}

// hasWaited records that the reader waited for something else of our process.
func (p *pacer) hasWaited() { p.waited = true }
