package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// PostgreSQL crashes under load. It forgets what was confirmed since the last checkpoint and sends it again; the
// ledger tells the connector what to leave out.
func TestPostgresCrashes(t *testing.T) {
	t.Parallel()
	const crashes = 6
	pg := ownPostgres(t, nil)
	w := newWorld(t, worldOptions{pg: pg})
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 4, aggregates: 12, rate: 250})
	faults := 0
	for i := range crashes {
		w.deliveredAtLeast(30*time.Second, w.delivered()+150)
		w.snapshot()
		both := i%3 == 2
		if err := pg.Stop(context.Background(), servers.Immediate); err != nil {
			t.Fatal(err)
		}
		if both {
			c.kill()
			faults++
		}
		if err := pg.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		if both {
			c.start()
		}
		faults++
	}
	w.deliveredAtLeast(30*time.Second, w.delivered()+150)
	l.stop()
	w.verify(expectation{faults: faults})
	c.ready("leader")
	c.term()
}
