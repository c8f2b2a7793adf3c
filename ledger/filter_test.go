package ledger_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// The condition of an init that fails later is named, with a statement that puts another one in its place. Rows from after the init are not
// asked whether they satisfy it.
func TestFilterThatFails(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWalking(t)
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, tenant_id, created_at) values ('order', '1', 'made', '{}', '5', '2026-01-02'), ('order', '2', 'made', '{}', 'x', '2026-01-03')")
	w.checkpointAt(checkpoint.Position{LSN: 1, Index: -1})
	s := ledger.Schema("public")
	walk := w.open(ownWalk, 1<<20)
	cursor, err := walk.Begin(ctx, w.conn)
	if err != nil {
		t.Fatal(err)
	}
	verify, err := s.OpenVerify(ctx, w.conn, ownTable)
	if err != nil {
		t.Fatal(err)
	}
	witness, err := s.ReadWitness(ctx, w.conn)
	if err != nil {
		t.Fatal(err)
	}
	compare := func(where string, until time.Time) error {
		q := ledger.VerifyQuery{Slot: "s", Processors: []int32{7}, Witness: witness, Filters: []string{"true", where}, FilteredUntil: until}
		_, err := verify.CompareAll(ctx, w.conn, q, func(*ledger.VerifyPoint, *ledger.Unknown) error { return nil })
		return err
	}
	job := ledger.Job{ID: 1, NewJob: ledger.NewJob{Processor: 7, Reason: ledger.JobOfInit}}
	for where, says := range map[string]string{
		"gone = 'it''s'":                 `column "gone" does not exist`,
		"tenant_id::int > 3 -- the last": `invalid input syntax for type integer: "x"`,
	} {
		job.Filter.Where = where
		if err := pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error { return s.FileJobs(ctx, tx, []ledger.NewJob{job.NewJob}) }); err != nil {
			t.Fatal(err)
		}
		failed, ok := errors.AsType[*ledger.FilterError](compare(where, time.Time{}))
		if !ok || !strings.Contains(failed.Error(), says) {
			t.Fatalf("verify: %v", failed)
		}
		_, err := walk.Read(ctx, w.conn, ledger.WalkQuery{Cursor: cursor, Filter: job.Filter, MaxRows: 9, MaxBytes: 1 << 20})
		if failed, ok = errors.AsType[*ledger.FilterError](err); !ok || !strings.Contains(failed.Error(), says) {
			t.Fatalf("a job: %v", err)
		}
		_, rest, _ := strings.Cut(failed.Error(), "in its place: ")
		remedy, _, _ := strings.Cut(rest, "; see ")
		w.exec(strings.Replace(remedy, "<condition>", "tenant_id = ''5''", 1))
		own, _, err := s.Filters(ctx, w.conn, &job)
		if err != nil || own.Where != "tenant_id = '5'" {
			t.Fatalf("after %s: %q, %v", remedy, own.Where, err)
		}
		job.ID++
	}
	if err := compare("tenant_id::int > 3", time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Errorf("a row from after the init was asked: %v", err)
	}
	// Other errors stay what they are.
	w.exec("alter table event_outbox rename to other")
	if err := compare("true", time.Time{}); err == nil || errors.As(err, new(*ledger.FilterError)) {
		t.Errorf("without the table: %v", err)
	}
}
