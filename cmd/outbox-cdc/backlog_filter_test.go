package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// A column is dropped that the condition of "init --backlog where:…" names. Job and verify fail and name a statement. It puts another
// condition in the place of that one, and both go on by themselves.
func TestAFilterWhoseColumnIsDropped(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	slot, file := db.Slot(t), filepath.Join(t.TempDir(), "outbox.yaml")
	text := "source: {dsn: '" + db.DSN + "', slot: " + slot + ", publication: " + slot + ", table: public.own_outbox}\nsinks: [{name: log, type: stdout}]\nhttp: {listen: '" + freeAddress(t) + "'}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	conn := db.Conn(t)
	pgtest.Exec(t, conn, "create table own_outbox (like event_outbox including all, region text)",
		`insert into own_outbox (aggregate_type, aggregate_id, event_type, payload, region)
			select 'order', n, 'made', '{}', case when n % 2 = 0 then 'eu' else 'us' end from generate_series(1, 10) n`)
	if got := command(t, nil, "init", "--config", file, "--backlog", "where:region = 'eu'"); got.code != exitcode.OK {
		t.Fatal(got)
	}
	pgtest.Exec(t, conn, "alter table own_outbox drop column region")
	var log lockedBuffer
	stop := beside(t, nil, &log, "run", "--config", file)
	defer func() {
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	until := func(what string, ok func(text string) bool, args ...string) {
		t.Helper()
		var got outcome
		for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
			if got = command(t, nil, append(args, "--config", file)...); ok(got.stdout + got.stderr) {
				return
			}
		}
		t.Fatalf("%s: not within a minute: %+v", what, got)
	}
	var remedy string
	got := command(t, nil, "verify", "--config", file)
	if _, rest, found := strings.Cut(got.stderr, "in its place: "); got.code != exitcode.Config || !found {
		t.Fatalf("verify: %+v", got)
	} else {
		remedy, _, _ = strings.Cut(rest, "; see ")
	}
	until("what to do", func(text string) bool {
		text = strings.Join(strings.Fields(text), " ")
		return strings.Contains(text, ": degraded ") && strings.Contains(text, "backlog of log of the instance that streams: ") && strings.Contains(text, "write another condition in its place")
	}, "status")
	pgtest.Exec(t, conn, strings.Replace(remedy, "<condition>", "aggregate_id in (''3'', ''4'')", 1))
	until("the end of the job", func(text string) bool { return strings.Contains(text, "10 rows compared, 2 were missing") }, "backlog")
	until("verify", func(text string) bool { return strings.Contains(text, "log   0        0        0") }, "verify")
	until("nothing to do", func(text string) bool { return strings.Contains(text, ": ok ") }, "status")
	if code := stop(); code != exitcode.OK {
		t.Errorf("run has ended with %d", code)
	}
}
