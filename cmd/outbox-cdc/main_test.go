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

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// outcome is what a command line comes to.
type outcome struct {
	code           int
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
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	if err := os.WriteFile(file, []byte("source:\n  slots: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"run", "validate", "config effective"} {
		got := command(t, []string{"DATABASE_URL=postgres://localhost/shop"}, append(strings.Fields(line), "--config", file)...)
		if got.code != 78 || got.stdout != "" || !strings.HasPrefix(got.stderr, file+":2: source.slots: unknown key") {
			t.Errorf("%s: code %d, stdout %q, stderr %q", line, got.code, got.stdout, got.stderr)
		}
	}
}

func TestValidateAndEffective(t *testing.T) {
	t.Parallel()
	environ := []string{
		"DATABASE_URL=postgres://cdc:canary@localhost/shop", "OUTBOX_PUBLISHER_TYPE=stdout", "OUTBOX_POLL_INTERVAL=5s", "SERVICE_NAME=orders",
	}
	got := command(t, environ, "validate")
	if want := "valid: orders from public.event_outbox to stdout (stdout)\n"; got.code != 0 || got.stdout != want {
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
	var v version
	if err := json.Unmarshal([]byte(got.stdout), &v); err != nil || v.Version == "" || v.Go == "" {
		t.Errorf("version -o json: %q, %v", got.stdout, err)
	}
	if got := command(t, nil, "version"); got.code != 0 || !strings.HasPrefix(got.stdout, "outbox-cdc "+v.Version) {
		t.Errorf("version: %q", got.stdout)
	}
}

func TestHelpAndCompletion(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"", "--help", "help run", "config", "completion bash", "completion zsh", "completion fish"} {
		if got := command(t, nil, strings.Fields(line)...); got.code != 0 || got.stdout == "" || got.stderr != "" {
			t.Errorf("%q: code %d, %d bytes, stderr %q", line, got.code, len(got.stdout), got.stderr)
		}
	}
}

type coded int

func (c coded) Error() string { return fmt.Sprint("code ", int(c)) }
func (c coded) ExitCode() int { return int(c) }

func TestExitCode(t *testing.T) {
	t.Parallel()
	for want, err := range map[int]error{
		0:  nil,
		1:  errors.New("any"),
		2:  usageError{errors.New("usage")},
		69: coded(69),
		70: loggedError{fmt.Errorf("start: %w", coded(70))},
		77: errors.Join(errors.New("first"), coded(77)),
		78: &config.Error{},
	} {
		if got := exitCode(err); got != want {
			t.Errorf("exitCode(%v) = %d, want %d", err, got, want)
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
