package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// init says what will be deleted, also where it does nothing, and as JSON.
func TestInitSaysWhatIsDeleted(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	if err := os.WriteFile(file, []byte("source: {dsn: '"+d.DSN+"', slot: '"+d.Slot(t)+"'}\nretention: {outbox: 1d12h, ledger: 3d}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"rows of public.event_outbox that are settled for every sink are deleted when they are older than 1d12h; retention.outbox: off keeps them",
		"days of the delivery log that are settled are deleted when they are older than 3d; retention.ledger: off keeps them",
	}
	const nothing = "nothing is deleted: retention.outbox and retention.ledger are off"
	off := []string{"OUTBOX_RETENTION_OUTBOX=off", "OUTBOX_RETENTION_LEDGER=off"}
	for _, flags := range [][]string{{"--dry-run"}, nil, nil} { // the last one finds everything there
		args := append([]string{"init", "--config", file}, flags...)
		if got := command(t, nil, args...); got.code != 0 || !strings.HasSuffix(got.stdout, "\n"+strings.Join(want, "\n")+"\n") {
			t.Errorf("%q: code %d\n%s%s", args, got.code, got.stdout, got.stderr)
		}
		if got := command(t, off, args...); got.code != 0 || !strings.HasSuffix(got.stdout, "\n"+nothing+"\n") {
			t.Errorf("%q, off: code %d\n%s%s", args, got.code, got.stdout, got.stderr)
		}
		var result struct{ Deletes []string }
		got := command(t, nil, append(args, "-o", "json")...)
		if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || !slices.Equal(result.Deletes, want) {
			t.Errorf("%q: %v, code %d\n%s%s", args, err, got.code, got.stdout, got.stderr)
		}
	}
}
