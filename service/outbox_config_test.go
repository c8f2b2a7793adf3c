package service

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const testDSN = "postgres://localhost/shop"

// named is a publisher that publishes nothing.
type named string

func (named) Publish(context.Context, *outbox.OutboxEntry) error { return nil }
func (n named) GetName() string                                  { return string(n) }

// fromFile returns the daemon's configuration for a file.
func fromFile(t *testing.T, text string) config.Config {
	t.Helper()
	if !strings.Contains(text, "source: ") {
		text = "source: {dsn: " + testDSN + "}\n" + text
	}
	cfg, _, err := config.Parse("outbox.yaml", []byte("http: {listen: 127.0.0.1:1}\n"+text), nil,
		config.Options{NoSinks: true, InProcess: true})
	if err != nil {
		t.Fatal(err)
	}
	cfg.HTTP.Listen = ""
	return cfg
}

// Every publisher of the platform's page leads to the same configuration as a file of the daemon.
func TestOutboxServiceConfigIsTheDaemons(t *testing.T) {
	t.Parallel()
	kafka := map[string]any{"brokers": []string{"localhost:9092"}, "topic": "pyairtable-events"}
	const kafkaFile = `{type: kafka, brokers: [localhost:9092], topic: pyairtable-events}`
	redis := map[string]any{"redis_url": "redis://:p$w@localhost:6379", "stream": "pyairtable:events"}
	const redisFile = `{type: redis_stream, url: "redis://:p$$w@localhost:6379", topic: "pyairtable:events"}`
	open := func() (sinks.Sink, error) { return nil, nil }
	for name, test := range map[string]struct {
		c    OutboxServiceConfig
		want string // without what all have
	}{
		"kafka": {OutboxServiceConfig{PublisherType: "kafka", PublisherConfig: kafka}, "sinks: [" + kafkaFile + "]"},
		"redis": {OutboxServiceConfig{PublisherType: "redis_stream", PublisherConfig: redis}, "sinks: [" + redisFile + "]"},
		"webhook": {OutboxServiceConfig{PublisherType: "webhook", PublisherConfig: map[string]any{
			"url": "https://api.example.com/webhooks/events", "headers": map[string]string{"Authorization": "Bearer ${token}"}, "rate": 7, "secret": []any{"a", "b"},
		}}, `sinks: [{type: webhook, url: "https://api.example.com/webhooks/events", headers: {Authorization: "Bearer $${token}"}, rate: 7, secret: [a, b]}]`},
		"NATS": {
			OutboxServiceConfig{PublisherType: "event_bus", PublisherConfig: map[string]any{"url": "nats://localhost", "stream": "events"}},
			"sinks: [{type: event_bus, url: nats://localhost, stream: events}]",
		},
		"names and texts of other types": {OutboxServiceConfig{
			PublisherType: "composite", LedgerSchema: "ledger", PublisherConfig: map[string]any{
				"strategy": named("any"), "members": []any{named("bus"), "webhook"}, "event_bus": map[string]any{"name": named("bus")},
				"webhook": map[string]any{"url": "https://h", "secret": []byte("s$")},
			},
		}, "source: {dsn: " + testDSN + ", ledger_schema: ledger}\n" +
			"sinks: [{type: webhook, url: https://h, secret: s$$}, {type: in_process, name: bus}, {type: composite, strategy: any, members: [bus, webhook]}]"},
		"bus in the process": {OutboxServiceConfig{PublisherType: "event_bus"}, "sinks: [{type: in_process, name: event_bus}]"},
		"composite of one":   {OutboxServiceConfig{PublisherType: "composite", PublisherConfig: map[string]any{"strategy": "primary", "kafka": kafka}}, "sinks: [" + kafkaFile + "]"},
		"composite of all": {
			OutboxServiceConfig{PublisherType: "composite", PublisherConfig: map[string]any{"event_bus": nil, "redis_stream": redis, "kafka": kafka}},
			"sinks: [" + kafkaFile + ", " + redisFile + ", {type: in_process, name: event_bus}, {type: composite, strategy: all, members: [kafka, redis_stream, event_bus]}]",
		},
		"composite with the service's own": {OutboxServiceConfig{
			PublisherType: "composite", Publishers: []Publisher{named("mine")}, Sinks: map[string]func() (sinks.Sink, error){"other": open},
			PublisherConfig: map[string]any{"strategy": "any", "members": []string{"mine", "kafka"}, "kafka": kafka},
		}, "sinks: [" + kafkaFile + ", {type: composite, strategy: any, members: [mine, kafka]}, {type: in_process, name: mine}, {type: in_process, name: other}]"},
		"all else": {OutboxServiceConfig{
			ServiceName: "user-service", DatabaseURL: "postgres://other/db", Slot: "s", Publication: "p", PublisherType: "stdout", BatchSize: 50, PollInterval: time.Second,
			MaxRetries: 7, WorkerCount: 2, RetentionDays: 10, CircuitBreakerEnabled: true, CircuitBreakerMaxFailures: 9, CircuitBreakerResetTimeout: 90 * time.Second, EnableMetrics: true,
			SLAWithin: 250 * time.Millisecond, SLAObjective: 99.9,
		}, "name: user-service\nsinks: [{type: stdout}]\ndelivery: {batch_size: 50, max_retries: 7, lanes: 2}\nbreaker: {enabled: true, max_failures: 9, reset_timeout: 90s}\nretention: {outbox: 10d}\nsla: {within: 250ms, objective: 99.9}\nmetrics: {enabled: true}"},
	} {
		got, err := test.c.load(environment{variables: []string{"DATABASE_URL=" + testDSN}, explicit: true})
		if name == "all else" {
			got, err = test.c.load(environment{explicit: true})
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text := test.want
		if name != "all else" {
			text += "\nbreaker: {enabled: false}\nmetrics: {enabled: false}"
		}
		want := fromFile(t, text)
		if name == "all else" {
			want.Source.DSN, want.Source.ReplicationDSN, want.Source.Slot, want.Source.Publication = "postgres://other/db", "postgres://other/db", "s", "p"
		}
		place := "DATABASE_URL"
		if name == "all else" {
			place = "DatabaseURL"
		}
		want.Source.DSNPlace, want.Source.ReplicationDSNPlace = place, place
		if diff := cmp.Diff(want, got.config); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
		for _, s := range got.config.Sinks { // none without its maker
			if (s.Type == config.SinkInProcess) != (got.openers[s.Name] != nil) {
				t.Errorf("%s: sink %s of type %s opens by %v", name, s.Name, s.Type, got.openers)
			}
		}
	}
}

// All mistakes are reported at once, with the names of the fields, and without values that may be secrets.
func TestOutboxServiceConfigMistakes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		c    OutboxServiceConfig
		want string
	}{
		"nothing": {OutboxServiceConfig{}, `
PublisherType: missing; write kafka, redis_stream, webhook, event_bus, composite, stdout, or name Publishers or Sinks of your own
DatabaseURL: missing; write it, or set DATABASE_URL`},
		"everything": {OutboxServiceConfig{
			ServiceName: " x", DatabaseURL: "postgres://u:hunter2@[", Slot: "A", PublisherType: "kafka", BatchSize: -1, MaxRetries: -1, WorkerCount: 1000,
			RetentionDays: -1, CircuitBreakerMaxFailures: -1, CircuitBreakerResetTimeout: -1,
			SLAWithin: -1, SLAObjective: 100,
			PublisherConfig: map[string]any{"topics": "x", "brokers": []string{"h"}, "placement": "type:nowhere", "compression": make(chan int)},
			Publishers:      []Publisher{nil, named("kafka"), named("a b")},
			Sinks:           map[string]func() (sinks.Sink, error){"s": nil},
		}, `
PublisherConfig.compression: is a chan int; write a string, a number, a bool, a list or a map of such
PublisherConfig.topics: unknown key; known here: …
Publishers[0]: is nil
Sinks["s"]: is nil
RetentionDays: -1 is not between 0 and 36500
ServiceName: must be at most 200 characters, without control characters or spaces around
DatabaseURL: …
Slot: "A" is no name for a slot: 1 to 63 of a-z, 0-9 and _
PublisherConfig.brokers[0]: "h" is no broker; write host:9092
Publishers[1].GetName(): "kafka" is the name of PublisherConfig already; the ledger knows a sink by its name
Publishers[2].GetName(): "a b" is no name for a sink: 1 to 63 letters, digits, _, . and -, the first a letter or digit
BatchSize: -1 is not between 1 and 10000
WorkerCount: 1000 is not between 1 and 256
MaxRetries: -1 is not between 0 and 1000000
CircuitBreakerMaxFailures: -1 is not between 1 and 1000000
CircuitBreakerResetTimeout: -1ns is not between 10ms and 24h0m0s
SLAWithin: -1ns is not between 1ms and 1h0m0s
SLAObjective: 100 is not more than 0 and less than 100; write a share in per cent, such as 99.9
PublisherConfig.placement: "type:nowhere": …`},
		"redis": {OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: "redis_stream", PublisherConfig: map[string]any{"redis_url": "http://hunter2", "url": "redis://x", "stream": "{nothing}"}}, `
PublisherConfig.url: is said already
PublisherConfig.stream: {nothing} is no field of an event; these are: …
PublisherConfig.redis_url: has the scheme "http"; write redis, rediss`},
		"webhook": {OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: "webhook", PublisherConfig: map[string]any{"url": "http://localhost", "headers": 7}}, `
PublisherConfig.headers: must hold keys, not one value
PublisherConfig.url: http sends events and signatures in clear; write https, or name the host in allow_hosts`},
		"unknown type": {OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: "kafak"}, `
PublisherType: "kafak" is no type of sink; write one of kafka, redis_stream, webhook, event_bus, composite, stdout`},
		"no type": {OutboxServiceConfig{DatabaseURL: testDSN, PublisherConfig: map[string]any{"brokers": "x:1"}}, `
PublisherType: missing; write that of PublisherConfig, such as kafka`},
		"composite": {OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: "composite", PublisherConfig: map[string]any{
			"strategy": "first", "members": []string{"kafka", "nobody"}, "kafka": map[string]any{}, "webhook": "https://x", "stdout": nil, "nats": nil,
		}}, `
PublisherConfig.strategy: is unknown; write all, any, primary
PublisherConfig.nats: unknown key; known here: strategy, members, kafka, redis_stream, webhook, event_bus, stdout
PublisherConfig.webhook: must be a map[string]any
PublisherConfig.members: leaves out "stdout", which is described beside it
PublisherConfig.kafka.brokers: missing; write brokers: [host:9092]
PublisherConfig.members[1]: "nobody" is no sink; these are: composite, kafka, stdout`},
		"composite without order": {OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: "composite", PublisherConfig: map[string]any{
			"strategy": "primary", "kafka": map[string]any{"brokers": "h:1"}, "stdout": nil,
		}}, `
PublisherConfig.members: missing; write them in their order, such as []string{"kafka", "stdout"}`},
		"composite of nothing": {OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: "composite"}, `
PublisherConfig: describes no member; write kafka with its keys`},
		"a type that is made in Go": {OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: "in_process"}, `
PublisherType: "in_process" is no type of sink; write one of kafka, redis_stream, webhook, event_bus, composite, stdout`},
		"values that are no text": {OutboxServiceConfig{
			DatabaseURL: testDSN, LedgerSchema: "Outbox\x00", PublisherType: "event_bus", PublisherConfig: map[string]any{"name": 7, "topic": "hunter2\xff"},
		}, `
PublisherConfig.name: must be a string
PublisherConfig.topic: is not UTF-8
LedgerSchema: …`},
	} {
		_, err := test.c.load(environment{variables: []string{"DATABASE_URL=" + test.c.DatabaseURL}, explicit: true})
		exitcodetest.Want(t, err, exitcode.Config)
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: a secret is told", name)
		}
		got := strings.Split(err.Error(), "\n")
		want := strings.Split(strings.TrimPrefix(test.want, "\n"), "\n")
		for i, line := range want { // … stands for what is another package's to say
			if begin, _, cut := strings.Cut(line, "…"); cut && i < len(got) && strings.HasPrefix(got[i], begin) {
				want[i] = got[i]
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
	_, err := (&OutboxServiceConfig{PublisherType: "stdout"}).load(environment{variables: []string{"SERVICE_NAME=a\x01", "DATABASE_URL=%"}, explicit: true})
	exitcodetest.Want(t, err, exitcode.Config, "SERVICE_NAME: ServiceName: must be at most", "DATABASE_URL: DatabaseURL: is no connection string")
	_, err = NewOutboxService(nil, OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: "stdout", BatchSize: -1})
	if err == nil || !strings.Contains(err.Error(), "db: is nil") || !strings.Contains(err.Error(), "BatchSize") {
		t.Errorf("without a database: %v", err)
	}
}

// What a sink of the service's own finds wrong with its settings is told with the place of the sink, and is final. Other errors are as they
// are.
func TestMistakesOfOwnSinks(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	errs := map[string]error{
		"file": fmt.Errorf("open: %w", errors.Join(sinks.FieldErrorf("path", "is empty"), away, errors.Join(sinks.FieldErrorf("mode", "%o is no mode", 8)))),
		"away": away,
	}
	own := map[string]func() (sinks.Sink, error){}
	for name, err := range errs {
		own[name] = func() (sinks.Sink, error) { return nil, err }
	}
	got, err := (&OutboxServiceConfig{DatabaseURL: testDSN, Sinks: own}).load(environment{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = got.openers["file"]()
	exitcodetest.Want(t, err, exitcode.Config)
	if want := "Sinks[\"file\"].path: is empty\nSinks[\"file\"]: away\nSinks[\"file\"].mode: 10 is no mode"; err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err = got.openers["away"](); err != away { //nolint:errorlint // the very error
		t.Errorf("got %v, want %v", err, away)
	}
}

// There is a warning for each setting that has no effect.
func TestOutboxServiceConfigWarnings(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	_, err := NewOutboxService(new(sql.DB), OutboxServiceConfig{
		DatabaseURL: testDSN, PollInterval: time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		PublisherType: "webhook", PublisherConfig: map[string]any{"url": "https://h"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"PollInterval has no effect", "PublisherConfig.secret is missing"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q is not in:\n%s", want, log.String())
		}
	}
}

// A preset with the environment of the platform's page leads to the same configuration as the daemon with this environment.
func TestPreset(t *testing.T) {
	t.Parallel()
	p := Preset{Service: "orders", Sinks: []string{"kafka"}, Topics: map[string]string{"kafka": "k", "redis_stream": "r"}, Lanes: 2}
	page := []string{
		"DATABASE_URL=" + testDSN, "OUTBOX_BATCH_SIZE=50", "OUTBOX_POLL_INTERVAL=5s", "OUTBOX_MAX_RETRIES=3", "OUTBOX_WORKER_COUNT=3",
		"OUTBOX_ENABLE_METRICS=true", "OUTBOX_RETENTION_DAYS=30", "SERVICE_NAME=user-service", "OUTBOX_KAFKA_BROKERS=k:1", "OUTBOX_REDIS_URL=redis://r",
	}
	const kafka = "{type: kafka, brokers: [\"k:1\"], topic: k}"
	const redis = "{type: redis_stream, url: \"redis://r\", topic: r}"
	for name, test := range map[string]struct {
		preset  Preset
		environ []string
		want    string
	}{
		"its own sink":      {p, nil, "sinks: [" + kafka + "]"},
		"another":           {p, []string{"OUTBOX_PUBLISHER_TYPE=redis_stream"}, "sinks: [" + redis + "]"},
		"another topic":     {p, []string{"OUTBOX_KAFKA_TOPIC=mine"}, "sinks: [{type: kafka, brokers: [\"k:1\"], topic: mine}]"},
		"the process's bus": {p, []string{"OUTBOX_PUBLISHER_TYPE=event_bus"}, "sinks: [{name: event_bus, type: in_process}]"},
		"NATS":              {p, []string{"OUTBOX_PUBLISHER_TYPE=event_bus", "OUTBOX_EVENT_BUS_URL=nats://n"}, "sinks: [{type: event_bus, url: nats://n}]"},
		"a composite": {
			p,
			[]string{"OUTBOX_PUBLISHER_TYPE=composite", "OUTBOX_COMPOSITE_STRATEGY=any", "OUTBOX_COMPOSITE_MEMBERS=redis_stream, kafka"},
			"sinks: [" + kafka + ", " + redis + ", {type: composite, strategy: any, members: [redis_stream, kafka]}]",
		},
		"a ledger of its own": {
			p,
			[]string{"OUTBOX_LEDGER_SCHEMA=ledger"},
			"source: {dsn: " + testDSN + ", ledger_schema: ledger}\nsinks: [" + kafka + "]",
		},
		"two sinks": {
			Preset{Service: "orders", Sinks: []string{"redis_stream", "kafka"}, Topics: p.Topics},
			nil,
			"sinks: [" + kafka + ", " + redis + ", {type: composite, members: [redis_stream, kafka]}]",
		},
	} {
		c, environ, mistakes := test.preset.config(append(page, test.environ...))
		got, err := c.load(environment{variables: environ}, mistakes...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := fromFile(t, test.want+"\nname: orders\ndelivery: {batch_size: 50, lanes: 3}\nretention: {outbox: 30d}")
		place := "DATABASE_URL"
		if name == "all else" {
			place = "DatabaseURL"
		}
		want.Source.DSNPlace, want.Source.ReplicationDSNPlace = place, place
		if diff := cmp.Diff(want, got.config); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
	wrong := Preset{Service: " x", Sinks: []string{"redis_stream", "kafka"}, Topics: map[string]string{"kafak": "t", "kafka": "a b"}, Lanes: 300}
	c, environ, mistakes := wrong.config([]string{
		"DATABASE_URL=" + testDSN, "OUTBOX_BATCH_SIZE=many", "OUTBOX_RETENTION_DAYS=x", "OUTBOX_REDIS_STREAM={x}",
	})
	_, err := c.load(environment{variables: environ, preset: &wrong}, mistakes...)
	exitcodetest.Want(t, err, exitcode.Config, "OUTBOX_BATCH_SIZE: delivery.batch_size", `OUTBOX_RETENTION_DAYS: retention.outbox: "x" is no number of days`, `Topics: "kafak" is no type of sink`,
		"Sinks[1].brokers: missing; write brokers: [host:9092], or set OUTBOX_KAFKA_BROKERS", "Service: must be at most 200", `Topics["kafka"]: "a b" is no name for a topic`,
		"Lanes: 300 is not between 1 and 256", "OUTBOX_REDIS_STREAM: Sinks[0].topic: {x} is no field of an event", "Sinks[0].url: missing; write redis://host:6379, or set OUTBOX_REDIS_URL")
	for variable, want := range map[string]string{
		"OUTBOX_PUBLISHER_TYPE=in_process":       `OUTBOX_PUBLISHER_TYPE: "in_process" is no type of sink`,
		"OUTBOX_PUBLISHER_TYPE=composite":        `OUTBOX_COMPOSITE_MEMBERS: "" is no type of sink`,
		"OUTBOX_COMPOSITE_STRATEGY=first":        "OUTBOX_COMPOSITE_STRATEGY: is unknown; write all, any, primary",
		"OUTBOX_COMPOSITE_MEMBERS=kafak,webhook": `OUTBOX_COMPOSITE_MEMBERS: "kafak" is no type of sink`,
	} {
		c, environ, mistakes := p.config(append(page, "OUTBOX_PUBLISHER_TYPE=composite", "OUTBOX_COMPOSITE_MEMBERS=", "OUTBOX_WEBHOOK_URL=https://h", variable))
		_, err := c.load(environment{variables: environ}, mistakes...)
		exitcodetest.Want(t, err, exitcode.Config, want)
	}
	for _, types := range [][]string{{"kafak"}, {"kafak", "composite"}, {"stdout", "kafak"}} {
		c, environ, mistakes = Preset{Sinks: types}.config([]string{"DATABASE_URL=" + testDSN})
		_, err = c.load(environment{variables: environ}, mistakes...)
		exitcodetest.Want(t, err, exitcode.Config, fmt.Sprintf(`Sinks[%d]: "kafak" is no type of sink`, slices.Index(types, "kafak")))
		if strings.Contains(err.Error(), "Publisher") {
			t.Errorf("%v: what nobody wrote is wrong, too: %v", types, err)
		}
	}
	c, environ, mistakes = Preset{}.config(nil)
	_, err = c.load(environment{variables: environ, preset: &Preset{}}, mistakes...)
	const want = "Sinks: missing; write at least one of kafka, redis_stream, webhook, event_bus, stdout, or set OUTBOX_PUBLISHER_TYPE\n" +
		"DATABASE_URL: missing; write it, or set DATABASE_URL"
	if err == nil || err.Error() != want {
		t.Errorf("an empty preset: %v", err)
	}
}
