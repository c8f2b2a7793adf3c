package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// Each command prints a text whose metrics begin with the prefix of the flag, of the configuration, or by default.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	// The database is not known, and a sink is wrong.
	if err := os.WriteFile(file, []byte("metrics: {prefix: shop_}\nsinks: [{type: kafka}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"dashboard", "alerts", "metrics"} {
		for _, c := range []struct{ line, prefix string }{
			{"", "pyairtable_outbox_"},
			{"--prefix orders_", "orders_"},
			{"--prefix=", ""},
			{"--config " + file, "shop_"},
			{"--prefix orders_ --config " + file, "orders_"},
		} {
			got := command(t, nil, strings.Fields("monitoring "+what+" "+c.line)...)
			if got.code != 0 || !strings.Contains(got.stdout, c.prefix+"slot_lag_bytes") {
				t.Errorf("%s %s: code %d, stderr %q, or no %sslot_lag_bytes", what, c.line, got.code, got.stderr, c.prefix)
			}
			if c.prefix != "pyairtable_outbox_" && strings.Contains(got.stdout, "pyairtable_") {
				t.Errorf("%s %s: some names begin with the default prefix", what, c.line)
			}
			if what == "dashboard" && !json.Valid([]byte(got.stdout)) {
				t.Errorf("%s %s: no JSON", what, c.line)
			}
		}
		for _, c := range []struct {
			line string
			code exitcode.Code
			want string
		}{
			{"--prefix 9lives_", exitcode.Config, `--prefix: "9lives_" cannot begin the name of a metric`},
			{"--prefix a:b", exitcode.Config, "cannot begin"},
			{"--prefix a{}", exitcode.Config, "cannot begin"},
			{"--config /nowhere.yaml", exitcode.Config, "/nowhere.yaml"},
			{"extra", exitcode.Usage, "takes no arguments"},
			{"--datasource x", exitcode.Usage, "unknown flag"},
		} {
			got := command(t, nil, strings.Fields("monitoring "+what+" "+c.line)...)
			if got.code != c.code || got.stdout != "" || !strings.Contains(got.stderr, c.want) {
				t.Errorf("%s %s: code %d, stderr %q, want %d and %q", what, c.line, got.code, got.stderr, c.code, c.want)
			}
		}
	}
	if got := command(t, nil, "monitoring", "dashbord"); got.code != exitcode.Usage || !strings.Contains(got.stderr, "did you mean dashboard?") {
		t.Errorf("code %d, stderr %q", got.code, got.stderr)
	}
	if got := command(t, nil, "__complete", "monitoring", ""); !strings.Contains(got.stdout, "dashboard\t") || !strings.Contains(got.stdout, "metrics\t") {
		t.Errorf("completion: %q", got.stdout)
	}
}

// What makes the dashboard, and Prometheus itself, are no part of the binary.
func TestDependencies(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil || !strings.Contains(string(out), "github.com/pyairtable-compose/outbox-cdc/monitoring\n") {
		t.Fatalf("go list -deps: %v, or it lacks monitoring", err)
	}
	for _, module := range []string{"github.com/grafana/", "github.com/prometheus/prometheus"} {
		if strings.Contains(string(out), module) {
			t.Errorf("the binary links %s", module)
		}
	}
}
