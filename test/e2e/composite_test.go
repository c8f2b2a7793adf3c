package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// "all" is its members: each gets every event and has rows of its own, and each keeps order through kills. It says so in
// the file, or in the environment, which then says everything.
func TestCompositeAll(t *testing.T) {
	t.Parallel()
	for from, members := range map[string][]string{"file": {"redis_stream", "webhook"}, "environment": {"kafka", "redis_stream"}} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			const kills = 3
			w := newWorld(t, worldOptions{sinks: members})
			if from == "file" {
				w.sinks = append(w.sinks, map[string]any{"name": "both", "type": "composite", "strategy": "all", "members": members})
				w.routes = []map[string]any{{"sinks": []string{"both"}}}
			}
			c := w.connector()
			if from == "environment" {
				topic := w.topics.prefix + ".{aggregate_type}"
				c.env = []string{
					"DATABASE_URL=" + w.dsn, "SERVICE_NAME=" + w.slot, "OUTBOX_SLOT=" + w.slot, "OUTBOX_PUBLICATION=" + w.publication,
					"OUTBOX_PUBLISHER_TYPE=composite", "OUTBOX_COMPOSITE_STRATEGY=all", "OUTBOX_COMPOSITE_MEMBERS=" + strings.Join(members, ","),
					"OUTBOX_KAFKA_BROKERS=" + strings.Join(w.kafka.Brokers(), ","), "OUTBOX_KAFKA_TOPIC=" + topic,
					"OUTBOX_REDIS_URL=" + w.redis.URL(), "OUTBOX_REDIS_STREAM=" + topic,
					"OUTBOX_BATCH_SIZE=20", "OUTBOX_WORKER_COUNT=4", "OUTBOX_LISTEN=" + c.listen,
				}
			}
			random := testrand.New(t)
			l := w.load(load{writers: 3, aggregates: 12, rate: 150})
			for i := range kills {
				c.start()
				w.deliveredAtLeast(20*time.Second, w.delivered()+1)
				passes(t, time.Duration(random.IntN(400))*time.Millisecond)
				if i == 1 {
					w.crashDestination("redis_stream")
				}
				c.kill()
				w.snapshot()
			}
			l.stop()
			c.start()
			c.ready("leader")
			w.verify(expectation{faults: kills + 1})
			c.term()
		})
	}
}
