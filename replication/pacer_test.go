package replication

import (
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	var p pacer
	run := func(d time.Duration, bytesPerMs int) {
		for range d / time.Millisecond {
			now = now.Add(time.Millisecond)
			p.hasRead(now, bytesPerMs)
		}
	}
	run(time.Second, 1000) // 1 MB/s
	fast := func() bool { return p.pauseFor(now) == drainPause }
	if fast() {
		t.Error("pauses at 1 MB/s")
	}
	if got := p.pauseFor(now); got != calmPause {
		t.Errorf("reads again after %s, not %s", got, calmPause)
	}
	if got := p.pauseFor(now.Add(calmPause)); got > 0 {
		t.Errorf("pauses for %s though nothing has come for a while", got)
	}
	run(20*time.Millisecond, 50_000)
	if !fast() {
		t.Error("does not pause at 50 MB/s")
	}
	run(100*time.Millisecond, 80_000)
	if !fast() {
		t.Error("stops pausing though pauses made it faster")
	}
	run(100*time.Millisecond, 1000)
	if fast() {
		t.Error("pauses though the stream is slow again")
	}
	// Without pauses, measured while the socket was found empty, the stream has 50 MB/s; with pauses it has 20.
	p = pacer{start: now}
	p.pauseFor(now)
	run(4*time.Millisecond, 50_000)
	for range 2 * worseWindows * windowWhileFast / time.Millisecond {
		p.pauseFor(now)
		run(time.Millisecond, 20_000)
	}
	if fast() {
		t.Error("goes on pausing though pauses made it slower")
	}
	for range 11_000 {
		p.pauseFor(now)
		run(time.Millisecond, 20_000)
	}
	if !fast() {
		t.Error("never tries to pause again")
	}
}
