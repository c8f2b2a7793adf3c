package service

import (
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/tracing"
)

// What spans say of a destination is bounded by the configuration, and holds no path of a webhook.
func TestTracedDestinations(t *testing.T) {
	t.Parallel()
	const file = `
source: {dsn: postgres://localhost/shop}
sinks:
  - {name: one, type: kafka, brokers: 'localhost:9092', topic: orders}
  - {name: many, type: redis_stream, url: 'redis://localhost', topic: 'outbox.{aggregate_type}'}
  - {name: bus, type: event_bus, url: 'nats://localhost', topic: events}
  - {name: hook, type: webhook, url: 'https://example.com/canary', topic: 'https://example.com/canary/{event_type}'}
  - {name: print, type: stdout}
`
	for _, c := range []struct {
		routes string
		want   []tracing.Destination
	}{
		{"", []tracing.Destination{
			{Sink: "one", System: "kafka", Topic: "orders"},
			{Sink: "many", System: "redis", Topic: "outbox.{aggregate_type}", IsTemplate: true},
			{Sink: "bus", System: "nats", Topic: "events"},
			{Sink: "hook", System: "webhook"},
			{Sink: "print", System: "stdout"},
		}},
		{"routes: [{match: {event_type: [x]}, sinks: [one], topic: other}, {sinks: [many]}]", []tracing.Destination{{Sink: "one", System: "kafka"}, {Sink: "many", System: "redis"}}},
	} {
		cfg, _, err := config.Parse("f.yml", []byte(file+c.routes), nil, config.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if got := traced(cfg, want.Sink); got != want && (want.Sink != "print" || got.Sink != want.Sink || got.System != want.System) {
				t.Errorf("routes %q: got %+v, want %+v", c.routes, got, want)
			}
		}
	}
}
