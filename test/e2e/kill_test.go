package e2e

import (
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// kill -9 at random moments under load, many times on one database.
func TestKillsAtRandom(t *testing.T) {
	t.Parallel()
	const kills = 20
	w := newWorld(t, worldOptions{})
	c := w.connector()
	random := testrand.New(t)
	l := w.load(load{writers: 4, aggregates: 12, rate: 250})
	for i := range kills {
		c.start()
		if i%5 != 4 { // else it is killed while it waits for its first Deliver, mostly
			w.deliveredAtLeast(20*time.Second, w.delivered()+1)
		}
		passes(t, time.Duration(random.IntN(500))*time.Millisecond)
		c.kill()
		// Now and then what is settled is counted; else the next run meets what the last one left on the server.
		if i%4 == 0 {
			w.snapshot()
		}
	}
	l.stop()
	c.start()
	c.ready("leader")
	w.verify(expectation{faults: kills})
	c.term()
}

// Single rows, back to back, and a kill between each few: BEGIN, row and COMMIT share an LSN.
func TestKillsBetweenSingleRows(t *testing.T) {
	t.Parallel()
	const kills = 8
	w := newWorld(t, worldOptions{})
	c := w.connector()
	for range kills {
		c.start()
		before := w.delivered()
		for range 20 {
			w.insert(1)
		}
		w.deliveredAtLeast(20*time.Second, before+1)
		c.kill()
	}
	c.start()
	w.verify(expectation{faults: kills})
	c.term()
}
