package main

import (
	"encoding/json"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// writeReachConfig writes a configuration with a Kafka sink, and returns its path.
func writeReachConfig(t *testing.T, dsn, broker string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	text := `
name: orders
source: {dsn: "` + dsn + `"}
sinks:
  - {name: events, type: kafka, brokers: ["` + broker + `"], topic: "outbox.event.{aggregate_type}"}
  - {name: all, type: stdout}
  - {name: hook, type: webhook, url: "http://` + broker + `", secret: abc, allow_hosts: ["` + broker + `"]}
routes:
  - match: {aggregate_type: [order]}
    sinks: [events]
    topic: orders
  - match: {aggregate_type: [payment]}
    sinks: [events]
    topic: payments
  - sinks: [events, all, hook]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// What validate --connect says before and after a person has done what it says.
func TestValidateConnect(t *testing.T) {
	t.Parallel()
	db := pgtest.Unmigrated(t)
	slot := db.Slot(t)
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	broker := fake.ListenAddrs()[0]
	file := writeReachConfig(t, db.DSN, broker)
	environ := []string{"OUTBOX_SLOT=" + slot, "OUTBOX_PUBLICATION=" + slot}
	validate := func(args ...string) outcome {
		return command(t, environ, append([]string{"validate", "--config", file, "--connect"}, args...)...)
	}
	got := validate()
	for _, want := range []string{
		": cannot be used\n", `table public.event_outbox does not exist`, `run "outbox-cdc init"`,
		"events (kafka): cannot be used\n  topic orders: ok\n  topic payments: it does not exist\n    kafka-topics.sh --bootstrap-server " + broker + " --create --topic payments\n",
		"  outbox.event.{aggregate_type} comes from events, so nobody can look for it\n", "all (stdout): ok\n",
	} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("the output lacks %q:\n%s", want, got.stdout)
		}
	}
	if strings.Count(got.stdout, "comes from events") != 1 {
		t.Errorf("stdout has no topics, and a topic that is no URL is not sent to a webhook:\n%s", got.stdout)
	}
	if got.code != exitcode.Failure || got.stderr != "not everything can be used\n" {
		t.Errorf("code %d, stderr %q", got.code, got.stderr)
	}

	if got := command(t, environ, "init", "--config", file); got.code != exitcode.OK {
		t.Fatal(got)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), 1, 1, nil, "payments"); err != nil {
		t.Fatal(err)
	}
	if got = validate(); got.code != exitcode.OK || strings.Contains(got.stdout, "cannot") || got.stderr != "" {
		t.Errorf("all can be used: code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	got = validate("-o", "json")
	var result struct {
		Usable     bool
		PostgreSQL struct{ Usable bool }
		Sinks      []struct {
			Name      string
			Topics    []struct{ Kind, Topic string }
			Templates []string
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || !result.Usable || !result.PostgreSQL.Usable || len(result.Sinks) != 3 ||
		len(result.Sinks[0].Topics) != 2 || result.Sinks[0].Topics[1].Topic != "payments" || len(result.Sinks[0].Templates) != 1 {
		t.Errorf("%v: %s", err, got.stdout)
	}
}

// Each kind of wrong address and login is named, and does not keep the others from being checked. Secrets are not shown.
func TestValidateConnectMistakes(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	for name, test := range map[string]struct {
		dsn, broker string
		want        []string
	}{
		"hosts that do not exist": {"postgres://u:canary@nowhere.invalid/shop", "nowhere.invalid:9092", []string{
			`PostgreSQL, database "shop" on nowhere.invalid:5432: cannot be used`, "no such host", "events (kafka): cannot be used\n  ask nowhere.invalid:9092 for metadata: unable to dial",
		}},
		"ports where nobody is": {"postgres://u:canary@127.0.0.1:1/shop", "127.0.0.1:1", []string{
			"on 127.0.0.1:1: cannot be used", "connection refused", "events (kafka): cannot be used\n  ask 127.0.0.1:1 for metadata: unable to dial",
		}},
		"ports that hang": {"postgres://u:canary@" + silent.Addr().String() + "/shop", silent.Addr().String(), []string{
			"no answer within 3s; start PostgreSQL, or correct host and port of source.dsn", "for metadata: no answer within 3s",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			got := command(t, nil, "validate", "--config", writeReachConfig(t, test.dsn, test.broker), "--connect", "--timeout", "3s")
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("it took %s", took)
			}
			for _, want := range append(test.want, "all (stdout): ok\n") {
				if !strings.Contains(got.stdout, want) {
					t.Errorf("the output lacks %q:\n%s", want, got.stdout)
				}
			}
			if got.code != exitcode.Failure || strings.Contains(got.stdout+got.stderr, "canary") {
				t.Errorf("code %d, output %s%s", got.code, got.stdout, got.stderr)
			}
			if strings.Contains(name, "hang") && !strings.Contains(got.stderr, "waiting for PostgreSQL, events\n") {
				t.Errorf("nothing says what it waits for: %q", got.stderr)
			}
		})
	}
}

// A password that is wrong, and a login that may not replicate.
func TestValidateConnectLogins(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	user, _ := pgtest.NewLogin(t, db.Conn(t))
	u, err := url.Parse(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("nobody_of_this_name", "canary")
	for dsn, want := range map[string]string{
		u.String():                             "nobody_of_this_name",
		pgtest.WithLogin(t, db.DSN, user, "x"): "may not replicate; alter role",
	} {
		got := command(t, []string{"OUTBOX_PUBLISHER_TYPE=stdout", "DATABASE_URL=" + dsn}, "validate", "--connect")
		if got.code != exitcode.Failure || !strings.Contains(got.stdout, want) || strings.Contains(got.stdout+got.stderr, "canary") {
			t.Errorf("code %d, want %q:\n%s%s", got.code, want, got.stdout, got.stderr)
		}
	}
}

// One member of a composite is enough, and the others are named.
func TestValidateConnectComposite(t *testing.T) {
	t.Parallel()
	db := pgtest.Unmigrated(t)
	slot := db.Slot(t)
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	text := `
name: orders
source: {dsn: "` + db.DSN + `", slot: ` + slot + `, publication: ` + slot + `}
sinks:
  - {name: events, type: kafka, brokers: ["127.0.0.1:1"], topic: orders}
  - {name: spare, type: stdout}
  - {name: both, type: composite, strategy: any, members: [events, spare]}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := command(t, nil, "init", "--config", file); got.code != exitcode.OK {
		t.Fatal(got)
	}
	got := command(t, nil, "validate", "--config", file, "--connect")
	for _, want := range []string{"both (composite): ok\n  events (kafka): cannot be used\n    ask 127.0.0.1:1 for metadata: unable to dial", "\n  spare (stdout): ok\n"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("the output lacks %q:\n%s", want, got.stdout)
		}
	}
	if got.code != exitcode.OK {
		t.Errorf("code %d, stderr %q", got.code, got.stderr)
	}
}

func TestUsageErrorsOfValidate(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"validate -o json":                "-o and --timeout are for what --connect finds; write --connect as well",
		"validate --connect -o table":     `no output format "table"; write text or json`,
		"validate --connect --timeout 0s": "no timeout 0s; write how long to wait for each answer, such as 10s",
	} {
		got := command(t, nil, strings.Fields(line)...)
		if got.code != exitcode.Usage || got.stderr != want+"\n" {
			t.Errorf("%s: code %d, stderr %q, want %q", line, got.code, got.stderr, want)
		}
	}
}
