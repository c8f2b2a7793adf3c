package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// On a terminal the bars are drawn over those of before, whatever its size: a line ends at the edge, what matters least last, and of more jobs
// than there are lines those are shown that are not finished.
func TestBacklogBars(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	height := 3
	b := backlogView{w: &out, bars: true, height: func() int { return height }}
	rate, left := 500.0, 90.0
	first := []admin.BacklogJob{{Sink: "events", Walked: 100, Estimate: 1000, Rate: &rate, Left: &left}, {Sink: "partner", Walked: 7}}
	second := []admin.BacklogJob{{Sink: "events", Walked: 1000, Parked: 3, Finished: time.Now()}, {Sink: "partner", Walked: 9}}
	third := append(second, admin.BacklogJob{Sink: "other", Walked: 4})
	for _, jobs := range [][]admin.BacklogJob{first, second, third} {
		if err := b.show(jobs); err != nil {
			t.Fatal(err)
		}
	}
	const wrapOff, wrapOn, clear, up = "\x1b[?7l", "\x1b[?7h\n", "\x1b[2K", "\x1b[2A"
	want := wrapOff + clear + "events               [##......................] 10 %, about 1m30s left, 500 a second, 100 of about 1000 rows compared" + wrapOn +
		wrapOff + clear + "partner              [????????????????????????] 7 rows compared" + wrapOn +
		up + wrapOff + clear + "events               [########################] finished, 3 of 1000 rows were missing" + wrapOn +
		wrapOff + clear + "partner              [????????????????????????] 9 rows compared" + wrapOn +
		up + wrapOff + clear + "partner              [????????????????????????] 9 rows compared" + wrapOn +
		wrapOff + clear + "… 2 more jobs: make the window higher" + wrapOn
	if got := out.String(); got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

// A watch that has begun goes on after an outage, and says once what it has met. The bars after it are drawn below what it said. A first look
// that fails ends it, and so does what no further look can mend.
func TestBacklogWatchLivesThroughAnOutage(t *testing.T) {
	t.Parallel()
	away := exitcode.Errorf(exitcode.Unavailable, "PostgreSQL cannot be reached: connection refused")
	half, done := []admin.BacklogJob{{Sink: "events", Walked: 7}}, []admin.BacklogJob{{Sink: "events", Walked: 9, Parked: 2, Finished: time.Now()}}
	past := admin.BacklogJob{ID: 1, Sink: "past", Finished: time.Now().Add(-time.Hour)}
	half[0].ID, done[0].ID = 2, 2
	type look struct {
		jobs []admin.BacklogJob
		err  error
	}
	const terminal, file = "terminal", "file"
	watch := func(on string, looks ...look) (stdout, stderr string, lasted time.Duration, err error) {
		synctest.Test(t, func(t *testing.T) {
			var out, errs strings.Builder
			b := backlogView{w: &out, errors: &errs, bars: on == terminal, height: func() int { return 0 }, read: func(context.Context) ([]admin.BacklogJob, error) {
				l := looks[0]
				looks = looks[1:]
				return l.jobs, l.err
			}}
			begin := time.Now()
			err = b.watch(t.Context())
			stdout, stderr, lasted = out.String(), errs.String(), time.Since(begin)
		})
		return stdout, stderr, lasted, err
	}
	const told = "PostgreSQL cannot be reached: connection refused; asking again until it answers\n"

	stdout, stderr, lasted, err := watch(file, look{jobs: half}, look{err: away}, look{err: away}, look{jobs: half}, look{err: away}, look{jobs: done})
	if err != nil || stderr != told+told || strings.Count(stdout, "events: ") != 3 || !strings.Contains(stdout, "finished at ") {
		t.Errorf("%v\n%s%s", err, stdout, stderr)
	}
	if want := backlogLines + 2*backlogSample + backlogLines + backlogSample; lasted != want {
		t.Errorf("it took %s, want %s", lasted, want)
	}
	if stdout, _, _, err = watch(terminal, look{jobs: half}, look{err: away}, look{jobs: half}, look{jobs: done}); err != nil || strings.Count(stdout, "\x1b[1A") != 1 {
		t.Errorf("%v\n%q", err, stdout)
	}
	if _, stderr, _, err = watch(terminal, look{err: away}); exitcode.Of(err) != exitcode.Unavailable || stderr != "" {
		t.Errorf("%v, %q", err, stderr)
	}
	// What had finished before the watch is shown if there is nothing else.
	before := []admin.BacklogJob{past, half[0]}
	if stdout, _, _, err = watch(file, look{jobs: before}, look{jobs: []admin.BacklogJob{past, done[0]}}); err != nil || strings.Contains(stdout, "past") {
		t.Errorf("%v\n%s", err, stdout)
	}
	if stdout, _, _, err = watch(file, look{jobs: []admin.BacklogJob{past}}); err != nil || !strings.HasPrefix(stdout, "past: finished at ") {
		t.Errorf("%v\n%s", err, stdout)
	}
	gone := exitcode.Errorf(exitcode.Config, "outbox-cdc init makes the ledger")
	if _, stderr, _, err = watch(terminal, look{jobs: half}, look{err: gone}); !errors.Is(err, gone) || stderr != "" {
		t.Errorf("%v, %q", err, stderr)
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
	if got := command(t, nil, "init", "--config", file, "--backlog", "all"); got.code != exitcode.OK || !strings.Contains(got.stderr, "warning: --backlog does nothing: ") {
		t.Errorf("a second init: %+v", got)
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
	shown.Jobs = nil
	if says(&shown, "backlog"); len(shown.Jobs) != 2 || shown.Jobs[1].Reason != "resync" || shown.Jobs[1].Replaced || !shown.Jobs[0].Replaced || shown.Jobs[0].Finished.IsZero() {
		t.Errorf("backlog: %+v", shown)
	}
	if text := command(t, nil, "backlog", "--config", file).stdout; !strings.Contains(text, "replaced by a later job at ") || strings.Contains(text, "finished at ") {
		t.Errorf("backlog:\n%s", text)
	}
}
