package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// On a terminal the bars are drawn over those of before, whatever its width: a line ends at the edge, what matters least last.
func TestBacklogBars(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	b := backlogView{w: &out, bars: true}
	rate, left := 500.0, 90.0
	first := []admin.BacklogJob{{Sink: "events", Walked: 100, Estimate: 1000, Rate: &rate, Left: &left}, {Sink: "partner", Walked: 7}}
	second := []admin.BacklogJob{{Sink: "events", Walked: 1000, Parked: 3, Finished: time.Now()}, {Sink: "partner", Walked: 9}}
	for _, jobs := range [][]admin.BacklogJob{first, second} {
		if err := b.show(jobs); err != nil {
			t.Fatal(err)
		}
	}
	const wrapOff, wrapOn, clear, up = "\x1b[?7l", "\x1b[?7h\n", "\x1b[2K", "\x1b[2A"
	want := wrapOff + clear + "events               [##......................] 10 %, about 1m30s left, 500 a second, 100 of about 1000 rows compared" + wrapOn +
		wrapOff + clear + "partner              [????????????????????????] 7 rows compared" + wrapOn +
		up + wrapOff + clear + "events               [########################] finished, 3 of 1000 rows were missing" + wrapOn +
		wrapOff + clear + "partner              [????????????????????????] 9 rows compared" + wrapOn
	if got := out.String(); got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

// init, resync and backlog say as JSON which jobs there are.
func TestJobsAsJSON(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	text := fmt.Sprintf("source: {dsn: '%s', slot: '%s'}\nsinks: [{name: log, type: stdout, topic: x}]\n", d.DSN, d.Slot(t))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Conn(t).Exec(t.Context(), "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'order', n, 'made', '{}' from generate_series(1, 7) n"); err != nil {
		t.Fatal(err)
	}
	says := func(into any, args ...string) {
		t.Helper()
		got := command(t, nil, append(args, "--config", file, "-o", "json")...)
		if err := json.Unmarshal([]byte(got.stdout), into); err != nil || got.code != 0 {
			t.Fatalf("%q: %v, code %d\n%s%s", args, err, got.code, got.stdout, got.stderr)
		}
	}
	var init struct{ Jobs int }
	if says(&init, "init", "--backlog", "where:aggregate_id <> '7'"); init.Jobs != 1 {
		t.Errorf("init: %+v", init)
	}
	var shown struct{ Jobs []admin.BacklogJob }
	if says(&shown, "backlog"); len(shown.Jobs) != 1 || shown.Jobs[0].Sink != "log" || shown.Jobs[0].Reason != "init" || shown.Jobs[0].Where != "aggregate_id <> '7'" ||
		shown.Jobs[0].Estimate != 7 || !shown.Jobs[0].Finished.IsZero() {
		t.Errorf("backlog: %+v", shown)
	}
	var plan struct{ Steps []string }
	if says(&plan, "resync", "--dry-run"); len(plan.Steps) != 3 {
		t.Errorf("resync --dry-run: %q", plan.Steps)
	}
	var made struct {
		Jobs            int
		Rows            int
		RowsCounted     bool   `json:"rows_counted"`
		OldSlotDropped  bool   `json:"old_slot_dropped"`
		ConsistentPoint string `json:"consistent_point"`
	}
	if says(&made, "resync", "--yes"); made.Jobs != 1 || made.Rows != 7 || !made.RowsCounted || !made.OldSlotDropped || made.ConsistentPoint == "" {
		t.Errorf("resync: %+v", made)
	}
	if says(&shown, "backlog"); len(shown.Jobs) == 0 || shown.Jobs[len(shown.Jobs)-1].Reason == "" {
		t.Errorf("backlog: %+v", shown)
	}
}
