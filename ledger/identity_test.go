package ledger_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// A session moves the checkpoint and files jobs in one transaction, as long as no other session has taken over.
func TestContinue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn := db.Conn(t)
	schema := ledger.Schema("public")
	pgtest.Exec(t, conn, `insert into outbox_checkpoints (slot_name, state, system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn, epoch)
		values ('s', 'ready', '7', 1, '0/64', 2, '0/6E', 4)`)
	read := func() ledger.Checkpoint {
		t.Helper()
		c, err := schema.ReadCheckpoint(t.Context(), conn, "s")
		if err != nil || c == nil {
			t.Fatal(c, err)
		}
		return *c
	}
	before := read()
	next := ledger.Continuation{
		Identity:  ledger.Identity{SystemIdentifier: "7", Timeline: 2, DatabaseOID: 4_000_000_000, DatabaseName: "shop", Hosts: "a:1,b:1"},
		Prefix:    checkpoint.Position{LSN: 200, Index: -1},
		Confirmed: 200,
		Jobs:      []ledger.NewJob{{Processor: 1, Reason: ledger.JobOfReconcile, Base: before.Prefix, Start: 200}},
	}
	if err := schema.Continue(t.Context(), conn, "s", 3, next); !errors.Is(err, checkpoint.ErrFenced) {
		t.Errorf("a session that was taken over: %v, want %v", err, checkpoint.ErrFenced)
	}
	if after := read(); !reflect.DeepEqual(after, before) {
		t.Errorf("a session that was taken over has changed the checkpoint to %+v", after)
	}
	if err := schema.Continue(t.Context(), conn, "s", 4, next); err != nil {
		t.Fatal(err)
	}
	after := read()
	if after.Identity != next.Identity || after.Prefix != next.Prefix || after.Confirmed != next.Confirmed || after.Epoch != 4 {
		t.Errorf("the checkpoint is %+v", after)
	}
	jobs, err := schema.UnfinishedJobs(t.Context(), conn, []int32{1})
	if err != nil || len(jobs) != 1 || jobs[0].Base != before.Prefix || jobs[0].Start != 200 || jobs[0].SnapshotXmax == 0 {
		t.Errorf("jobs %+v, %v", jobs, err)
	}
}
