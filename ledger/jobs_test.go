package ledger_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// A job that replaces an unfinished one still finds what that one would have found.
func TestFileJobs(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := pgtest.New(t)
	conn, err := pgx.Connect(ctx, db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) })
	schema := ledger.Schema("public")
	file := func(jobs ...ledger.NewJob) {
		t.Helper()
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return schema.FileJobs(ctx, tx, jobs) })
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...ledger.Job) {
		t.Helper()
		got, err := schema.UnfinishedJobs(ctx, conn, []int32{1, 2})
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(ledger.Job{}, "Filed"), cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Fatalf("%v %s", err, diff)
		}
	}
	first := ledger.NewJob{Processor: 1, Reason: ledger.JobOfInit, Start: 0x100, SnapshotXmax: 1 << 40, Estimate: 7}
	some := ledger.NewJob{Processor: 2, Reason: ledger.JobOfInit, Start: 0x100, Filter: ledger.JobFilter{Where: "tenant_id = 'a'"}}
	file(first, some)
	check(ledger.Job{ID: 1, NewJob: first}, ledger.Job{ID: 2, NewJob: some})

	later := ledger.NewJob{Processor: 1, Reason: ledger.JobOfResync, Base: checkpoint.Position{LSN: 0x200, Index: 3}, Start: 0x300}
	other := ledger.NewJob{Processor: 2, Reason: ledger.JobOfResync, Base: checkpoint.Position{LSN: 0x200, Index: 3}, Start: 0x300}
	file(later, other)
	later.Base, other.Base = checkpoint.Position{}, checkpoint.Position{}
	later.Start, other.Start = 0x100, 0x100
	check(ledger.Job{ID: 3, NewJob: later}, ledger.Job{ID: 4, NewJob: other})

	// What the last init has left out stays so for every later job.
	wantLeftOut := func(job int64, processor int32, want string) {
		t.Helper()
		_, l, err := schema.Filters(ctx, conn, &ledger.Job{ID: job, NewJob: ledger.NewJob{Processor: processor}})
		age := time.Since(l.Before)
		if err != nil || l.Filter.Where != want || want != "" && (age < 50*time.Minute || age > 90*time.Minute) {
			t.Errorf("job %d: %+v %v, want %q", job, l, err, want)
		}
	}
	wantLeftOut(1, 1, "")
	wantLeftOut(3, 1, "")
	wantLeftOut(2, 2, "")
	wantLeftOut(4, 2, "tenant_id = 'a'")
	again := ledger.NewJob{Processor: 2, Reason: ledger.JobOfInit, Start: 0x400, Filter: ledger.JobFilter{Where: "tenant_id = 'b'"}}
	file(again)
	again.Start = 0x100
	check(ledger.Job{ID: 3, NewJob: later}, ledger.Job{ID: 5, NewJob: again})
	wantLeftOut(5, 2, "")
	file(other)
	wantLeftOut(6, 2, "tenant_id = 'b'")
}
