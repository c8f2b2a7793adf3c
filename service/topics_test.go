package service

import (
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestTopicsOf(t *testing.T) {
	t.Parallel()
	const fixed = `
sinks:
  - {name: first, type: kafka, brokers: [localhost:9092], topic: orders}
  - {name: hook, type: webhook, url: "https://h.example/hooks", secret: abc}
`
	for name, test := range map[string]struct {
		file  string
		first sinks.Topics // of the first sink
		hook  sinks.Topics // of the second
	}{
		"a field in the default topic, which is no URL": {`
sinks:
  - {name: stream, type: redis_stream, url: "redis://localhost"}
  - {name: hook, type: webhook, url: "https://h.example/hooks", secret: abc}
`, sinks.SeveralTopics, sinks.OneTopic},
		"one topic": {fixed, sinks.OneTopic, sinks.OneTopic},
		"routes that give it two": {fixed + `
routes:
  - {match: {event_type: ["order.*"]}, sinks: [first, hook], topic: other}
  - {sinks: [first, hook]}
`, sinks.SeveralTopics, sinks.OneTopic},
		"a route with a field": {fixed + `
routes:
  - {match: {event_type: ["order.*"]}, sinks: [first], topic: "t.{tenant_id}"}
  - {sinks: [hook], topic: "https://h.example/{tenant_id}"}
`, sinks.SeveralTopics, sinks.SeveralTopics},
		"a route to a composite": {fixed + `
  - {name: both, type: composite, strategy: all, members: [first, hook]}
routes:
  - {match: {event_type: ["order.*"]}, sinks: [both]}
  - {sinks: [both], topic: other}
`, sinks.SeveralTopics, sinks.OneTopic},
		"a composite that is one sink": {fixed + `
  - {name: either, type: composite, strategy: any, members: [first, hook]}
routes:
  - {match: {event_type: ["order.*"]}, sinks: [either]}
  - {sinks: [either]}
`, sinks.OneTopic, sinks.OneTopic},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := loadFile(t, test.file)
			if got := topicsOf(cfg, cfg.Sinks[0]); got != test.first {
				t.Errorf("%s: got %d, want %d", cfg.Sinks[0].Name, got, test.first)
			}
			if got := topicsOf(cfg, cfg.Sinks[1]); got != test.hook {
				t.Errorf("%s: got %d, want %d", cfg.Sinks[1].Name, got, test.hook)
			}
		})
	}
}
