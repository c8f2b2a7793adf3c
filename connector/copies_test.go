package connector

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// at returns a bench like b over a copy of its database, with a sink of its own that accepts everything.
func (b *connectorBench) at(server *servers.Postgres) *connectorBench {
	b.t.Helper()
	b.t.Cleanup(func() {
		if err := server.Close(); err != nil {
			b.t.Error(err)
		}
	})
	dsn := server.DSN("postgres")
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	c := &connectorBench{t: b.t, conn: conn, cfg: b.cfg}
	c.cfg.Source.DSN, c.cfg.Source.ReplicationDSN = dsn, dsn
	c.cfg.Sinks = []Sink{b.cfg.Sinks[0]}
	c.setSink(func(context.Context, []sinks.Message) []error { return nil })
	return c
}

// What starts on a copy of a database delivers nothing of what its original owes. The original has one event parked, and one that nobody
// has read yet.
func TestCopiesDeliverNothing(t *testing.T) {
	t.Parallel()
	settings := servers.NoSync()
	settings["wal_keep_size"] = "256MB"
	original := pgtest.Start(t, servers.PostgresOptions{Settings: settings})
	db := &pgtest.Database{Name: "postgres", DSN: original.DSN("postgres")}
	if err := migrations.Apply(t.Context(), db.DSN, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	b := newConnectorBenchIn(t, db)
	b.cfg.Delivery.MaxRetries, b.cfg.Delivery.ParkAfter = 1000, 100*time.Millisecond
	b.answerByType(func(eventType string) error {
		if eventType == "owed" {
			return sinks.ErrUnavailable
		}
		return nil
	})
	r := b.run()
	b.event("a", "one")
	b.event("b", "owed")
	b.eventually("select count(*) from outbox_parked", "1")
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "1")
	r.stop()
	b.event("c", "unread")

	backup, err := servers.RestoreBackup(t.Context(), original, nil)
	if err != nil {
		t.Fatal(err)
	}
	copied := b.at(backup)
	const remedy = `run "outbox-cdc resync --backlog none --parked discard"`
	copied.run().wantRefusal(exitcode.SlotLost, "reached by "+hostsOf(copied)+": it was restored, or promoted")
	copied.run().wantRefusal(exitcode.SlotLost, remedy)
	_, err = provision.Resync(t.Context(), provision.ResyncConfig{SetupConfig: provision.SetupConfig{
		Source: copied.cfg.Source.provision(), DSN: copied.cfg.Source.DSN, ReplicationDSN: copied.cfg.Source.DSN, Connector: copied.cfg.Name,
		Processors: []ledger.Processor{{Name: "s", Type: "test"}}, Backlog: provision.Backlog{None: true}, Parked: provision.ParkedDiscard,
	}})
	if err != nil {
		t.Fatal(err)
	}
	r = copied.run()
	copied.event("a", "of the copy")
	copied.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "2")
	r.stop()
	if got := copied.received(); got != "of the copy" {
		t.Errorf("the restored backup delivered %q", got)
	}

	replica, err := servers.StartReplica(t.Context(), original, nil)
	if err != nil {
		t.Fatal(err)
	}
	standby := b.at(replica)
	standby.run().wantRefusal(exitcode.Config, "the server is a standby") // not that its slot is lost
	if got := standby.received(); got != "" {
		t.Errorf("the standby delivered %q", got)
	}

	// Nobody can tell a copy of the server's files from a server that has moved. The connector says both, and goes on.
	if err := original.Stop(t.Context(), servers.Fast); err != nil {
		t.Fatal(err)
	}
	files, err := servers.CopyFiles(t.Context(), original)
	if err != nil {
		t.Fatal(err)
	}
	moved := b.at(files)
	log := moved.keepLog()
	r = moved.run()
	moved.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "3")
	r.stop()
	if text := log.String(); strings.Count(text, "it has moved, or it is a copy") != 1 || !strings.Contains(text, hostsOf(moved)) {
		t.Errorf("log:\n%s", text)
	}
}

// hostsOf returns the hosts of a bench's server as messages name them.
func hostsOf(b *connectorBench) string { return b.cfg.Source.provision().Hosts }
