package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// outcome is the exit code and the output of a command.
type outcome struct {
	code           exitcode.Code
	stdout, stderr string
}

func command(t *testing.T, environ []string, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := execute(t.Context(), args, environ, &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"rnu":                    `outbox-cdc has no command "rnu"; did you mean run?`,
		"frobnicate":             `outbox-cdc has no command "frobnicate"; see outbox-cdc --help`,
		"config exmple":          `outbox-cdc config has no command "exmple"; did you mean example?`,
		"help rnu":               `outbox-cdc has no command "rnu"; did you mean run?`,
		"help config exmple":     `outbox-cdc config has no command "exmple"; did you mean example?`,
		"completion fihs":        `outbox-cdc completion has no command "fihs"; did you mean fish?`,
		"completion bash now":    `outbox-cdc completion bash takes no arguments, and got ["now"]; see outbox-cdc completion bash --help`,
		"run now":                `outbox-cdc run takes no arguments, and got ["now"]; see outbox-cdc run --help`,
		"run --fast":             `unknown flag: --fast; see outbox-cdc run --help`,
		"run --config":           `flag needs an argument: --config; see outbox-cdc run --help`,
		"run --log-level loud":   `no log level "loud"; write debug, info, warn or error`,
		"run --log-format xml":   `no log format "xml"; write auto, text or json`,
		"version --output table": `no output format "table"; write text or json`,
	} {
		got := command(t, nil, strings.Fields(line)...)
		if got.code != 2 || got.stdout != "" || got.stderr != want+"\n" {
			t.Errorf("%s: code %d, stdout %q, stderr %q, want 2 and %q", line, got.code, got.stdout, got.stderr, want)
		}
	}
}

func TestInvalidConfiguration(t *testing.T) {
	t.Parallel()
	for content, tells := range map[string]string{
		"source:\n  slots: a\n":             "source.slots: unknown key",
		"metrics:\n  prefix: out-of-box_\n": `metrics.prefix: "out-of-box_" cannot begin the name of a metric`,
	} {
		file := filepath.Join(t.TempDir(), "outbox.yaml")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"run", "validate", "config effective"} {
			got := command(t, []string{"DATABASE_URL=postgres://localhost/shop"}, append(strings.Fields(line), "--config", file)...)
			if got.code != exitcode.Config || got.stdout != "" || !strings.HasPrefix(got.stderr, file+":2: "+tells) {
				t.Errorf("%s: code %d, stdout %q, stderr %q", line, got.code, got.stdout, got.stderr)
			}
		}
	}
}

// All mistakes in sinks are reported at once, each with its line and key.
func TestEveryMistakeOfSinksAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "outbox.yaml")
	text := `source: {dsn: "postgres://localhost/shop"}
sinks:
  - name: events
    type: kafka
    brokers: [localhost]
    topic: "{aggregate}"
    placement: "type:envelope, id:header"
    headers_from_metadata: [a, a]
    tls: {enabled: true, ca_file: DIR/nowhere.pem, cert_file: DIR/outbox.yaml, key_file: DIR/outbox.yaml}
  - name: stream
    type: redis_stream
    url: http://localhost:6379
  - name: hook
    type: webhook
    url: "https://u:canary@h.example"
    secret: ["${file:DIR/nowhere}", whsec_canary]
    headers: {Webhook-Id: "1", x-outbox-attempt: "1"}
  - name: internal
    type: webhook
    url: https://10.0.0.1/
    secret: s
  - name: bus
    type: event_bus
    url: "nats://u:can/ary@h"
  - {name: subject, type: event_bus, url: "nats://h", inbox_prefix: "a b"}
  - {name: seed, type: event_bus, url: "nats://h", nkey_file: DIR/outbox.yaml}
  - name: both
    type: composite
    strategy: some
    members: [events, nobody]
  - name: cluster
    type: redis_stream
    url: redis://localhost/3
    addresses: [localhost:1]
routes:
  - match: {event_type: [a]}
    sinks: [stream, elsewhere]
`
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	want := `
DIR/outbox.yaml:5: sinks[0].brokers[0]: "localhost" is no broker; write host:9092
DIR/outbox.yaml:6: sinks[0].topic: {aggregate} is no field of an event; these are: id, aggregate_type, aggregate_id, event_type, event_version, tenant_id, correlation_id, causation_id
DIR/outbox.yaml:7: sinks[0].placement: "type:envelope": the value is the payload, byte for byte, without an envelope; place the column as a header
DIR/outbox.yaml:8: sinks[0].headers_from_metadata[1]: "a" is the name of another header, or none
DIR/outbox.yaml:9: sinks[0].tls.ca_file: DIR/nowhere.pem cannot be read: no such file or directory
DIR/outbox.yaml:9: sinks[0].tls.cert_file: tls: failed to find any PEM data in certificate input
DIR/outbox.yaml:12: sinks[1].url: has the scheme "http"; write redis, rediss
DIR/outbox.yaml:15: sinks[2].url: it holds a user or a password; use headers (Authorization) instead
DIR/outbox.yaml:16: sinks[2].secret[0]: the file of ${file:DIR/nowhere} cannot be read: no such file or directory; correct its path, or let this user read it
DIR/outbox.yaml:16: sinks[2].secret[1]: what follows whsec_ is not base64
DIR/outbox.yaml:17: sinks[2].headers: Webhook-Id is set by the sink itself
DIR/outbox.yaml:17: sinks[2].headers: x-outbox-attempt is set by the sink itself
DIR/outbox.yaml:20: sinks[3].url: 10.0.0.1 is an internal address; add it to allow_hosts if it is meant
DIR/outbox.yaml:24: sinks[4].url: is no URL; write nats://host, other characters than letters and digits of a password as %XX
DIR/outbox.yaml:25: sinks[5].inbox_prefix: subject "a b" has a space, a control character, * or >
DIR/outbox.yaml:26: sinks[6].nkey_file: nkeys: no nkey seed found
DIR/outbox.yaml:29: sinks[7].strategy: "some" is unknown; write all, any, primary
DIR/outbox.yaml:30: sinks[7].members[1]: "nobody" is no sink; these are: both, bus, cluster, events, hook, internal, seed, stream, subject
DIR/outbox.yaml:33: sinks[8].url: names database 3, and a cluster has database 0 only
DIR/outbox.yaml:37: routes[0].sinks[1]: "elsewhere" is no sink; these are: both, bus, cluster, events, hook, internal, seed, stream, subject
`
	for _, line := range []string{"run", "validate", "route test"} {
		got := command(t, nil, append(strings.Fields(line), "--config", file)...)
		if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(strings.ReplaceAll(got.stderr, dir, "DIR"))); got.code != exitcode.Config || diff != "" {
			t.Errorf("%s: code %d, stderr (-want +got):\n%s", line, got.code, diff)
		}
	}
}

func TestValidateAndEffective(t *testing.T) {
	t.Parallel()
	environ := []string{
		"DATABASE_URL=postgres://cdc:canary@localhost/shop", "OUTBOX_PUBLISHER_TYPE=stdout", "OUTBOX_POLL_INTERVAL=5s", "SERVICE_NAME=orders",
	}
	got := command(t, environ, "validate")
	if want := "valid: orders from public.event_outbox to stdout (stdout)\n" +
		"rows of public.event_outbox that are settled for every sink are deleted when they are older than 7d; retention.outbox: off keeps them\n" +
		"days of the delivery log that are settled are deleted when they are older than 7d; retention.ledger: off keeps them\n"; got.code != 0 || got.stdout != want {
		t.Errorf("validate: code %d, stdout %q, want %q", got.code, got.stdout, want)
	}
	if !strings.HasPrefix(got.stderr, "warning: OUTBOX_POLL_INTERVAL has no effect") {
		t.Errorf("validate: stderr %q lacks the warning", got.stderr)
	}
	got = command(t, environ, "config", "effective")
	if got.code != 0 || strings.Contains(got.stdout, "canary") || !strings.Contains(got.stdout, "dsn: postgres://cdc:***@localhost/shop\n") {
		t.Errorf("config effective: code %d, stdout:\n%s", got.code, got.stdout)
	}
	if got = command(t, nil, "config", "example"); got.code != 0 || got.stdout != config.Example() {
		t.Errorf("config example: code %d", got.code)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	got := command(t, nil, "version", "-o", "json")
	var v buildinfo.Info
	if err := json.Unmarshal([]byte(got.stdout), &v); err != nil || v.Version == "" || v.Go == "" {
		t.Errorf("version -o json: %q, %v", got.stdout, err)
	}
	commit := v.Commit
	if commit == "" { // the test binary is built without it
		commit = "unknown"
	}
	if want := fmt.Sprintf("outbox-cdc %s\ncommit %s\n%s %s\n", v.Version, commit, v.Go, v.Platform); command(t, nil, "version").stdout != want {
		t.Errorf("version: %q, want %q", command(t, nil, "version").stdout, want)
	}
}

func TestHelpAndCompletion(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"", "--help", "help run", "help dlq show", "help help", "config", "completion", "completion bash", "completion zsh", "completion fish"} {
		if got := command(t, nil, strings.Fields(line)...); got.code != 0 || got.stdout == "" || got.stderr != "" {
			t.Errorf("%q: code %d, %d bytes, stderr %q", line, got.code, len(got.stdout), got.stderr)
		}
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	for want, err := range map[exitcode.Code]error{
		exitcode.Usage:    usageError("usage"),
		exitcode.SlotLost: loggedError{fmt.Errorf("start: %w", exitcode.With(exitcode.SlotLost, errors.New("gone")))},
		exitcode.Config:   &config.Error{},
	} {
		if got := exitcode.Of(err); got != want {
			t.Errorf("exitcode.Of(%v) = %d, want %d", err, got, want)
		}
	}
}

// The help and docs/operations.md list all exit codes with their meanings.
func TestExitCodesAreDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for place, text := range map[string]string{"--help": command(t, nil, "--help").stdout, "docs/operations.md": string(page)} {
		_, list, ok := strings.Cut(strings.Join(strings.Fields(text), " "), "Exit codes: ")
		if !ok {
			t.Fatalf("%s lists no exit codes", place)
		}
		for code, meaning := range map[exitcode.Code]string{
			exitcode.OK: "done", exitcode.Failure: "failure", exitcode.Usage: "usage", exitcode.Unavailable: "PostgreSQL",
			exitcode.SlotLost: "the slot is lost", exitcode.Undecided: "not everything could be compared", exitcode.Privilege: "a privilege is missing", exitcode.Config: "",
		} {
			if want := fmt.Sprintf("%d %s", code, meaning); !strings.Contains(list, want) {
				t.Errorf("%s: %q is not in the list of exit codes", place, want)
			}
		}
	}
}

func TestRouteTest(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	text := `
sinks:
  - {name: events, type: kafka, brokers: [localhost:9092]}
  - {name: log, type: stdout}
  - {name: either, type: composite, strategy: any, members: [events, log]}
routes: [{match: {tenant_id: [acme]}, sinks: [either]}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := command(t, nil, "route", "test", "--config", file, "--tenant-id", "acme", "--aggregate-type", "order", "--aggregate-id", "42")
	want := "either (composite)\n  or events (kafka) topic outbox.event.order key \"42\"\n  or log (stdout) topic outbox.event.order key \"42\"\n"
	if got.code != 0 || got.stdout != want {
		t.Errorf("code %d, stdout %q, stderr %q, want %q", got.code, got.stdout, got.stderr, want)
	}
	got = command(t, nil, "route", "test", "--config", file, "--tenant-id", "other", "-o", "json")
	if got.code != 0 || got.stdout != "{\n  \"targets\": []\n}\n" {
		t.Errorf("code %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	if got = command(t, nil, "route", "tset"); got.code != 2 || !strings.Contains(got.stderr, "did you mean test?") {
		t.Errorf("code %d, stderr %q", got.code, got.stderr)
	}
}
