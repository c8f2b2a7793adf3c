package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

func TestParseBacklog(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 6, 7, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]provision.Backlog{
		"":                       {},
		"none":                   {None: true},
		"all":                    {Some: true},
		"since:7d":               {Some: true, Since: time.Date(2024, 5, 31, 12, 0, 0, 0, time.UTC)},
		"since:6d12h":            {Some: true, Since: time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC)},
		"since:36h":              {Some: true, Since: time.Date(2024, 6, 6, 0, 0, 0, 0, time.UTC)},
		"since:2024-05-31":       {Some: true, Since: time.Date(2024, 5, 31, 0, 0, 0, 0, time.UTC)},
		"where:a = 'b:c' or d":   {Some: true, Where: "a = 'b:c' or d"},
		"since:2024-05-31T08:00": {Some: true, Since: time.Date(2024, 5, 31, 8, 0, 0, 0, time.UTC)},
	} {
		got, err := parseBacklog(text, now)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v %s", text, err, diff)
		}
	}
	for text, want := range map[string]string{
		"some": `no backlog "some"; write all, none, since:<time> or where:<SQL condition>`, "since:": "write all, none", "where:": "write all, none",
		"where: ": "write all, none", "all:": "write all, none", "since:soon": "--backlog since: \"soon\" is no time",
	} {
		if _, err := parseBacklog(text, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A job is filed for each sink. So what is wrong with sinks or routes is told, and not only warned of: nobody would see why there are no sinks.
func TestBacklogOfMistakenSinks(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	text := "source: {dsn: postgres://127.0.0.1:1/d}\nsinks: [{name: a, type: stdout}]\nroutes: [{sinks: [b]}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, backlog := range []string{"all", "since:1d", "where:true"} {
		if got := command(t, nil, "init", "--config", file, "--backlog", backlog); got.code != exitcode.Config || !strings.Contains(got.stderr, `"b" is no sink`) {
			t.Errorf("--backlog %s: exit code %d, %s", backlog, got.code, got.stderr)
		}
	}
	if got := command(t, nil, "init", "--config", file, "--backlog", "none"); got.code != exitcode.Unavailable || !strings.Contains(got.stderr, `warning: `) {
		t.Errorf("--backlog none: exit code %d, %s", got.code, got.stderr)
	}
}

// The help shows the form of the value.
func TestBacklogHelp(t *testing.T) {
	t.Parallel()
	if got := command(t, nil, "init", "--help"); !strings.Contains(got.stdout, "--backlog all|none|since:TIME|where:CONDITION  ") {
		t.Error(got.stdout)
	}
}

func TestResyncUsage(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		`no backlog "all"`:                      {"resync", "--backlog", "all"},
		`--parked "all" is neither keep nor`:    {"resync", "--parked", "all"},
		"asks before it changes anything":       {"resync"},
		"no timeout 0s":                         {"resync", "--timeout", "0s"},
		`--parked "x" is neither keep nor disc`: {"init", "--parked", "x"},
		`no backlog "x"`:                        {"init", "--backlog", "x"},
		"no output format":                      {"backlog", "-o", "yaml"},
	} {
		if r := command(t, nil, args...); r.code != exitcode.Usage || !strings.Contains(r.stderr, want) {
			t.Errorf("%q: exit code %d, %s", args, r.code, r.stderr)
		}
	}
}

func TestJobText(t *testing.T) {
	t.Parallel()
	var w admin.BacklogWatch
	at := time.Date(2024, 6, 7, 12, 0, 0, 0, time.UTC)
	look := func(after time.Duration, walked int64) admin.BacklogJob {
		jobs := []admin.BacklogJob{{ID: 1, Sink: "events", Estimate: 1000, Walked: walked}}
		w.Add(at.Add(after), jobs)
		return jobs[0]
	}
	for _, test := range []struct {
		after  time.Duration
		walked int64
		want   string
	}{
		{0, 0, "[........................] 0 %: 0 of about 1000 rows compared"},
		{time.Second, 100, "[##......................] 10 %: 100 of about 1000 rows compared, 100 a second, about 9s left"},
		{10 * time.Second, 500, "[############............] 50 %: 500 of about 1000 rows compared, 44 a second, about 11s left"},
		{40 * time.Second, 500, "[############............] 50 %: 500 of about 1000 rows compared, 13 a second, about 38s left"},
		{110 * time.Second, 500, "[############............] 50 %: 500 of about 1000 rows compared, 0 a second"},
		{111 * time.Second, 1510, "[#######################.] 99 %: 1510 of about 1000 rows compared, 10 a second"},
	} {
		j := look(test.after, test.walked)
		if got := barText(j) + " " + jobText(j); got != test.want {
			t.Errorf("after %s: %s; want %s", test.after, got, test.want)
		}
	}
	unknown := admin.BacklogJob{Walked: 7}
	if got := barText(unknown) + " " + jobText(unknown); got != "[????????????????????????] 7 rows compared" {
		t.Error(got)
	}
	if got := jobText(admin.BacklogJob{Walked: 7, Parked: 2, Estimate: 9, Finished: at}); got != "finished at 2024-06-07T12:00:00Z: 7 rows compared, 2 were missing" {
		t.Error(got)
	}
}
