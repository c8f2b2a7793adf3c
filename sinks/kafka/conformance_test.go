package kafka

import (
	"strings"
	"sync"
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
		topics      sinks.Topics
	}{
		"large topic":      {max: "3000000", poison: 4 << 20},
		"small topic":      {max: "20000", maxPayload: 15_000, poison: 30_000, topics: sinks.SeveralTopics},
		"compressed, lz4":  {max: "3000000", compression: "lz4", topics: sinks.SeveralTopics},
		"compressed, zstd": {max: "3000000", compression: "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sinktest.Run(t, func(t testing.TB) *sinktest.Harness {
				s, network := newSink(t, Config{Brokers: brokers, Compression: c.compression, Topics: c.topics})
				topics := []string{createTopic(t, brokers, 3, map[string]string{"max.message.bytes": c.max})}
				h := &sinktest.Harness{
					Sink: s, Topic: topics[0], MaxPayload: c.maxPayload,
					Received: func() (all []sinktest.Received) {
						for _, topic := range topics {
							all = append(all, received(t, brokers, topic)...)
						}
						return all
					},
					Away: network.goAway, Hang: network.hang, Refuse: refuse,
				}
				h.WrongLogin = func() sinks.Checker { return withWrongLogin(t) }
				h.MissingTopic = func() (topic string, create func()) {
					topic = newTopicName()
					return topic, func() { createTopicNamed(t, brokers, topic, 2, nil) }
				}
				if c.topics == sinks.SeveralTopics {
					missing := newTopicName()
					create := sync.OnceFunc(func() {
						createTopicNamed(t, brokers, missing, 2, nil)
						topics = append(topics, missing)
					})
					h.TopicAway = func(m *sinks.Message) (back func()) {
						m.Topic = missing
						return create
					}
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
