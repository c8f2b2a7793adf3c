package provision

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

func TestDestroy(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	cfg := DestroyConfig{Source: o.cfg.Source, DSN: o.dsn, ReplicationDSN: o.dsn}
	// It is refused while somebody streams.
	repl, err := connectReplication(pgtest.Context(t), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	err = pglogrepl.StartReplication(pgtest.Context(t), repl, o.cfg.Slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'outbox_cdc'"},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Destroy(pgtest.Context(t), cfg)
	if !errors.Is(err, replication.ErrSlotInUse) || !strings.Contains(err.Error(), `application "outbox-cdc"`) || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("%v", err)
	}
	_ = repl.Close(pgtest.Context(t))
	waitUntil(t, func() bool {
		return o.text("select active::text from pg_replication_slots where slot_name = $1", o.cfg.Slot) == "false"
	})

	r, err := Destroy(pgtest.Context(t), cfg)
	if diff := cmp.Diff(DestroyResult{SlotDropped: true, PublicationDropped: true, CheckpointDeleted: true}, r); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if o.slot() != "none" || o.checkpoint() != "none" || o.text("select count(*)::text from pg_publication") != "0" {
		t.Error("something was left")
	}
	r, err = Destroy(pgtest.Context(t), cfg)
	if diff := cmp.Diff(DestroyResult{}, r); diff != "" || err != nil {
		t.Errorf("again: %v %s", err, diff)
	}
	o.exec("select pg_create_logical_replication_slot('SLOT', 'pgoutput')")
	_, err = Destroy(pgtest.Context(t), cfg)
	exitcodetest.Want(t, err, exitcode.SlotLost, "was not made by")

	other := newSetup(t)
	cfg.DSN, cfg.ReplicationDSN = other.dsn, other.dsn // but the slot is in the first database
	_, err = Destroy(pgtest.Context(t), cfg)
	exitcodetest.Want(t, err, exitcode.SlotLost, "belongs to database", "source.dsn")
	if strings.Contains(err.Error(), "pg_drop_replication_slot") {
		t.Errorf("advises to drop another database's slot: %v", err)
	}
}
