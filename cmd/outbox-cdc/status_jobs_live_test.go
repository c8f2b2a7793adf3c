package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// While a job is half-way, the command and the page /status show how far it is. Afterwards neither shows a job.
func TestStatusOfAJob(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	slot, address := db.Slot(t), freeAddress(t)
	environ := func(listen string) []string {
		return []string{
			"DATABASE_URL=" + db.DSN, "OUTBOX_SLOT=" + slot, "OUTBOX_PUBLICATION=" + slot, "OUTBOX_PUBLISHER_TYPE=stdout", "OUTBOX_LISTEN=" + listen,
		}
	}
	conn := db.Conn(t)
	pgtest.Exec(t, conn, `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
		select 'order', i::text, 'made', '{}', now() - interval '1 h' + i * interval '1 ms' from generate_series(1, 12000) i`)
	if got := command(t, environ("off"), "init", "--backlog", "all"); got.code != exitcode.OK {
		t.Fatal(got)
	}
	// The job parks five of the first 5000 rows, and then waits for the lock. Of the others it parks none.
	pgtest.Exec(t, conn, "select pg_advisory_lock(24)")
	pgtest.Exec(t, conn, `update outbox_backlog set filter = jsonb_build_object('where', 'case when aggregate_id::int <= 5000 then aggregate_id::int % 1000 = 0
		else set_config(''lock_timeout'', ''0'', true) is null or pg_advisory_xact_lock_shared(24) is null end')`)
	var log lockedBuffer
	defer func() {
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	stop := beside(t, environ(address), &log, "run")
	until := func(what string, ok func(*admin.Status) bool) *admin.Status {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; {
			s := &admin.Status{}
			got := command(t, environ("off"), "status", "-o", "json")
			if err := json.Unmarshal([]byte(got.stdout), s); err != nil || got.code != exitcode.OK {
				t.Fatal(err, got)
			}
			if ok(s) {
				return s
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within a minute:\n%s", what, got.stdout)
			}
		}
	}
	page := func() string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("/status: %d, %v", resp.StatusCode, err)
		}
		return strings.ReplaceAll(string(text), " ", "")
	}
	half := until("a job that is half-way", func(s *admin.Status) bool {
		b := s.Sinks[0].Backlog
		return b != nil && b.Walked == 5000 && b.Rate != nil
	}).Sinks[0].Backlog
	if half.Reason != "init" || half.Parked != 5 || half.Left == nil || *half.Left != 7000 || *half.Rate <= 0 || half.WaitsFor != "" {
		t.Errorf("%+v", half)
	}
	if text := command(t, environ("off"), "status").stdout; !strings.Contains(text, "BACKLOG ") || !strings.Contains(text, "7,000") {
		t.Errorf("the screen:\n%s", text)
	}
	if text := page(); !strings.Contains(text, `"walked":5000`) || !strings.Contains(text, `"rows_left":7000`) || !strings.Contains(text, `"rows_per_second":`) {
		t.Errorf("/status: %s", text)
	}
	pgtest.Exec(t, conn, "select pg_advisory_unlock(24)")
	until("no job", func(s *admin.Status) bool { return s.Sinks[0].Backlog == nil })
	if text := command(t, environ("off"), "status").stdout; strings.Contains(text, "BACKLOG ") {
		t.Errorf("the screen:\n%s", text)
	}
	if text := page(); strings.Contains(text, `"backlog":`) {
		t.Errorf("/status: %s", text)
	}
	if code := stop(); code != exitcode.OK {
		t.Errorf("run has ended with %d", code)
	}
}
