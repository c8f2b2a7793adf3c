package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// One of two brokers is killed, and what it led has no leader: that is parked, the other's partitions go on, and all arrives
// once it is back. A record that its topic does not take is dead meanwhile, and nothing else.
func TestPartitionWithoutLeader(t *testing.T) {
	t.Parallel()
	first := ownKafka(t)
	second, err := servers.StartKafka(context.Background(), servers.KafkaOptions{Join: first})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, second) })
	w := newWorld(t, worldOptions{kafka: first, sinks: []string{"kafka", "stdout"}, delivery: map[string]any{"timeout": "3s"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 2, aggregates: 40, rate: 40})
	w.deliveredAtLeast(30*time.Second, 300)
	began := time.Now()
	w.must(second.Kill())
	w.parksAtLeast(40*time.Second, "kafka", 50)
	w.goesOn(20 * time.Second)
	delivered := w.deliveredTo("kafka")
	eventually(t, 30*time.Second, "what has a leader goes on", func() error {
		if n := w.deliveredTo("kafka"); n < delivered+100 {
			return fmt.Errorf("%d more were delivered", n-delivered)
		}
		return nil
	})
	const large = 6 // aggregates, of which some have a leader
	for i := range large {
		name := fmt.Sprint("large-", i)
		w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
			values ('order', $1, 'large', to_json(repeat('x', 2000000)))`, name)
		w.insertInto(name, 2) // go on behind it
	}
	eventually(t, time.Minute, "one that is too large is dead", func() error {
		if len(w.deadOf("kafka")) == 0 {
			return errors.New("none is")
		}
		return nil
	})
	if n := w.ofSink("kafka", "k.attempts > 0 and k.status = 'parked'"); n > 0 {
		t.Errorf("%d deliveries have used attempts while their partition had no leader", n)
	}
	w.snapshot()
	t.Logf("without leader: %.1f s", time.Since(began).Seconds())
	w.must(second.Start(context.Background()))
	t.Logf("broker is back after %.1f s", time.Since(began).Seconds())
	w.live(c, time.Minute)
	t.Logf("live after %.1f s", time.Since(began).Seconds())
	l.stop()
	dead := w.deadOf("kafka")
	w.verify(expectation{status: dead})
	if n := ask[int](w, "select count(*) from outbox_parked where status = 'dead' and event ->> 'event_type' = 'large'"); n != large || len(dead) != large {
		t.Errorf("%d are dead, %d of them large; want the %d large ones alone", len(dead), n, large)
	}
	c.ready("leader")
	c.term()
}
