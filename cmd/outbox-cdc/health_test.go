package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

func TestHealth(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() == "/readyz?strict" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write([]byte(`{"status": "degraded", "components": {"sink:a": {"status": "degraded", "detail": "away"}}}`))
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	text := "source: {dsn: postgres://h/d}\nhttp: {listen: " + strings.TrimPrefix(server.URL, "http://") + "}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// An instance goes on if a reload finds mistakes, and is no less alive for them.
	mistaken := filepath.Join(t.TempDir(), "mistaken.yaml")
	text = "source: {dsn: \"${file:/nowhere}\"}\nsinks: [{name: a, type: kafak}]\nhttp: {listen: " + strings.TrimPrefix(server.URL, "http://") + "}\nfoo: 1\n"
	if err := os.WriteFile(mistaken, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line    string
		environ []string
		code    exitcode.Code
		want    string
	}{
		{"health --live --config " + mistaken, []string{"OUTBOX_PUBLISHER_TYPE=nothing"}, exitcode.OK, "degraded\n"},
		{"health --live", []string{"OUTBOX_LISTEN=nowhere"}, exitcode.Config, "OUTBOX_LISTEN: http.listen: "},
		{"health --config " + file, nil, exitcode.OK, "degraded\n  sink:a is degraded: away\n"},
		{"health", []string{"OUTBOX_CONFIG=" + file}, exitcode.OK, "degraded\n  sink:a is degraded: away\n"},
		{"health --strict --config " + file, nil, exitcode.Failure, "degraded\n  sink:a is degraded: away\n"},
		{"health", []string{"DATABASE_URL=postgres://h/d", "OUTBOX_LISTEN=127.0.0.1:1"}, exitcode.Failure, "no instance answers at 127.0.0.1:1"},
		{"health", []string{"DATABASE_URL=postgres://h/d", "OUTBOX_LISTEN=off"}, exitcode.Config, "http.listen is off"},
		{"health --live --strict", nil, exitcode.Usage, "--live and --strict"},
		{"health --timeout 0", nil, exitcode.Usage, "no timeout 0s"},
	} {
		got := command(t, c.environ, strings.Fields(c.line)...)
		if got.code != c.code || !strings.HasPrefix(got.stdout+got.stderr, c.want) {
			t.Errorf("%s: code %d, %q%q, want %d and %q", c.line, got.code, got.stdout, got.stderr, c.code, c.want)
		}
	}
}

// OUTBOX_CONFIG names the file where no flag does. If the file is missing, the message says what to do.
func TestConfigOfTheEnvironment(t *testing.T) {
	t.Parallel()
	environ := []string{"OUTBOX_CONFIG=/nowhere/outbox.yaml", "DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=stdout"}
	for _, line := range []string{"run", "validate", "status", "config effective"} {
		got := command(t, environ, strings.Fields(line)...)
		const want = "/nowhere/outbox.yaml: cannot be read: no such file or directory; OUTBOX_CONFIG names it: mount or write that file, or let " +
			"OUTBOX_CONFIG be empty, and the other variables of the environment say it all\n"
		if got.code != exitcode.Config || got.stdout != "" || got.stderr != want {
			t.Errorf("%s: code %d, stdout %q, stderr %q", line, got.code, got.stdout, got.stderr)
		}
	}
	for _, c := range []outcome{
		command(t, []string{"OUTBOX_CONFIG=", environ[1], environ[2]}, "validate"),
		command(t, environ[1:], "validate"),
	} {
		if c.code != exitcode.OK || strings.Contains(c.stderr, "OUTBOX_CONFIG") {
			t.Errorf("code %d, stderr %q", c.code, c.stderr)
		}
	}
}
