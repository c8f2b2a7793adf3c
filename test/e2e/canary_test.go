package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// canaryWord is in everything that nobody may read, and nowhere else.
const canaryWord = "xanaduvogel"

func canary(name string) string { return canaryWord + "-" + name }

// canaryShapes are the ways in which it may show: as it is, as bytes, in hexadecimal, and in base64 wherever it begins.
func canaryShapes() []string {
	shapes := []string{canaryWord, fmt.Sprintf("%x", canaryWord), strings.Trim(fmt.Sprint([]byte(canaryWord)), "[]")} //nolint:staticcheck // its numbers are meant
	for before := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + canaryWord))
		shapes = append(shapes, text[(before*8+5)/6:(before+len(canaryWord))*8/6])
	}
	return shapes
}

// cage is a world whose every sink is given secrets, and all that people can read of it.
type cage struct {
	*world
	c      *connector
	seen   map[string]string // by where it was seen
	mode   atomic.Int64      // what the webhook's receiver and Kafka answer: 0 yes, else a status, with what they got
	kafka  *kfake.Cluster
	deaf   *servers.Redis // that knows no XADD, and says so with what it was told
	posing *nats.Conn
}

// A password, a secret, a payload and metadata are in no log, metric, answer, error or row but the event's own: whether all is
// well, destinations refuse and quote, passwords are wrong, all are away, or the configuration is.
func TestCanary(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{}, bare: true, delivery: map[string]any{"max_retries": 1, "timeout": "5s"}})
	g := &cage{world: w, seen: map[string]string{}}
	g.serve()
	healthy := g.configured()
	g.configure(healthy)
	w.init()
	w.exec("alter role " + w.role() + " superuser password '" + canary("dsn") + "'")
	w.source["dsn"] = asRole(t, w.dsn, w.database, canary("dsn"))
	g.c = w.connector()

	g.run("healthy", nil, func() {
		w.deliveredAtLeast(30*time.Second, 3*len(healthy))
		g.c.ready("leader")
	})
	for _, line := range []string{"validate", "config effective", "route test --event-type made --aggregate-type order"} {
		out, code := g.c.command(nil, append(strings.Fields(line), "--config", g.c.config)...)
		if code != 0 {
			t.Errorf("%s: exit code %d\n%s", line, code, out)
		}
		g.seen[line] = out
	}

	g.mode.Store(http.StatusUnprocessableEntity)
	g.run("refused", map[string]map[string]any{
		"redis_stream": {"url": "redis://outbox:" + canary("redis") + "@" + g.deaf.Addr()}, "event_bus": {"topic": "refuse.{aggregate_type}"},
	}, func() {
		eventually(t, 30*time.Second, "dead letters of three sinks", func() error {
			n := ask[int](w, "select count(distinct processor_id) from outbox_delivery_log where status = 'dead'")
			if n < 3 {
				return fmt.Errorf("of %d", n)
			}
			return nil
		})
		g.c.degraded("sink:redis_stream", "unknown command")
	})

	g.mode.Store(http.StatusUnauthorized)
	g.run("wrong password", map[string]map[string]any{
		"kafka":        {"sasl": map[string]any{"mechanism": "plain", "username": "outbox", "password": canary("wrong")}},
		"redis_stream": {"url": w.redis.URL(), "username": "outbox", "password": canary("wrong")},
		"event_bus":    {"url": "nats://outbox:" + canary("wrong") + "@" + w.nats.Addr()},
		"webhook":      {"topic": "one"}, // of several URLs each would be away by itself, and the sink not degraded
	}, g.allDegraded)

	nowhere := freeAddress(t)
	g.run("away", map[string]map[string]any{
		"kafka": {"brokers": []string{nowhere}}, "redis_stream": {"url": "redis://outbox:" + canary("redis") + "@" + nowhere},
		"event_bus": {"url": "nats://" + canary("token") + "@" + nowhere}, "webhook": {
			"url":   "http://" + nowhere + "/" + canary("path") + "?token=" + canary("query"),
			"topic": "http://" + nowhere + "/" + canary("topic") + "?token=" + canary("query"),
		},
	}, g.allDegraded)

	w.source["dsn"] = asRole(t, w.dsn, w.database, canary("guess"))
	w.writeConfig(g.c)
	g.c.refuses(exitcode.Privilege, "password", "source.dsn")
	w.source["dsn"] = through(t, w.source["dsn"].(string), nowhere)
	w.writeConfig(g.c)
	g.c.start("--log-level", "debug")
	g.c.failed("session", "connection refused")
	g.look("no PostgreSQL")
	g.c.kill()

	g.misconfigured()
	g.rows()
	g.judge()
}

// serve starts what the sinks deliver to, each with a password.
func (g *cage) serve() {
	t, ctx := g.t, context.Background()
	t.Helper()
	var err error
	g.kafka, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, g.topics.names()...), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "outbox", canary("kafka")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.kafka.Close)
	g.kafka.ControlKey(kmsg.Produce.Int16(), g.refuseProduce)

	acl := map[string]string{"user": "outbox on >" + canary("redis") + " ~* +@all"}
	if g.redis, err = servers.StartRedis(ctx, servers.RedisOptions{Settings: acl}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, g.redis) })
	acl["rename-command"] = `XADD ""`
	if g.deaf, err = servers.StartRedis(ctx, servers.RedisOptions{Settings: acl}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, g.deaf) })

	g.nats, err = servers.StartNATS(ctx, servers.NATSOptions{Config: fmt.Sprintf(
		"authorization { users: [{user: %q, password: %q}, {user: test, password: x}] }\nno_auth_user: test", "outbox", canary("nats"))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, g.nats) })
	g.createStream()
	if g.posing, err = nats.Connect(g.nats.URL()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.posing.Close)
	// A responder that poses as JetStream and quotes what it got.
	_, err = g.posing.Subscribe("refuse.>", func(m *nats.Msg) {
		quoted, _ := json.Marshal(string(m.Data)) // a string never fails
		_ = m.Respond(fmt.Appendf(nil, `{"error": {"code": 400, "err_code": 10999, "description": %s}}`, quoted))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.posing.Flush(); err != nil {
		t.Fatal(err)
	}
}

// refuseProduce says no to records, and quotes them.
func (g *cage) refuseProduce(r kmsg.Request) (kmsg.Response, error, bool) {
	g.kafka.KeepControl()
	if g.mode.Load() != http.StatusUnprocessableEntity {
		return nil, nil, false
	}
	req := r.(*kmsg.ProduceRequest)
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, topic := range req.Topics {
		answer := kmsg.NewProduceResponseTopic()
		answer.Topic = topic.Topic
		for _, p := range topic.Partitions {
			refused := kmsg.NewProduceResponseTopicPartition()
			quotation := string(p.Records)
			refused.Partition, refused.ErrorCode, refused.ErrorMessage = p.Partition, kerr.InvalidRecord.Code, &quotation
			answer.Partitions = append(answer.Partitions, refused)
		}
		resp.Topics = append(resp.Topics, answer)
	}
	return resp, nil, true
}

// receive is the webhook's receiver.
func (g *cage) receive(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	status := int(g.mode.Load())
	if status == 0 {
		rw.WriteHeader(http.StatusNoContent)
		return
	}
	rw.Header().Set("X-Echo", r.Header.Get("Authorization"))
	rw.WriteHeader(status)
	// What it says is stored with the event. The sink takes its secrets, the URL and the payload out of that, and no other value
	// of the event.
	quoted := r.Header.Clone()
	for _, name := range []string{"Traceparent", "Ce-Traceparent"} {
		quoted.Del(name)
	}
	fmt.Fprintf(rw, "refused %s with %v: %s", r.URL, quoted, body)
}

// configured are the sinks, by their types, that can deliver.
func (g *cage) configured() map[string]map[string]any {
	g.t.Helper()
	receiver := httptest.NewServer(http.HandlerFunc(g.receive))
	g.t.Cleanup(receiver.Close)
	topic := g.topics.prefix + ".{aggregate_type}"
	return map[string]map[string]any{
		"kafka": {
			"topic": topic, "brokers": g.kafka.ListenAddrs(), "headers_from_metadata": []string{"note"}, "format": []string{"debezium", "cloudevents"},
			"sasl": map[string]any{"mechanism": "plain", "username": "outbox", "password": canary("kafka")},
		},
		"redis_stream": {"topic": topic, "url": "redis://outbox:" + canary("redis") + "@" + g.redis.Addr()},
		"webhook": {
			"url": receiver.URL + "/" + canary("path") + "?token=" + canary("query"), "allow_hosts": []string{"127.0.0.1"}, "body": "cloudevents",
			"secret":  []string{canary("secret"), "whsec_" + base64.StdEncoding.EncodeToString([]byte(canary("a secret of the standard")))},
			"headers": map[string]any{"Authorization": "Bearer " + canary("header")},
			"topic":   receiver.URL + "/" + canary("topic") + "/{aggregate_type}?token=" + canary("query"),
		},
		"event_bus": {"topic": topic, "url": "nats://outbox:" + canary("nats") + "@" + g.nats.Addr()},
	}
}

// configure gives the world these sinks.
func (g *cage) configure(sinks map[string]map[string]any) {
	g.sinks = nil
	for typ, keys := range sinks {
		sink := map[string]any{"name": typ, "type": typ}
		maps.Copy(sink, keys)
		g.sinks = append(g.sinks, sink)
	}
}

// run is one life of the connector at its most talkative, with events to deliver and these keys over those of the sinks,
// until something has come about.
func (g *cage) run(state string, keys map[string]map[string]any, until func()) {
	g.t.Helper()
	right := g.sinks
	g.sinks = nil
	for _, sink := range right {
		sink = maps.Clone(sink)
		maps.Copy(sink, keys[sink["type"].(string)])
		g.sinks = append(g.sinks, sink)
	}
	g.writeConfig(g.c)
	g.sinks = right
	for range 3 {
		g.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, metadata) values ('order', '1', 'made', $1, $2)`,
			`{"card": "`+canary("payload")+`"}`, `{"note": "`+canary("metadata")+`", "traceparent": "`+canary("trace")+`"}`)
	}
	g.c.start("--log-level", "debug")
	until()
	g.look(state)
	g.c.term()
}

func (g *cage) allDegraded() {
	g.t.Helper()
	for _, sink := range g.sinks {
		g.c.degraded("sink:" + sink["type"].(string))
	}
}

// look reads what the connector's server says.
func (g *cage) look(state string) {
	g.t.Helper()
	for _, path := range []string{"/metrics", "/readyz", "/livez"} {
		body, _, err := g.c.get(path)
		if err != nil {
			g.t.Fatal(err)
		}
		g.seen[state+" "+path] = string(body)
	}
}

// misconfigured has commands refuse secrets in wrong places.
func (g *cage) misconfigured() {
	g.t.Helper()
	x := canaryWord
	for i, text := range []string{
		"source: {dsn: 'postgres://u:" + x + "/y@h/db'}",
		"source: {dsn:postgres://u:" + x + "@h/db}",
		"source: {dsn: 'host=h password=" + x + " port=none'}",
		"sinks: [{type: redis_stream, url: 'http://u:" + x + "@h'}, {type: redis_stream, name: b, url: 'redis://u:" + x + "@h/" + x + "?password=" + x + "'}]",
		"sinks: [{type: redis_stream, url: redis://h, password: *" + x + " }]",
		"sinks: [{type: redis_stream, url: redis://h, password: !" + x + " }]",
		"sinks: [{type: kafka, brokers: ['u:" + x + "@h'], sasl: {mechanism: plain, password: [" + x + "]}}]",
		"sinks: [{type: webhook, url: 'https://u:" + x + "@h', secret: [whsec_" + x + ", ''], headers: {Authorization Bearer " + x + "}}]",
		"sinks: [{type: webhook, url: 'https://h', headers: {Authorization: \"" + x + "\\n\", Webhook-Id: " + x + "}}]",
		"sinks: [{type: event_bus, url: 'ws://" + x + "@h'}, {type: event_bus, name: b, url: 'nats://u:" + x + "/@h,nats://h'}]",
		"sinks: [{type: event_bus, url: 'nats://h', nkey_file: SEED}, {type: webhook, name: b, url: 'https://h', tls: {cert_file: SEED, key_file: SEED, ca_file: SEED}}]",
		"sinks: [\n - type: webhook\n\t" + x,
		"sinks: [{type: webhook, url: 'https://h', topic: 'https://u:" + x + "@h/" + x + "?t=" + x + "'}]",
		"sinks: [{type: webhook, url: 'https://h', topic: 'https://h/" + x + "/{nothing}?t=" + x + "'}]",
		"sinks: [{type: webhook, url: 'https://h', topic: 'https://h/" + x + "/{?t=" + x + "'}]\nroutes: [{sinks: [webhook], topic: 'https://other/" + x + "'}]",
		"sinks: [{type: kafka, brokers: [h:9092], topic: 'https://u:" + x + "@h/'}]",
		"source: {dsn: 'postgres://u@h/db?" + x + "=1&token=" + x + "'}",
		"source: {dsn: 'host=h token=" + x + " password=a " + x + "=b'}",
	} {
		dir := g.t.TempDir()
		seed, file := filepath.Join(dir, "seed"), filepath.Join(dir, "outbox.yaml")
		for path, content := range map[string]string{seed: "SU" + x, file: strings.ReplaceAll(text, "SEED", seed)} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				g.t.Fatal(err)
			}
		}
		for _, line := range []string{"validate", "run --log-level debug"} {
			out, code := g.c.command([]string{"DATABASE_URL="}, append(strings.Fields(line), "--config", file)...)
			if code != exitcode.Config {
				g.t.Errorf("%s of faulty file %d: exit code %d, want %d\n%s", line, i, code, exitcode.Config, out)
			}
			g.seen[fmt.Sprintf("%s of faulty file %d", line, i)] = out
		}
	}
	for _, dsn := range []string{
		"postgres://u:" + x + "%@127.0.0.1:1/db", "postgres://u:" + x + "/y@127.0.0.1:1/db", "host=127.0.0.1 port=1 password='" + x, "postgres://u:" + x + "@127.0.0.1:1/db",
	} {
		for _, line := range []string{"init --config " + g.c.config + " --dsn", "destroy --yes --config " + g.c.config + " --dsn"} {
			out, code := g.c.command(nil, append(strings.Fields(line), dsn)...)
			if code == 0 {
				g.t.Errorf("%s: exit code 0", line)
			}
			g.seen[line+" "+strings.ReplaceAll(dsn, x, "…")] = out
		}
		out, code := g.c.command([]string{"DATABASE_URL=" + dsn, "OUTBOX_PUBLISHER_TYPE=stdout"}, "validate")
		g.seen["DATABASE_URL "+strings.ReplaceAll(dsn, x, "…")] = fmt.Sprint(code, out)
	}
}

// rows reads all tables and views of ours, without the events themselves.
func (g *cage) rows() {
	g.t.Helper()
	names := ask[[]string](g.world, `select array_agg(relname::text) from pg_class
		where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v') and relname like 'outbox\_%' and not relispartition`)
	if len(names) < 5 {
		g.t.Errorf("only %q: has a table another name?", names)
	}
	for _, name := range names {
		g.seen["table "+name] = ask[string](g.world, "select coalesce(string_agg((to_jsonb(x) - '{payload,event,metadata}'::text[])::text, E'\\n'), '') from "+name+" x")
	}
}

// judge looks for the canary in everything that was seen.
func (g *cage) judge() {
	g.t.Helper()
	for i, run := range g.c.runs {
		for _, file := range []string{run.stdout, run.stderr} {
			data, err := os.ReadFile(file)
			if err != nil {
				g.t.Fatal(err)
			}
			g.seen[fmt.Sprint("run ", i, " ", filepath.Base(file))] = string(data)
		}
	}
	bytes := 0
	for where, text := range g.seen {
		bytes += len(text)
		for _, shape := range canaryShapes() {
			if at := strings.Index(text, shape); at >= 0 {
				g.t.Errorf("%s tells a secret: …%s…", where, text[max(0, at-200):min(len(text), at+100)])
				break
			}
		}
	}
	g.t.Logf("looked at %d texts of %d bytes", len(g.seen), bytes)
}
