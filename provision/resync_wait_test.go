package provision

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// Resync that is called by hand does not wait for another one, but it waits for a table: as long as it was told to, and then it says for whom.
func TestResyncWaitsForATable(t *testing.T) {
	t.Parallel()
	o := newLost(t)
	other, err := pgx.Connect(pgtest.Context(t), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(pgtest.Context(t))
	hold := func() {
		t.Helper()
		if _, err := other.Exec(pgtest.Context(t), "begin; set application_name = 'somebody'; lock table outbox_checkpoints in access exclusive mode"); err != nil {
			t.Fatal(err)
		}
	}
	release := func() {
		if _, err := other.Exec(pgtest.Context(t), "rollback"); err != nil {
			t.Error(err)
		}
	}
	hold()
	cfg := ResyncConfig{SetupConfig: o.cfg}
	cfg.Timeout = time.Second
	slot := o.slot()
	began := time.Now()
	_, err = Resync(pgtest.Context(t), cfg)
	exitcodetest.Want(t, err, exitcode.Failure, "another session holds the lock of a table", `application "somebody"`, "AccessExclusiveLock of public.outbox_checkpoints", "select pg_terminate_backend(")
	if took := time.Since(began); took < cfg.Timeout {
		t.Errorf("it has waited for %s", took)
	}
	release()
	if o.slot() != slot || !strings.HasPrefix(o.checkpoint(), "ready 0/10/5 ") {
		t.Errorf("something has changed: %s, %s", o.slot(), o.checkpoint())
	}
	hold()
	waits := make(chan error, 1)
	cfg.Timeout = time.Minute
	go func() {
		_, err := Resync(pgtest.Context(t), cfg)
		waits <- err
	}()
	waitUntil(t, func() bool {
		return o.text("select count(*)::text from pg_locks where not granted and relation = 'outbox_checkpoints'::regclass") != "0"
	})
	release()
	if err := <-waits; err != nil {
		t.Error(err)
	}
}
