package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// A fast shutdown waits until the receivers of replication have everything. With Kafka down they never will: the
// connector has to let go.
func TestServerStopsWhileKafkaIsDown(t *testing.T) {
	t.Parallel()
	pg, k := ownPostgres(t, nil), ownKafka(t)
	w := newWorld(t, worldOptions{pg: pg, kafka: k, never: true})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(50)
	w.deliveredAtLeast(20*time.Second, 50)
	if err := k.Kill(); err != nil {
		t.Fatal(err)
	}
	w.insert(500)
	c.degraded("sink:kafka")
	w.snapshot()

	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	began := time.Now()
	if err := pg.Stop(ctx, servers.Fast); err != nil {
		t.Fatal(err)
	}
	t.Logf("PostgreSQL stopped within %s", time.Since(began).Round(time.Millisecond))
	c.failed("session")
	if err := pg.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := k.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.verify(expectation{})
	c.ready("leader")
	c.term()
}

// The same without anything owed: it takes no time at all, and nothing is repeated afterwards.
func TestServerRestartsCleanly(t *testing.T) {
	t.Parallel()
	pg := ownPostgres(t, nil)
	w := newWorld(t, worldOptions{pg: pg})
	c := w.connector()
	c.start()
	c.ready("leader")
	for range 3 {
		before := w.delivered()
		w.insert(50)
		w.deliveredAtLeast(20*time.Second, before+1)
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		if err := pg.Stop(ctx, servers.Fast); err != nil {
			t.Fatal(err)
		}
		if err := pg.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	w.insert(50)
	w.verify(expectation{faults: 3})
	c.ready("leader")
	c.term()
}

// SIGTERM in the middle of a large transaction: what is on the wire is settled, the process ends with 0, and the next
// one goes on behind it.
func TestTermInMidTransaction(t *testing.T) {
	t.Parallel()
	const events = 30_000
	w := newWorld(t, worldOptions{})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(events)
	eventually(t, 30*time.Second, "in mid-transaction", func() error {
		if n := c.metric("events_processed_total", `status="delivered"`); n < events/20 {
			return fmt.Errorf("%v delivered", n)
		}
		return nil
	})
	c.term()
	recorded, accepted := w.delivered(), len(w.log.read())
	if recorded == events {
		t.Fatal("all were delivered before the signal")
	}
	if recorded != accepted {
		t.Errorf("the ledger knows of %d, Kafka has %d", recorded, accepted)
	}
	w.snapshot()
	c.start()
	w.verify(expectation{})
	c.term()
}

// SIGTERM under load and when idle, again and again: nothing is repeated.
func TestTermsUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connector()
	l := w.load(load{writers: 3, aggregates: 10, rate: 200})
	for range 6 {
		c.start()
		c.ready("leader")
		w.deliveredAtLeast(20*time.Second, w.delivered()+40)
		c.term()
		w.snapshot()
	}
	l.stop()
	for range 6 {
		c.start()
		c.ready("leader")
		c.term()
	}
	c.start()
	w.verify(expectation{})
	c.term()
}
