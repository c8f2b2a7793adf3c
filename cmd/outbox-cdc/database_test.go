package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

const nowhere = "postgres://app:canary@127.0.0.1:1/shop?sslmode=disable"

// Commands say which database they work on, and where that was configured, before they connect. They need no sinks, and mistakes in
// sinks do not stop them.
func TestCommandsTellTheDatabase(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	const text = `source: {dsn: "` + nowhere + `"}
sinks:
  - {type: kafak}
  - {name: hook, type: webhook, url: "https://h.example", secret: "${NOT_SET}"}
routes: [{sinks: [other]}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	const place = `works on database "shop" on 127.0.0.1:1 as user "app" `
	for line, wants := range map[string][]string{
		"init":                  {place + "(DATABASE_URL)"},
		"init --dry-run":        {place + "(DATABASE_URL)"},
		"init --dsn " + nowhere: {place + "(--dsn)"},
		"destroy --yes":         {"outbox-cdc destroy " + place + "(DATABASE_URL)"},
		"destroy --yes --config " + file: {
			place + "(" + file + ":1)", "warning: " + file + ":1: source.dsn is used, and the variable DATABASE_URL", `warning: ` + file + `:3: sinks[0].type: "kafak" is no type`,
			"warning: " + file + ":4: sinks[1].secret: the variable NOT_SET is not set",
		},
		"init --config " + file:   {place + "(" + file + ":1)", `:3: sinks[0].type: "kafak" is no type`, "the variable NOT_SET is not set"},
		"events list -v":          {place + "(DATABASE_URL)"},
		"dlq list --verbose":      {place + "(DATABASE_URL)"},
		"dlq kill --all --yes -v": {place + "(DATABASE_URL)"},
		"pause stdout -v":         {place + "(DATABASE_URL)"},
		"retry stdout --verbose":  {place + "(DATABASE_URL)"},
	} {
		got := command(t, []string{"DATABASE_URL=" + strings.Replace(nowhere, "canary", "canary2", 1)}, strings.Fields(line)...)
		if got.code != exitcode.Unavailable || got.stdout != "" {
			t.Errorf("%s: code %d, stdout %q, stderr:\n%s", line, got.code, got.stdout, got.stderr)
		}
		for _, want := range wants {
			if !strings.Contains(got.stderr, want) {
				t.Errorf("%s: stderr lacks %q:\n%s", line, want, got.stderr)
			}
		}
		if strings.Contains(got.stderr, "canary") {
			t.Errorf("%s: a password is told:\n%s", line, got.stderr)
		}
	}
	for _, line := range []string{"run", "validate", "route test"} { // these need the sinks
		if got := command(t, nil, append(strings.Fields(line), "--config", file)...); got.code != exitcode.Config || !strings.Contains(got.stderr, "kafak") {
			t.Errorf("%s: code %d, stderr:\n%s", line, got.code, got.stderr)
		}
	}
}

// What takes something away asks first. A script has to say that it means it.
func TestQuestionsNeedATerminal(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"destroy", "destroy --ledger", "dlq discard --all", "dlq kill --all"} {
		got := command(t, []string{"DATABASE_URL=" + nowhere}, strings.Fields(line)...)
		if got.code != exitcode.Usage || !strings.Contains(got.stderr, "here is no terminal to ask at") || !strings.Contains(got.stderr, "use --yes") {
			t.Errorf("%s: code %d, stderr %q", line, got.code, got.stderr)
		}
	}
	if text := placeText(nowhere); text != ` of database "shop" on 127.0.0.1:1` {
		t.Errorf("a question ends with %q", text)
	}
}
