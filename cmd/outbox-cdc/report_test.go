package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// A report of an empty outbox is clear text, and a wrong flag is a usage error that says what to write.
func TestReport(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn := db.Conn(t)
	pgtest.Exec(t, conn, "insert into outbox_processors (connector, processor_name, processor_type) values ('shop', 'stdout', 'stdout')")
	environ := []string{"DATABASE_URL=" + db.DSN, "OUTBOX_PUBLISHER_TYPE=stdout", "SERVICE_NAME=shop"}
	for args, want := range map[string]string{
		"--since 59m":         "--since 59m is less than an hour ago, and a report has whole hours; write 1h or more",
		"--since 31d":         "--since 31d is more than 30 days ago, and the ledger keeps no more; write 30d or less",
		"--since soon":        `--since "soon" is no time; write 2006-01-02T15:04:05Z, 2006-01-02, or how long ago: 90m, 3d, 1d12h`,
		"--since 2999-01-01":  "--since 2999-01-01 is less than an hour ago, and a report has whole hours; write 1h or more",
		"--since=":            "--since names nothing",
		"-o yaml":             `no output format "yaml"; write text, json, markdown`,
		"--since 24h someone": `outbox-cdc report takes no arguments, and got ["someone"]; see outbox-cdc report --help`,
	} {
		if got := command(t, environ, append([]string{"report"}, strings.Fields(args)...)...); got.code != exitcode.Usage || !strings.Contains(got.stderr, want) {
			t.Errorf("report %s: code %d, %s", args, got.code, got.stderr)
		}
	}
	got := command(t, environ, "report")
	if got.code != exitcode.OK || !strings.Contains(got.stdout, "Report of shop, ") || !strings.Contains(got.stdout, "No event was accepted or given up in this time.") ||
		!strings.Contains(got.stdout, "99% within 1s") {
		t.Errorf("of an empty outbox: %+v", got)
	}
	got = command(t, environ, "report", "-o", "json", "--since", "30d")
	var r admin.Report
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil || len(r.Sinks) != 1 || r.Sinks[0].Objective.Percent != 99 {
		t.Errorf("as JSON: %v, %s", err, got.stdout)
	}
	if got := command(t, environ, "report", "-o", "markdown"); !strings.HasPrefix(got.stdout, "# Report of shop, ") || !strings.Contains(got.stdout, "| sink | objective |") {
		t.Errorf("as Markdown: %s", got.stdout)
	}
}

// Every part of a report, as text and as Markdown.
func TestReportText(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 28, 14, 23, 0, 0, time.UTC)
	hour := admin.ReportPeriod{Events: 100, InTime: 90, Percent: new(90.0), P50: new(.0021), P99: new(2.95), Worst: new(123.4)}
	r := admin.Report{
		At: at, From: at.Truncate(time.Hour).Add(-24 * time.Hour), Connector: "shop\x1b", NoSinkDead: new(int64(2)), Unknown: []string{"something, for a reason"},
		Stages: &admin.ReportStages{Host: "one", PID: 7, Since: at.Add(-time.Hour), All: []monitoring.StageReport{
			{Stage: "deliver", Sink: "kafka", BusySeconds: 123.4, BusyMinute: new(.954)}, {Stage: "decode", BusySeconds: .0021},
		}},
		Sinks: []admin.ReportSink{
			{
				Name: "kafka", Configured: true, Objective: &admin.ReportObjective{WithinSeconds: 1, Percent: 99.9}, Period: hour, Met: new(false),
				Budget:    &admin.ReportBudget{Events: 1000, Late: 10, Left: -9, BurnHour: 100, BurnSixHours: 1.5, BurnDay: .25},
				Trend:     admin.ReportTrend{Hour: admin.ReportHour{Start: at.Add(-2 * time.Hour).Truncate(time.Hour), ReportPeriod: hour}},
				Died:      new(int64(3)),
				Dead:      new(int64(10)),
				Condition: "away", Since: &at, DeadAtLeast: true,
			},
			{Name: "old", Period: admin.ReportPeriod{Events: 1, InTime: 1, Percent: new(100.0), P50: new(.5), P99: new(.5), Worst: new(.5)}, Died: new(int64(0)), Dead: new(int64(0))},
		},
		WorstHours: []admin.ReportHour{{Sink: "kafka", Start: at.Truncate(time.Hour), ReportPeriod: hour}},
		Failures: []admin.ReportFailures{
			{Sink: "kafka", From: at.Add(-time.Hour), Until: at, Tries: 60, Outage: new(true), Minutes: 59, LastError: "dial | refused\n"},
			{Sink: "kafka", From: at.Add(-time.Hour), Until: at, Tries: 60, Outage: new(false), Minutes: 59, AcceptedMinutes: 50, LastError: "400"},
			{Sink: "kafka", From: at, Until: at, Tries: 1, LastError: "500"},
		},
	}
	const want = `Report of shop�, 2026-11-27 14:00 to 2026-11-28 14:23 UTC

OBJECTIVES
SINK   OBJECTIVE             EVENTS  IN-TIME  P50    P99    WORST  MET
kafka  99.9% within 1s       100     90%      2.1ms  2.95s  2m3s   NO
old    none: not configured  1       100%     500ms  500ms  500ms  -

ERROR BUDGET OF 28 DAYS
SINK   EVENTS  LATE  LEFT     BURN-1H  BURN-6H  BURN-24H
kafka  1000    10    -900.0%  100      1.5      0.25

TREND
The last whole hour, the one before, and the same one of the day before.
SINK   HOUR              EVENTS  IN-TIME  P50    P99    WORST
kafka  2026-11-28 12:00  100     90%      2.1ms  2.95s  2m3s
kafka  0001-01-01 00:00  0       -        -      -      -
kafka  0001-01-01 00:00  0       -        -      -      -

WORST HOURS
SINK   HOUR              LATE  EVENTS  IN-TIME  P50    P99    WORST
kafka  2026-11-28 14:00  10    100     90%      2.1ms  2.95s  2m3s

FAILED TRIES
kafka is away since 2026-11-28 14:23:00.
SINK   FROM                 TO                   TRIES  OUTAGE                           LAST-ERROR
kafka  2026-11-28 13:23:00  2026-11-28 14:23:00  60     yes, nothing was accepted        dial | refused
kafka  2026-11-28 13:23:00  2026-11-28 14:23:00  60     no, accepted in 50 of 59 minutes  400
kafka  2026-11-28 14:23:00  2026-11-28 14:23:00  1      too short to tell                500

DEAD LETTERS
SINK   DIED  WAIT-FOR-A-PERSON
kafka  3     at least 10
none   2     -

SLOWEST STAGES
Of the instance that streams, pid 7 on one, since it began at 2026-11-28 13:23:00.
STAGE    SINK   BUSY   OF-THE-LAST-MINUTE
deliver  kafka  2m3s   95.4%
decode   -      2.1ms  -

NOT KNOWN
WHAT
something, for a reason
`
	squeeze := func(s string) string {
		var lines []string
		for line := range strings.Lines(s) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(lines, "\n")
	}
	if diff := cmp.Diff(squeeze(want), squeeze(reportText(&r))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	page := reportMarkdown(&r)
	for _, part := range []string{
		"# Report of shop�, 2026-11-27 14:00 to 2026-11-28 14:23 UTC\n", "\n## Worst hours\n\n| sink | hour | late | events | in-time | p50 | p99 | worst |\n| --- |",
		`| kafka | 2026-11-28 13:23:00 | 2026-11-28 14:23:00 | 60 | yes, nothing was accepted | dial \| refused  |`,
	} {
		if !strings.Contains(page, part) {
			t.Errorf("the page lacks %q:\n%s", part, page)
		}
	}
}
