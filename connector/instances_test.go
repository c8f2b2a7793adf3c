package connector

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// instance returns the one instance that others find, or the zero Instance if they find none.
func (b *connectorBench) instance() ledger.Instance {
	b.t.Helper()
	all, err := ledger.Schema("public").Instances(context.Background(), b.conn, b.cfg.Source.Slot)
	if err != nil {
		b.t.Fatal(err)
	}
	if len(all) > 1 {
		b.t.Fatalf("%+v", all)
	}
	if len(all) == 0 {
		return ledger.Instance{}
	}
	return all[0]
}

// Others find a process that streams, one that stands by, and one whose sessions fail, until it ends.
func TestOthersFindThisProcess(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.cfg.HTTP = ":9640"
	this := ledger.ThisProcess(b.cfg.Source.Slot)
	this.HTTP = ":9640"
	r := b.run()
	b.waitFor("a leader that others find", func() bool { return b.instance().Leader && b.instance().PID == this.PID })
	const streams = "select application_name from pg_stat_activity a join pg_replication_slots s on s.active_pid = a.pid where slot_name = "
	if name := b.query(streams + "'" + b.cfg.Source.Slot + "'"); name != this.ApplicationName() {
		t.Errorf("the stream is of %q", name)
	}

	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if i := b.instance(); !i.IsOn(host) || !slices.Contains(i.StatusAddresses(host), "localhost:9640") {
		t.Errorf("%+v is not found on %s", i, host)
	}

	// Sessions fail while somebody has locked the checkpoint.
	locker, err := pgx.Connect(t.Context(), b.cfg.Source.DSN) // a transaction of b.conn would see pg_stat_activity as it was
	if err != nil {
		t.Fatal(err)
	}
	defer locker.Close(context.Background())
	pgtest.Exec(t, locker, "begin", "lock table outbox_checkpoints in exclusive mode")
	b.exec("select pg_terminate_backend(recorder_pid), pg_terminate_backend(active_pid) from outbox_checkpoints join pg_replication_slots using (slot_name)")
	sessions := map[string]bool{}
	found := time.Now() // for the last time; a connection is made anew after each session that has failed
	for began := time.Now(); time.Since(began) < 8*time.Second; b.exec("select pg_sleep(0.05)") {
		st := r.connector.Status()
		sessions[st.LastErrorAt.String()] = true
		if b.instance().PID == this.PID {
			found = time.Now()
		}
		if time.Since(found) > 3*time.Second {
			t.Fatalf("a process without a session is not found: %+v, %s", b.instance(), st.LastError)
		}
	}
	if len(sessions) < 3 {
		t.Errorf("only %d sessions have failed: %s", len(sessions), r.connector.Status().LastError)
	}
	pgtest.Exec(t, locker, "rollback")
	b.waitFor("a leader that others find again", func() bool { return b.instance().Leader && r.connector.Status().Streaming })
	r.stop()
	b.waitFor("the end", func() bool { return b.instance().PID == 0 })
}
