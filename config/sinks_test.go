package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Without a DSN nothing is asked of it, not even that its variable is set.
func TestNoDSN(t *testing.T) {
	t.Parallel()
	const file = "source: {dsn: '${NOWHERE}', replication_dsn: '%', slot: orders}\nsinks: [{type: stdout}]\n"
	got, _, err := Parse("f.yml", []byte(file), []string{"DATABASE_URL=%"}, Options{NoDSN: true})
	if err != nil || got.Source.DSN != "" || got.Source.ReplicationDSN != "" || got.Source.Slot != "orders" {
		t.Errorf("source %+v, %v", got.Source, err)
	}
	if _, _, err := Parse("f.yml", []byte(file), nil, Options{}); err == nil {
		t.Error("no mistake")
	}
}

// What sinks' packages find has its line, comes with the rest, and says nothing twice.
func TestCheckSink(t *testing.T) {
	t.Parallel()
	const file = `source: {dsn: "postgres://localhost/shop"}
sinks:
  - name: a
    type: webhook
    url: "ftp://h"
    secret: [x, y]
  - name: b
    type: stdout
  - {name: c, type: composite, members: [a, b]}
  - {name: d, type: other}
`
	asked := 0
	_, _, err := Parse("f.yml", []byte(file), nil, Options{CheckSink: func(c Config, i int) []Mistake {
		asked++
		return []Mistake{{Path: "url", Text: "is wrong"}, {Path: "secret[1]", Text: "is weak in " + c.Sinks[i].Name}, {Text: "is not to be"}}
	}})
	want := `f.yml:5: sinks[0].url: has the scheme "ftp"; write https, http
f.yml:6: sinks[0].secret[1]: is weak in a
f.yml:7: sinks[1].url: is wrong
f.yml:7: sinks[1].secret[1]: is weak in b
f.yml:7: sinks[1]: is not to be
f.yml:9: sinks[2].url: is wrong
f.yml:9: sinks[2].secret[1]: is weak in c
f.yml:9: sinks[2]: is not to be
f.yml:10: sinks[3].type: "other" is no type of sink; write one of kafka, redis_stream, webhook, event_bus, composite, stdout`
	if diff := cmp.Diff(want, errorText(err)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if asked != 3 {
		t.Errorf("asked %d times, want 3", asked)
	}
}

func TestURLIsMasked(t *testing.T) {
	t.Parallel()
	for u, want := range map[URL]string{
		"":                                     "",
		"redis://u:canary@h:1/3?x=canary&y":    "redis://***@h:1/3?x=***&y=***",
		"https://hooks.example/T0/canary":      "https://hooks.example/***",
		"https://hooks.example/":               "https://hooks.example/",
		"nats://canary@a:1,tls://u:canary@b:2": "nats://***@a:1,tls://***@b:2",
		"nats://u:can,ary@a:1":                 "nats://***@a:1",
		"nats://u:can/ary@a:1":                 "***",
		"canary":                               "***",
	} {
		if got := u.String(); got != want {
			t.Errorf("%q prints as %q, want %q", string(u), got, want)
		}
	}
}

// Topics that events can be delivered under, and others of which this package says nothing.
func TestTopicsThatAreGood(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ sink, topic string }{
		{"type: kafka, brokers: [h:1]", "{tenant_id}"},
		{"type: kafka, brokers: [h:1]", ".{tenant_id}"},
		{"type: kafka, brokers: [h:1]", "A-z_0.9"},
		{"type: redis_stream, url: redis://h", "a b > * .. é {id}"},
		{"type: event_bus, url: nats://h", "{tenant_id}"},
		{"type: event_bus, url: nats://h", "{tenant_id}{id}.a-b.é.https://h/"},
		{"type: event_bus, url: nats://h", "a$.$b._INBOX"},
		{"type: webhook, url: https://h, secret: s", "a b > * ftp://other/"},
		{"type: webhook, url: https://h, secret: s", "https://h"},
		{"type: webhook, url: https://h, secret: s", "https://H:443/{tenant_id}/..{id}/%2F?{aggregate_type}=a&b#c"},
		{"type: webhook, url: http://h:80, secret: s, allow_hosts: ['H:80']", "http://h/"},
		{"type: webhook, url: 'http://[::1]:81', secret: s, allow_hosts: ['[::1]:81']", "http://[::1]:81/"},
		{"type: stdout", "a b > *"},
	} {
		file := fmt.Sprintf("sinks: [{name: a, %s}, {name: b, %[1]s, topic: %[2]q}]\nroutes: [{sinks: [a, b], topic: %[2]q}]\n", c.sink, c.topic)
		if _, _, err := Parse("f.yml", []byte(file), []string{"DATABASE_URL=postgres://localhost/shop"}, Options{}); err != nil {
			t.Errorf("%s with %q: %v", c.sink, c.topic, err)
		}
	}
}

// A webhook within one's own network, and what a list with a mistake in it comes to.
func TestWebhookFromTheEnvironment(t *testing.T) {
	t.Parallel()
	environ := []string{
		"DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=webhook", "OUTBOX_WEBHOOK_URL=http://hooks.internal:8080/a", "OUTBOX_WEBHOOK_SECRET=s",
	}
	got, warnings, err := Load("", append(environ, "OUTBOX_WEBHOOK_ALLOW_HOSTS=other, hooks.internal:8080"))
	if err != nil || warnings != nil {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	if diff := cmp.Diff([]string{"other", "hooks.internal:8080"}, got.Sinks[0].Webhook.AllowHosts); diff != "" {
		t.Errorf("allow_hosts (-want +got):\n%s", diff)
	}
	_, _, err = LoadWith("", append(environ, "OUTBOX_WEBHOOK_ALLOW_HOSTS=hooks.internal:8080,a_b"), Options{CheckSink: func(Config, int) []Mistake {
		return []Mistake{{Path: "allow_hosts[1]", Text: "is no host"}}
	}})
	if want := "OUTBOX_WEBHOOK_ALLOW_HOSTS: sinks[0].allow_hosts[1]: is no host"; errorText(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
	_, _, err = Load("", environ)
	want := "OUTBOX_WEBHOOK_URL: sinks[0].url: http sends events and signatures in clear; write https, or name the host in allow_hosts (OUTBOX_WEBHOOK_ALLOW_HOSTS)"
	if errorText(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// Every type of sink from the environment alone.
func TestSinksFromTheEnvironment(t *testing.T) {
	t.Parallel()
	got, warnings, err := Load("", []string{
		"DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=composite", "OUTBOX_COMPOSITE_STRATEGY=primary",
		"OUTBOX_COMPOSITE_MEMBERS=kafka,redis_stream,webhook,event_bus", "OUTBOX_KAFKA_BROKERS=localhost:9092", "OUTBOX_REDIS_URL=rediss://u:canary@localhost",
		"OUTBOX_REDIS_STREAM=pyairtable:events", "OUTBOX_WEBHOOK_URL=https://h/?token=canary", "OUTBOX_WEBHOOK_SECRET=canary,canary", "OUTBOX_EVENT_BUS_URL=nats://canary@localhost",
	})
	if err != nil || warnings != nil {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	if n := len(got.Sinks); n != 5 || got.Sinks[2].Topic != "pyairtable:events" || string(got.Sinks[3].Webhook.Secrets[0]) != "canary,canary" ||
		!got.Sinks[2].Redis.TLS.Enabled || got.Sinks[0].Composite.Strategy != StrategyPrimary || got.Sinks[4].Topic != "outbox.event.{aggregate_type}.{event_type}" {
		t.Errorf("%d sinks: %+v", n, got.Sinks)
	}
	effective, err := Effective(got)
	if err != nil || strings.Contains(effective, "canary") || !strings.Contains(effective, "url: rediss://***@localhost\n") {
		t.Errorf("%v:\n%s", err, effective)
	}
	if text := fmt.Sprintf("%v %+v %#v", got, got, got.Sinks[3].Webhook.Secrets[0]); strings.Contains(text, "canary") {
		t.Errorf("a secret is told: %s", text)
	}
}

// TestRetriesOfWebhooks: a webhook has a default of its own, which whatever is written beats. The effective configuration says so.
func TestRetriesOfWebhooks(t *testing.T) {
	t.Parallel()
	const dsn, hook = "DATABASE_URL=postgres://localhost/shop", "{type: webhook, url: https://h}"
	for name, c := range map[string]struct {
		file    string
		environ []string
		retries []int // of the sinks; −1 for those of delivery
	}{
		"default":                  {file: "sinks: [" + hook + ", {type: stdout}]", retries: []int{20, -1}},
		"the sink's own":           {file: "sinks: [{type: webhook, url: https://h, max_retries: 0}]", retries: []int{0}},
		"delivery":                 {file: "sinks: [" + hook + "]\ndelivery: {max_retries: 3}", retries: []int{-1}},
		"delivery, the sink's own": {file: "sinks: [{type: webhook, url: https://h, max_retries: 5}]\ndelivery: {max_retries: 3}", retries: []int{5}},
		"delivery without a value": {file: "sinks: [" + hook + "]\ndelivery: {max_retries: }", retries: []int{20}},
		"an empty reference":       {file: "sinks: [" + hook + "]\ndelivery: {max_retries: '${RETRIES:-}'}", retries: []int{20}},
		"variable":                 {file: "sinks: [" + hook + "]", environ: []string{"OUTBOX_MAX_RETRIES=3"}, retries: []int{-1}},
		"empty variable":           {file: "sinks: [" + hook + "]", environ: []string{"OUTBOX_MAX_RETRIES="}, retries: []int{20}},
		"environment alone": {environ: []string{
			"OUTBOX_PUBLISHER_TYPE=webhook", "OUTBOX_WEBHOOK_URL=https://h",
		}, retries: []int{20}},
		"member of all": {file: "sinks: [" + hook + ", {type: stdout}, {type: composite, members: [webhook, stdout]}]", retries: []int{20, -1, -1}},
		"member of any": {file: "sinks: [" + hook + ", {type: stdout}, {type: composite, strategy: any, members: [webhook, stdout]}]", retries: []int{-1, -1, -1}},
	} {
		got, _, err := Parse("outbox.yml", []byte(c.file), append(c.environ, dsn), Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		effective, err := Effective(got)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := Parse("effective.yml", []byte(effective), []string{dsn}, Options{})
		if err != nil {
			t.Errorf("%s: effective does not load: %v\n%s", name, err, effective)
			continue
		}
		for _, loaded := range []Config{got, again} {
			var retries []int
			for _, s := range loaded.Sinks {
				n := -1
				if s.MaxRetries != nil {
					n = *s.MaxRetries
				}
				retries = append(retries, n)
			}
			if !slices.Equal(retries, c.retries) {
				t.Errorf("%s: %v, want %v\n%s", name, retries, c.retries, effective)
			}
		}
	}
}
