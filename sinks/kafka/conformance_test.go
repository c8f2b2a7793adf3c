package kafka

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	fake := startFake(t)
	runConformance(t, fake.ListenAddrs(), nil)
}

// runConformance runs the suite on a topic that takes large records, and on one that refuses batches which are larger
// than 20 KB; on the latter, compressed, too.
func runConformance(t *testing.T, brokers []string, refuse func(*sinks.Message)) {
	for name, c := range map[string]struct {
		max         string
		maxPayload  int
		poison      int
		compression string
	}{
		"large topic":      {max: "3000000", poison: 4 << 20},
		"small topic":      {max: "20000", maxPayload: 15_000, poison: 30_000},
		"compressed, lz4":  {max: "3000000", compression: "lz4"},
		"compressed, zstd": {max: "3000000", compression: "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sinktest.Run(t, func(t testing.TB) *sinktest.Harness {
				s, network := newSink(t, Config{Brokers: brokers, Compression: c.compression})
				topic := createTopic(t, brokers, 3, map[string]string{"max.message.bytes": c.max})
				h := &sinktest.Harness{
					Sink: s, Topic: topic, MaxPayload: c.maxPayload, Received: func() []sinktest.Received { return received(t, brokers, topic) },
					Away: network.goAway, Hang: network.hang, Refuse: refuse,
				}
				if c.poison > 0 {
					h.Permanent = func(m *sinks.Message) { m.Event.Payload = []byte(strings.Repeat("poison", c.poison/6)) }
				}
				return h
			})
		})
	}
}

func received(t testing.TB, brokers []string, topic string) (all []sinktest.Received) {
	for _, r := range consume(t, brokers, topic) {
		e := sinktest.Received{ID: headerOf(r, "id"), Payload: r.Value, Columns: make(map[string]string)}
		for header, column := range map[string]string{
			"tenantId": "tenant_id", "correlationId": "correlation_id", "causationId": "causation_id",
		} {
			for _, h := range r.Headers {
				if h.Key == header {
					e.Columns[column] = string(h.Value)
				}
			}
		}
		all = append(all, e)
	}
	return all
}
