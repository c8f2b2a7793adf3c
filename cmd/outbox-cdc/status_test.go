package main

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// The screen before init, after it, and with rows in the ledger. Each remedy on it is a command that there is.
func TestStatus(t *testing.T) {
	t.Parallel()
	db := pgtest.Unmigrated(t)
	slot := db.Slot(t)
	environ := []string{"DATABASE_URL=" + db.DSN, "OUTBOX_SLOT=" + slot, "OUTBOX_PUBLICATION=" + slot, "OUTBOX_PUBLISHER_TYPE=stdout", "OUTBOX_LISTEN=off"}
	show := func(args ...string) string {
		t.Helper()
		got := command(t, environ, append([]string{"status"}, args...)...)
		if got.code != exitcode.OK || got.stderr != "" {
			t.Errorf("status %q: code %d, stderr %q", args, got.code, got.stderr)
		}
		for line := range strings.Lines(got.stdout) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && len(args) == 0 {
				t.Errorf("a line of %d columns: %q", n, line)
			}
		}
		return got.stdout
	}
	has := func(text string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
				t.Errorf("the screen lacks %q:\n%s", want, text)
			}
		}
	}
	has(show(), ": failed", "does not exist yet", `run "outbox-cdc init"`)

	if got := command(t, environ, "init"); got.code != exitcode.OK {
		t.Fatal(got)
	}
	has(show(), ": failed", slot+" is not streamed from", "no connector streams from slot", "outbox-cdc run", "unlimited")
	t.Log(show())
	t.Log(show("-o", "json"))
}
