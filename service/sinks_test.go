package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

func loadFile(t *testing.T, text string) config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "outbox.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := config.Load(path, []string{"DATABASE_URL=postgres://localhost/shop"})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

const allSinks = `
sinks:
  - {name: events, type: kafka, brokers: [localhost:9092]}
  - {name: stream, type: redis_stream, url: "redis://localhost"}
  - {name: hook, type: webhook, url: "https://h.example/hooks", secret: abc}
  - {name: bus, type: event_bus, url: "nats://localhost"}
  - {name: log, type: stdout}
`

// Routing says where events go, and what becomes of a composite.
func TestRouting(t *testing.T) {
	t.Parallel()
	event := outbox.Event{ID: "1", AggregateType: "order", AggregateID: "42", EventType: "order.paid", TenantID: "acme"}
	kafka := admin.Target{Sink: "events", Type: "kafka", Topic: "outbox.event.order", Key: "42"}
	stream := admin.Target{Sink: "stream", Type: "redis_stream", Topic: "outbox.event.order", Key: "42"}
	hook := admin.Target{Sink: "hook", Type: "webhook", Topic: "outbox.event.order", Key: "42", URL: "https://h.example/***"}
	bus := admin.Target{Sink: "bus", Type: "event_bus", Topic: "outbox.event.order.order.paid", Key: "42"}
	log := admin.Target{Sink: "log", Type: "stdout", Topic: "outbox.event.order", Key: "42"}
	once := func(t admin.Target) admin.Target { t.OneTry = true; return t }
	for name, test := range map[string]struct {
		file string
		want []admin.Target
	}{
		"no routes": {allSinks, []admin.Target{kafka, stream, hook, bus, log}},
		"the first that fits": {allSinks + `
routes:
  - {match: {event_type: ["payment.*"]}, sinks: [log]}
  - {match: {event_type: ["order.*"], tenant_id: [acme]}, sinks: [hook, events], topic: "t.{tenant_id}", key: "{id}"}
  - {sinks: [bus]}
`, []admin.Target{
			{Sink: "hook", Type: "webhook", Topic: "t.acme", Key: "1", URL: "https://h.example/***"}, {Sink: "events", Type: "kafka", Topic: "t.acme", Key: "1"},
		}},
		"a webhook's URL of a route": {
			allSinks + `routes: [{sinks: [hook], topic: "https://h.example/canary/{tenant_id}/x-{tenant_id}/{event_type}?t=canary"}]`,
			[]admin.Target{{Sink: "hook", Type: "webhook", Key: "42", URL: "https://h.example/***/acme/***/order.paid?t=***"}},
		},
		"webhooks as members": {
			`sinks:
  - {name: one, type: webhook, url: "https://h.example/order", secret: abc}
  - {name: two, type: webhook, url: "https://h.example", secret: abc, topic: "https://h.example/{id}"}
  - {name: either, type: composite, strategy: any, members: [one, two]}
`, []admin.Target{{Sink: "either", Type: "composite", Members: []admin.Target{
				{Sink: "one", Type: "webhook", Topic: "outbox.event.order", Key: "42", URL: "https://h.example/order"},
				{Sink: "two", Type: "webhook", Key: "42", URL: "https://h.example/1"},
			}}},
		},
		"nobody's": {allSinks + "routes: [{match: {tenant_id: [other]}, sinks: [log]}]\n", []admin.Target{}},
		"all":      {allSinks + "  - {name: both, type: composite, members: [events, log]}\nroutes: [{sinks: [both, bus]}]\n", []admin.Target{kafka, log, bus}},
		"primary": {
			allSinks + "  - {name: both, type: composite, strategy: primary, members: [hook, stream, log]}\nroutes: [{sinks: [both]}]\n",
			[]admin.Target{hook, once(stream), once(log)},
		},
		"any": {
			allSinks + "  - {name: either, type: composite, strategy: any, members: [bus, stream]}\n",
			[]admin.Target{kafka, hook, log, {Sink: "either", Type: "composite", Members: []admin.Target{bus, stream}}},
		},
	} {
		routing, err := Routing(loadFile(t, test.file))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(test.want, routing.Targets(&event)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
}

// Build finds the mistakes that only the package of a sink can find. They have the exit code of a wrong configuration.
func TestBuildFindsMistakes(t *testing.T) {
	t.Parallel()
	for want, sink := range map[string]string{
		"sinks[0].placement": "{name: k, type: kafka, brokers: [a:1], placement: \"type:nowhere\"}",
		"sinks[0].secret[0]": "{name: w, type: webhook, url: \"https://h\", secret: \"whsec_%%%\"}",
		"sinks[0].url":       "{name: r, type: redis_stream, url: \"redis://h/not-a-number\"}",
	} {
		_, err := Build(loadFile(t, "sinks: ["+sink+"]\n"), BuildOptions{})
		exitcodetest.Want(t, err, exitcode.Config, want)
		if err != nil && strings.Contains(err.Error(), "%%%") {
			t.Errorf("a secret is told: %v", err)
		}
	}
}

// The source of CloudEvents names the table, if another table may have the same ids.
func TestDefaultSource(t *testing.T) {
	t.Parallel()
	for table, want := range map[string]string{
		"public.event_outbox":  "/outbox/shop/{aggregate_type}",
		"public.orders_outbox": "/outbox/shop/public.orders_outbox/{aggregate_type}",
		"sales.event outbox":   "/outbox/shop/sales.event%20outbox/{aggregate_type}",
	} {
		cfg := loadFile(t, "source: {table: "+table+"}\n"+allSinks)
		if got := newSinkBuilder(cfg, BuildOptions{}).source; got != want {
			t.Errorf("%s: %s, want %s", table, got, want)
		}
	}
}
