package connector

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// While instances are brought up to date one after the other, those of the version before go on with the ledger of the later one, also
// through the loss of their connections. They cannot be started on it.
func TestNewerLedger(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	log := b.keepLog()
	r := b.run()
	b.event("a", "1")
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "1")
	b.exec("insert into outbox_migrations (version_id, is_applied) values (11, true)")
	for _, n := range []string{"2", "3"} {
		b.exec("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
		b.event("a", n)
		b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", n)
	}
	r.stop()
	const text = "a later version has applied migration 11"
	if got := log.String(); strings.Count(got, text) != 1 || !strings.Contains(got, "level=WARN") {
		t.Errorf("want one warning with %q in the log:\n%s", text, got)
	}
	b.event("a", "4")
	b.run().wantExit(exitcode.Config, text)
	if got := b.query("select count(*) from outbox_delivery_log where status = 'delivered'"); got != "3" {
		t.Errorf("%s delivered, want 3", got)
	}
}
