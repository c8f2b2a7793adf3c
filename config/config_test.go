package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestBadFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.bad.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			_, _, err := Load(file, []string{"PASSWORD=canary"})
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("error = %v, want an *Error", err)
			}
			got := strings.ReplaceAll(err.Error(), "testdata/", "") + "\n"
			if strings.Contains(got, "canary") {
				t.Errorf("a secret is told:\n%s", got)
			}
			golden := strings.TrimSuffix(file, ".yml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoodFile(t *testing.T) {
	t.Parallel()
	got, warnings, err := Load("testdata/conf.good.yml", []string{
		"DATABASE_URL=postgres://localhost/shop", "BROKERS=a:9092, b:9092", "SERVICE_NAME=ignored",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	want := Default()
	want.Name = "orders"
	want.Source.DSN = "postgres://localhost/shop"
	want.Source.ReplicationDSN = `host=db.internal user=repl password='can\'t' sslmode=verify-full`
	want.Source.DSNPlace, want.Source.ReplicationDSNPlace = "testdata/conf.good.yml:3", "testdata/conf.good.yml:4"
	want.Source.MaxConnections = 8
	want.Source.Slot, want.Source.Publication, want.Source.Table, want.Source.LedgerSchema = "orders", "orders", "shop.outbox", "shop"
	want.Retention = Retention{Outbox: AgeOff, Ledger: "7d"}
	c := &want.Source.Columns
	c.AggregateType, c.AggregateID, c.EventType, c.TenantID = "aggregatetype", "aggregateid", "type", ""
	want.Sinks = []Sink{
		{
			Name: "events", Type: "kafka", Topic: "cost.{event_type}", Key: "{aggregate_id}",
			Kafka: &Kafka{
				Brokers: []string{"a:9092", "b:9092"}, ClientID: "outbox-cdc", Compression: "zstd", Timestamp: "created_at",
				Formats: []string{"debezium"}, HeaderEncoding: "plain", MaxMessageBytes: 99 * MiB,
				TLS:  TLS{Enabled: true, CAFile: "/etc/ca.pem"},
				SASL: SASL{Mechanism: "scram-sha-512", Username: "outbox", Password: "p: {ss}"},
			},
		},
		{Name: "log", Type: "stdout", Topic: "outbox.event.{aggregate_type}", Key: "{aggregate_id}"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestUnreadableFile(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"testdata/absent.yml": "testdata/absent.yml: cannot be read: no such file or directory",
		"testdata":            "testdata: cannot be read: testdata is no regular file",
	} {
		_, _, err := Load(path, nil)
		if err == nil || err.Error() != want {
			t.Errorf("Load(%s) = %v, want %s", path, err, want)
		}
		if code := exitcode.Of(err); code != exitcode.Config {
			t.Errorf("Load(%s): exit code %d, want %d", path, code, exitcode.Config)
		}
	}
}

func TestEnvironmentAlone(t *testing.T) {
	t.Parallel()
	got, warnings, err := Load("", []string{
		"DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=kafka", "OUTBOX_KAFKA_BROKERS=localhost:9092,kafka:9092",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	want := Default()
	want.Name, want.Source.LedgerSchema, want.Retention = "outbox_cdc", "public", Retention{"7d", "7d"}
	want.Source.DSN, want.Source.ReplicationDSN = "postgres://localhost/shop", "postgres://localhost/shop"
	want.Source.DSNPlace, want.Source.ReplicationDSNPlace = "DATABASE_URL", "DATABASE_URL"
	want.Sinks = []Sink{defaultSink(SinkKafka)}
	want.Sinks[0].Kafka.Brokers = []string{"localhost:9092", "kafka:9092"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestEnvironmentBeatsFileBeatsDefaults(t *testing.T) {
	t.Parallel()
	const file = `
name: ${NAME:-}
source: {dsn: "postgres://localhost/file", slot: from_file, publication: from_file, ledger_schema: file}
sinks: [{name: events, type: kafka, brokers: [file:9092], topic: from-file}]
delivery: {batch_size: 7, lanes: 7, max_retries: 7}
`
	all := []string{
		"DATABASE_URL=postgres://localhost/env", "SERVICE_NAME=from-env", "OUTBOX_PUBLISHER_TYPE=kafka",
		"OUTBOX_KAFKA_BROKERS=env:9092", "OUTBOX_KAFKA_TOPIC=from-env", "OUTBOX_BATCH_SIZE=50", "OUTBOX_MAX_RETRIES=0",
		"OUTBOX_WORKER_COUNT=2", "OUTBOX_ENABLE_METRICS=false", "OUTBOX_SLOT=from_env", "OUTBOX_PUBLICATION=from_env", "OUTBOX_LISTEN=:1", "OUTBOX_HTTP_HOSTS=a.example,b",
		"OUTBOX_LEDGER_SCHEMA=env",
	}
	brief := func(c Config) string {
		k := c.Sinks[0]
		return fmt.Sprint(c.Name, " ", c.Source.DSN, " ", c.Source.Slot, " ", c.Source.Publication, " ", c.Source.LedgerSchema, " ", k.Name, " ", k.Topic, " ", k.Kafka.Brokers,
			" ", c.Delivery.BatchSize, c.Delivery.Lanes, c.Delivery.MaxRetries, " ", c.Delivery.Timeout, " ", c.Metrics.Enabled, " ", c.HTTP.Listen, " ", c.HTTP.Hosts)
	}
	empty := make([]string, len(all))
	for i, e := range all {
		name, _, _ := strings.Cut(e, "=")
		empty[i] = name + "="
	}
	fromFile := "from_file postgres://localhost/file from_file from_file file events from-file [file:9092] 7 7 7 30s true 127.0.0.1:9640 []"
	for _, c := range []struct {
		name    string
		environ []string
		want    string
	}{
		{"no variables", nil, fromFile},
		{"empty variables", empty, fromFile},
		{"all variables", all, "from-env postgres://localhost/file from_env from_env env events from-env [env:9092] 50 2 0 30s false :1 [a.example b]"},
		{"a name in the file", append([]string{"NAME=named"}, all...), "named postgres://localhost/file from_env from_env env events from-env [env:9092] 50 2 0 30s false :1 [a.example b]"},
	} {
		got, _, err := Parse("f.yml", []byte(file), c.environ, Options{})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if b := brief(got); b != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, b, c.want)
		}
	}
}

func TestEnvironmentMistakesAndWarnings(t *testing.T) {
	t.Parallel()
	const dsn, stdout = "DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=stdout"
	const twoKafkas = "sinks: [{name: a, type: kafka, brokers: [a:1]}, {name: b, type: kafka, brokers: ['${OTHER:-b:1}']}]"
	for _, c := range []struct {
		name     string
		file     string
		environ  []string
		err      string
		warnings []string
	}{
		{name: "nothing at all", err: "source.dsn: missing; write it, or set DATABASE_URL\nsinks: missing; write at least one, or set OUTBOX_PUBLISHER_TYPE"},
		{name: "no brokers", environ: []string{dsn, "OUTBOX_PUBLISHER_TYPE=kafka"}, err: "OUTBOX_PUBLISHER_TYPE: sinks[0].brokers: missing; write brokers: [host:9092], or set OUTBOX_KAFKA_BROKERS"},
		{name: "bad values", environ: []string{
			"DATABASE_URL=postgres://u:canary@h:port/x", stdout, "OUTBOX_BATCH_SIZE=many", "OUTBOX_WORKER_COUNT=0",
			"OUTBOX_ENABLE_METRICS=perhaps", "OUTBOX_SLOT=A", "OUTBOX_LISTEN=here",
		}, err: `OUTBOX_BATCH_SIZE: delivery.batch_size: "many" is no whole number
OUTBOX_ENABLE_METRICS: metrics.enabled: "perhaps" is neither true nor false
DATABASE_URL: source.dsn: is no connection string that PostgreSQL understands: its port is not within 1 and 65535; write postgres://user:password@host:5432/database?sslmode=verify-full, other characters than letters and digits of the password as %XX
OUTBOX_SLOT: source.slot: "A" is no name for a slot: 1 to 63 of a-z, 0-9 and _
OUTBOX_WORKER_COUNT: delivery.lanes: 0 is not between 1 and 256
OUTBOX_LISTEN: http.listen: "here" is no address to listen on; write 127.0.0.1:9640, :9640 for all interfaces, or off for no server`},
		{
			name: "composite", environ: []string{
				dsn, "OUTBOX_PUBLISHER_TYPE=composite", "OUTBOX_COMPOSITE_STRATEGY=some", "OUTBOX_COMPOSITE_MEMBERS=kafka, redis_streams",
			},
			err: `OUTBOX_PUBLISHER_TYPE: sinks[1].brokers: missing; write brokers: [host:9092], or set OUTBOX_KAFKA_BROKERS
OUTBOX_COMPOSITE_STRATEGY: sinks[0].strategy: "some" is unknown; write all, any, primary
OUTBOX_COMPOSITE_MEMBERS: sinks[0].members[1]: "redis_streams" is no sink; these are: composite, kafka`,
		},
		{
			name: "another type than the file's", file: "sinks: [{type: stdout}]", environ: []string{dsn, "OUTBOX_PUBLISHER_TYPE=kafka"},
			err: "OUTBOX_PUBLISHER_TYPE: sinks: kafka contradicts the sinks at f.yml:1; unset the variable, or remove them",
		},
		{
			name: "more sinks than one", file: twoKafkas, environ: []string{dsn, "OUTBOX_KAFKA_TOPIC=t"},
			err: "OUTBOX_KAFKA_TOPIC: could mean any of 2 sinks of type kafka; write ${OUTBOX_KAFKA_TOPIC} in the file where it belongs",
		},
		{
			name: "a variable that the file places", file: strings.ReplaceAll(twoKafkas, "OTHER", "OUTBOX_KAFKA_BROKERS"),
			environ: []string{dsn, "OUTBOX_KAFKA_BROKERS=c:1"},
		},
		{name: "no effect", environ: []string{
			dsn, stdout, "OUTBOX_POLL_INTERVAL=5s", "OUTBOX_KAFKA_BROKERS=a:1", "OUTBOX_BATCHSIZE=5",
			"OUTBOX_ADMIN_URL=postgres://localhost", "OUTBOX_SERVICE_HOST=10.0.0.1", "OUTBOX_PORT_9640_TCP_ADDR=10.0.0.1", "OUTBOX_PORT=tcp://10.0.0.1:9640",
		}, warnings: []string{
			"OUTBOX_KAFKA_BROKERS has no effect: there is no sink of type kafka",
			"OUTBOX_POLL_INTERVAL has no effect: events are streamed from the write-ahead log, nothing is polled",
			"OUTBOX_BATCHSIZE is no variable of outbox-cdc and has no effect",
		}},
		{name: "a variable of the user's", file: "name: ${OUTBOX_TEAM}", environ: []string{dsn, stdout, "OUTBOX_TEAM=a"}},
		{
			name: "a field in the url", file: "sinks: [{type: webhook, url: 'https://h.example/canary/{aggregate_type}', secret: s}]", environ: []string{dsn},
			warnings: []string{"sinks[0].url has {aggregate_type}, which is sent as it stands: only topic is a template; write the URL with its fields there"},
		},
		{
			name: "in clear", file: "sinks: [{type: kafka, brokers: [kafka:9092], sasl: {mechanism: plain, username: u, password: p}, tls: {insecure_skip_verify: false}}]",
			environ: []string{"DATABASE_URL=postgres://db.internal/shop"}, warnings: []string{
				"source.dsn reaches a remote PostgreSQL without insisting on TLS: passwords and events may cross the network in clear; add sslmode=verify-full",
				"sinks[0].sasl: plain sends the password in clear without tls",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			file := ""
			if c.file != "" {
				file = "f.yml"
			}
			_, warnings, err := Parse(file, []byte(c.file), c.environ, Options{})
			if diff := cmp.Diff(c.err, errorText(err)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.warnings, warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestTLSWarning(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string]bool{
		"postgres://localhost/shop":                                   false,
		"postgres://127.0.0.2/shop?sslmode=disable":                   false,
		"host=/var/run/postgresql dbname=shop":                        false,
		"host=::1 dbname=shop":                                        false,
		"postgres://db.internal/shop":                                 true,
		"postgres://db.internal/shop?sslmode=allow":                   true,
		"postgres://10.0.0.1/shop?sslmode=disable":                    true,
		"postgres://db.internal/shop?sslmode=require":                 false,
		"postgres://db.internal/shop?sslmode=verify-full":             false,
		"host=localhost,db.internal port=5432,5432 sslmode=prefer":    true,
		"host=localhost,db.internal port=5432,5432 sslmode=verify-ca": false,
	} {
		_, warnings, err := Parse("", nil, []string{"OUTBOX_PUBLISHER_TYPE=stdout", "DATABASE_URL=" + dsn}, Options{})
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
		}
		if got := len(warnings) > 0; got != want {
			t.Errorf("%s: warnings %q, want any: %v", dsn, warnings, want)
		}
	}
}

func yamlText(s string) string {
	text, err := yaml.Marshal(s)
	if err != nil {
		panic(err)
	}
	return strings.TrimSpace(string(text))
}

func TestSecretsAreMasked(t *testing.T) {
	t.Parallel()
	c := Default()
	c.Source.DSN = "postgres://cdc:canary@localhost/shop?password=canary&sslpassword=canary&sslmode=disable"
	c.Source.ReplicationDSN = `host=localhost password = 'canary canary' user=cdc sslpassword=canary options='-c password=' `
	c.Sinks = []Sink{defaultSink(SinkKafka)}
	c.Sinks[0].Kafka.SASL = SASL{Mechanism: "plain", Username: "u", Password: "canary"}
	for topic, want := range map[string]string{
		"outbox.event.{aggregate_type}":                                   "outbox.event.{aggregate_type}",
		"https://u:canary@h.example/{aggregate_type}/canary?token=canary": "https://***@h.example/***?token=***",
		"https://{tenant_id}:canary@h/x@y":                                "***",
	} {
		if got := ShownTemplate(topic); got != want {
			t.Errorf("topic %s is shown as %s, want %s", topic, got, want)
		}
		masked := c
		masked.Sinks = []Sink{defaultSink(SinkWebhook)}
		masked.Sinks[0].Topic, masked.Sinks[0].Webhook.URL = topic, "https://h.example/canary"
		masked.Routes = []Route{{Sinks: []string{"webhook"}, Topic: topic}}
		if effective, err := Effective(masked); err != nil || strings.Contains(effective, "canary") || strings.Count(effective, "topic: "+yamlText(want)) != 2 {
			t.Errorf("topic %s: %v\n%s", topic, err, effective)
		}
	}

	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", c, *c.Sinks[0].Kafka, c.Source.DSN)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("m", "config", c, "dsn", c.Source.DSN, "password", c.Sinks[0].Kafka.SASL.Password)
	}
	if err := json.NewEncoder(&out).Encode(c); err != nil {
		t.Fatal(err)
	}
	effective, err := Effective(c)
	if err != nil {
		t.Fatal(err)
	}
	out.WriteString(effective)
	for _, leak := range []string{"canary", "63616e617279", "99 97 110 97 114 121"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("a secret shows as %q in:\n%s", leak, out.String())
		}
	}
	for dsn, want := range map[DSN]string{
		c.Source.DSN:                    "postgres://cdc:***@localhost/shop?password=***&sslpassword=***&sslmode=disable",
		c.Source.ReplicationDSN:         `host=localhost password =*** user=cdc sslpassword=*** options=*** `,
		"":                              "",
		"postgres://u:a/b?c@h/db":       "***",
		"postgresql://u:p@h1:1,h2:2/db": "postgresql://u:***@h1:1,h2:2/db",
		"postgres:///shop?host=/tmp":    "postgres:///shop?host=/tmp",
		"postgres://h/db?pass%77ord=a":  "postgres://h/db?pass%77ord=***",
		"not a dsn canary":              "***",
		`host=h options='x password=' password='sec ret'`:                      `host=h options=*** password=***`,
		"postgres://u:a@h/db?password=x&canary=y&sslmode=require&token=canary": "postgres://u:***@h/db?password=***&***&sslmode=require&***",
		"postgres://h/db?canary":                                               "postgres://h/db?***",
		"host=h password=se canary=1 api_key=canary dbname=d":                  "host=h password=*** *** *** dbname=d",
	} {
		if got := dsn.String(); got != want {
			t.Errorf("%q prints as %q, want %q", string(dsn), got, want)
		}
	}
	if s := Secret(""); s.String() != "" {
		t.Errorf("an empty secret prints as %q", s)
	}
}

func TestExampleAndEffective(t *testing.T) {
	t.Parallel()
	environ := []string{"DATABASE_URL=postgres://localhost/shop"}
	got, warnings, err := Parse("example.yml", []byte(Example()), environ, Options{})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("the example: %v, %q", err, warnings)
	}
	want := Default()
	want.Name, want.Source.LedgerSchema, want.Retention = "orders", "public", Retention{"7d", "7d"}
	want.Source.DSN, want.Source.ReplicationDSN = "postgres://localhost/shop", "postgres://localhost/shop"
	want.Source.DSNPlace, want.Source.ReplicationDSNPlace = "example.yml:17", "example.yml:17"
	want.Sinks = []Sink{defaultSink(SinkKafka)}
	want.Sinks[0].Name = "events"
	want.Sinks[0].Kafka.Brokers = []string{"localhost:9092"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the example differs from the defaults (-want +got):\n%s", diff)
	}

	got.Sinks[0].Topic, got.Name = "a.{event_type}", "${NOT_A_REFERENCE} $$"
	effective, err := Effective(got)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := Parse("effective.yml", []byte(effective), nil, Options{})
	if err != nil {
		t.Fatalf("effective does not load: %v\n%s", err, effective)
	}
	again.Source.DSNPlace, again.Source.ReplicationDSNPlace = got.Source.DSNPlace, got.Source.ReplicationDSNPlace
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("effective is another configuration (-want +got):\n%s", diff)
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Bytes{"0": 0, "17": 17, "17B": 17, "64KiB": 64 * KiB, "32 MiB": 32 * MiB, "1GiB": GiB} {
		got, err := parseBytes(text)
		if err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v, want %d", text, got, err, want)
		}
		if again, err := parseBytes(got.String()); err != nil || again != got {
			t.Errorf("%d prints as %s, which is %d, %v", got, got, again, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5MiB", "9223372036854775808", "9007199254740992KiB", "1mb"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("parseBytes(%q) = %d, want an error", text, got)
		}
	}
}

// FuzzLoad: never panics or hangs; what loads, loads again from its effective form and is the same.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "localhost:9092")
	}
	f.Add([]byte(Example()), "a: {b}")
	f.Fuzz(func(t *testing.T, data []byte, value string) {
		environ := []string{"DATABASE_URL=postgres://localhost/shop", "BROKERS=" + value}
		c, _, err := Parse("fuzz.yml", data, environ, Options{})
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error without text")
			}
			return
		}
		effective, err := Effective(c)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := Parse("effective.yml", []byte(effective), environ, Options{})
		if strings.Contains(effective, mask) {
			return // secrets do not survive, and need not be valid when masked
		}
		if err != nil {
			t.Fatalf("effective does not load: %v\n%s", err, effective)
		}
		again.Source.DSNPlace, again.Source.ReplicationDSNPlace = c.Source.DSNPlace, c.Source.ReplicationDSNPlace
		if diff := cmp.Diff(c, again); diff != "" {
			t.Errorf("effective is another configuration (-want +got):\n%s", diff)
		}
	})
}

// What makes or takes away things needs neither sinks nor, with a login of its own, the connector's.
func TestLoadWith(t *testing.T) {
	t.Parallel()
	got, _, err := LoadWith("", nil, Options{DSN: "postgres://localhost/owned", DSNPlace: "--dsn", NoSinks: true})
	if err != nil || got.Source.DSN != "postgres://localhost/owned" || got.Source.DSNPlace != "--dsn" || got.Source.ReplicationDSN != got.Source.DSN {
		t.Errorf("source %+v, %v", got.Source, err)
	}
	got, _, err = LoadWith("", []string{"DATABASE_URL=postgres://localhost/shop"}, Options{DSN: "postgres://localhost/owned", NoSinks: true})
	if err != nil || got.Source.DSN != "postgres://localhost/shop" {
		t.Errorf("the owner's login is in the place of the connector's: %+v, %v", got.Source, err)
	}
	if _, _, err := Load("", nil); err == nil || !strings.Contains(err.Error(), "source.dsn") || !strings.Contains(err.Error(), "sinks") {
		t.Errorf("without both: %v", err)
	}
}
