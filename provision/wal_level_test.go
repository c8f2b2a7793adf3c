package provision

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// By the documentation of PostgreSQL 19, which is not among the servers of these tests: a server with wal_level = replica decodes as long as
// there is a logical slot, and the first one raises effective_wal_level.
func TestWALLevels(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		configured, effective string
		refused               string
		raises                bool
	}{
		{configured: "logical"}, // 14 to 18
		{configured: "replica", refused: "wal_level is replica, which leaves out what is needed; set wal_level = logical"},
		{configured: "minimal", refused: "wal_level is minimal, which leaves out what is needed; set wal_level = logical"},
		{configured: "logical", effective: "logical"}, // 19
		{configured: "replica", effective: "logical"},
		{configured: "replica", effective: "replica", raises: true},
		{configured: "minimal", effective: "minimal", refused: "set wal_level = replica or logical", raises: true},
	} {
		w := walLevels{c.configured, c.effective}
		var p problems
		w.check(&p)
		if c.refused != "" {
			exitcodetest.Want(t, p.join(), exitcode.Config, c.refused)
		} else if len(p) > 0 {
			t.Errorf("%+v: %v", w, p)
		}
		if got := w.raises(); got != c.raises {
			t.Errorf("%+v: raises = %t", w, got)
		}
	}
}

func TestRaisingSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	sleeper, err := pgx.Connect(t.Context(), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer sleeper.Close(context.Background())
	pid := sleeper.PgConn().PID()
	sleeper.PgConn().Exec(t.Context(), "select pg_sleep(60)") // its result is never read
	pgtest.WaitTrue(t, o.dsn, "select exists (select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database())")
	got, err := raising(t.Context(), o.conn, pid)
	if err != nil || len(got) != 1 {
		t.Fatalf("raising = %v, %v", got, err)
	}
	for _, want := range []string{"may take a checkpoint", "(it waits for Timeout: PgSleep)"} {
		if text := got[0].String(); !strings.Contains(text, want) {
			t.Errorf("%q does not contain %q", text, want)
		}
	}
	if got, err := raising(t.Context(), o.conn, 1<<30); err != nil || len(got) > 0 {
		t.Errorf("raising of no process = %v, %v", got, err)
	}
}
