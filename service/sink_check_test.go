package service

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// If a configuration is loaded with CheckSink, each mistake has its line, whichever package has found it. Without CheckSink,
// Build finds the mistakes of the sinks, with their paths.
func TestMistakesHaveLines(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "outbox.yaml")
	text := `source: {dsn: "postgres://localhost/shop"}
sinks:
  - name: missing
    type: event_bus
    url: nats://localhost
    credentials_file: DIR/nowhere.creds
    topic: "a.>"
  - name: none
    type: event_bus
    url: nats://localhost
    credentials_file: DIR/outbox.yaml
  - name: seed
    type: event_bus
    url: nats://localhost
    nkey_file: DIR/nowhere.nk
  - name: hook
    type: webhook
    url: http://localhost:8080/
    secret: s
    allow_hosts: ["localhost:8080", "a b"]
    topic: http://localhost/
    tls: {enabled: true, ca_file: DIR/nowhere.pem}
routes:
  - sinks: [hook, missing]
    topic: http://elsewhere/ x
`
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := config.LoadWith(file, nil, config.Options{CheckSink: CheckSink})
	exitcodetest.Want(t, err, exitcode.Config)
	want := `DIR/outbox.yaml:6: sinks[0].credentials_file: DIR/nowhere.creds cannot be read: no such file or directory
DIR/outbox.yaml:7: sinks[0].topic: "a.>" is no subject to publish to: it has a space, a control character, * or >
DIR/outbox.yaml:11: sinks[1].credentials_file: nkeys: no nkey seed found
DIR/outbox.yaml:15: sinks[2].nkey_file: nats: open DIR/nowhere.nk: no such file or directory
DIR/outbox.yaml:20: sinks[3].allow_hosts[1]: "a b" is no host, nor host:port
DIR/outbox.yaml:21: sinks[3].topic: is a URL of another scheme, host or port than url; write http://localhost:8080/…, or a sink of its own for that host
DIR/outbox.yaml:22: sinks[3].tls: has no effect on a url with http, which goes in clear; write https there, or remove tls
DIR/outbox.yaml:25: routes[0].topic: for "hook": is a URL of another scheme, host or port than url; write http://localhost:8080/…, or a sink of its own for that host; ` +
		`for "missing": "http://elsewhere/***" is no subject to publish to: it has a space, a control character, * or >`
	if diff := cmp.Diff(want, strings.ReplaceAll(err.Error(), dir, "DIR")); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s", diff)
	}
	_, err = Build(loadFile(t, "sinks: [{type: event_bus, url: nats://localhost, credentials_file: "+dir+"/nowhere.creds}]\n"), BuildOptions{})
	exitcodetest.Want(t, err, exitcode.Config, "sinks[0].credentials_file: "+dir+"/nowhere.creds cannot be read: no such file or directory")
}

// The configuration refuses a topic if, and only if, the sink would permanently refuse every event with it.
func TestTopicsAsTheSinksSeeThem(t *testing.T) {
	t.Parallel()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "a", ".a", "a-Z_0.9", strings.Repeat("a", 249)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	nats, err := servers.StartNATS(pgtest.Context(t), servers.NATSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nats.Close(); err != nil {
			t.Error(err)
		}
	})
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(hook.Close)
	host := strings.TrimPrefix(hook.URL, "http://")
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		t.Fatal(err)
	}
	event := outbox.Event{ID: "1", AggregateType: "a", AggregateID: "a", EventType: "a", TenantID: "a"}
	for sink, topics := range map[string][]string{
		"type: kafka, brokers: ['" + broker.ListenAddrs()[0] + "']": {
			"{tenant_id}", ".{tenant_id}", "a-Z_0.9", strings.Repeat("a", 249),
			".", "..", "a b", "a/{tenant_id}", "é", strings.Repeat("a", 250), hook.URL,
		},
		"type: redis_stream, url: redis://" + miniredis.RunT(t).Addr(): {
			"{tenant_id}", " ", "a > b *", "é", strings.Repeat("a", 1024),
			"\t{tenant_id}", "a\x7f", "{tenant_id}" + strings.Repeat("a", 1025),
		},
		"type: event_bus, url: '" + nats.URL() + "'": {
			"{tenant_id}", "{tenant_id}{tenant_id}.é", "a.$b._INBOX", "_INBOX{tenant_id}", hook.URL, strings.Repeat("a", 2048),
			">", "{tenant_id}.*", "a b", "a\t", "a\x7f", "{tenant_id}.", ".a", "a..b", ".", "$$JS.{tenant_id}", "$$", "_INBOX", "_INBOX.a", strings.Repeat("a", 2049),
		},
		"type: webhook, secret: s, url: '" + hook.URL + "/x', allow_hosts: ['" + host + "']": {
			"{tenant_id}", "ftp://other", "HTTP://other", hook.URL, hook.URL + "/{tenant_id}/..{tenant_id}?a={tenant_id}/../b#c", hook.URL + "?a", "http://127.0.0.1:" + port,
			"http://127.0.0.1", "http://127.0.0.1:1/", "https://" + host, "http://localhost:" + port, "http://u@" + host, "http://u:p@" + host, "http://", "http:///a",
			hook.URL + "/..", hook.URL + "/./a", hook.URL + "/%2e%2e/a", hook.URL + "/a/%2E", "http://%", "http://127.0.0.1:a/", "http://{tenant_id}:" + port, hook.URL + "{tenant_id}",
		},
	} {
		good := loadFile(t, "sinks: [{"+sink+", topic: x}]\n")
		built, mistakes := newSinkBuilder(good, BuildOptions{}).buildSink(good.Sinks[0])
		if mistakes != nil {
			t.Fatal(mistakes)
		}
		s, err := built.Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		for _, topic := range topics {
			text := fmt.Sprintf("sinks: [{%s, topic: %q}]\n", sink, topic)
			file := filepath.Join(t.TempDir(), "outbox.yaml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, bad := config.Load(file, []string{"DATABASE_URL=postgres://localhost/shop"})
			if bad != nil && !strings.HasPrefix(bad.Error(), file+":1: sinks[0].topic: ") {
				t.Fatalf("%.100q: %v", topic, bad)
			}
			template, err := router.ParseTemplate(strings.ReplaceAll(topic, "$$", "$"))
			if err != nil {
				t.Fatal(err)
			}
			errs := s.Deliver(pgtest.Context(t), []sinks.Message{{Event: &event, Topic: template.Expand(&event), Key: "a", Attempt: 1}})
			var refused error
			if errs != nil && errors.Is(errs[0], sinks.ErrPermanent) {
				refused = errs[0]
			}
			if (bad != nil) != (refused != nil) {
				t.Errorf("%s with %.100q: the configuration says %v, the sink %v", sink, topic, bad, refused)
			}
		}
	}
}
