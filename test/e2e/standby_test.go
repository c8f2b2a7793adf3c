package e2e

import (
	"testing"
	"time"
)

// A second instance is healthy and ready while it waits, and takes over when the first one is killed, and when it ends.
func TestStandby(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	first, second := w.connector(), w.connector()
	first.start()
	first.ready("leader")
	second.start()
	second.ready("standby")
	l := w.load(load{writers: 3, aggregates: 10, rate: 100})
	w.deliveredAtLeast(20*time.Second, 100)

	first.kill()
	second.readyWithin(14*time.Second, "leader") // less than wal_sender_timeout
	w.snapshot()
	first.start()
	first.ready("standby")
	w.deliveredAtLeast(20*time.Second, w.delivered()+100)

	second.term()
	first.readyWithin(5*time.Second, "leader")
	w.deliveredAtLeast(20*time.Second, w.delivered()+100)

	// One that stands by ends as cleanly as the other.
	second.start()
	second.ready("standby")
	second.term()
	l.stop()
	w.verify(expectation{faults: 1})
	first.term()
}
