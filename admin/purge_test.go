package admin

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

const left = `select coalesce(string_agg(concat(processor_id, ':', commit_lsn), ' ' order by processor_id, commit_lsn), '') from outbox_parked`

// What counts is when a dead letter has died last, as the log says, and when it was parked if the log says nothing.
func TestPurgeDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ago := func(days int) string { return fmt.Sprintf("parked_at = now() - interval '%d days'", days) }
	died := func(processor, n, days int) {
		t.Helper()
		w.exec(fmt.Sprintf("select outbox_make_partitions(now() - interval '%d days', 1)", days),
			fmt.Sprintf(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
				values ('%s', %d, 4, 'dead', now() - interval '%d days', '0/%X', 0, 7)`, eventID(n), processor, days, n))
	}
	w.park(1, 1, "dead", ago(40)) // its log is gone
	w.park(1, 2, "dead", ago(40)) // died at once
	died(1, 2, 40)
	w.park(1, 3, "dead", ago(40)) // was tried for long
	died(1, 3, 20)
	w.park(1, 4, "dead", ago(40)) // was retried by a person
	died(1, 4, 40)
	died(1, 4, 1)
	w.park(1, 5, "dead", ago(20))
	w.park(1, 6, "parked", ago(40)) // waits for its destination
	w.park(2, 7, "dead", ago(35))
	w.park(2, 2, "dead", ago(36)) // the same event as of sink a, where it died at another time
	died(2, 2, 2)
	w.park(3, 8, "dead", ago(40)) // of another connector
	w.park(0, 9, "dead", ago(50)+", event_id = null, event = '{}'")
	w.park(0, 10, "dead", ago(1)+", event_id = null, event = '{}'")

	ctx := pgtest.Context(t)
	before := w.text(left)
	o := PurgeOptions{OlderThan: 30 * 24 * time.Hour, DryRun: true, Confirm: func(PurgeResult) error {
		t.Error("a dry run asks")
		return nil
	}}
	got, err := PurgeDeadLetters(ctx, w.admin, o)
	want := PurgeResult{
		DryRun: true, Matched: 4, Younger: 5, ByParkedAt: 2,
		Sinks: []SinkRows{{Sink: noSink, Rows: 1}, {Sink: "a", Rows: 2}, {Sink: "b", Rows: 1}},
	}
	ignored := cmpopts.IgnoreFields(PurgeResult{}, "Before", "Oldest")
	if diff := cmp.Diff(want, got, ignored); diff != "" || err != nil || w.text(left) != before {
		t.Errorf("dry run: %v, -want +got:\n%s", err, diff)
	}
	day := func(at time.Time) float64 { return time.Since(at).Hours() / 24 }
	if got.Oldest == nil || day(*got.Oldest) < 49.9 || day(*got.Oldest) > 50.1 || day(got.Before) < 29.9 || day(got.Before) > 30.1 {
		t.Errorf("the oldest died at %v, and the limit is %v", got.Oldest, got.Before)
	}

	no := errors.New("no")
	o.DryRun, o.Confirm = false, func(r PurgeResult) error {
		if diff := cmp.Diff(want, r, ignored, cmpopts.IgnoreFields(PurgeResult{}, "DryRun")); diff != "" {
			t.Errorf("asked for:\n%s", diff)
		}
		return no
	}
	if _, err := PurgeDeadLetters(ctx, w.admin, o); !errors.Is(err, no) || w.text(left) != before {
		t.Errorf("the answer no: %v", err)
	}

	conn := w.listen()
	o.Confirm, o.Sinks, o.Reason = nil, []string{"b", "none"}, "discarded by me"
	var progress []int
	o.Progress = func(done, total int) { progress = append(progress, done, total) }
	got, err = PurgeDeadLetters(ctx, w.admin, o)
	want = PurgeResult{Matched: 2, Younger: 2, Deleted: 2, ByParkedAt: 1, Sinks: []SinkRows{{Sink: noSink, Rows: 1}, {Sink: "b", Rows: 1}}}
	if diff := cmp.Diff(want, got, ignored); diff != "" || err != nil {
		t.Errorf("two sinks: %v, -want +got:\n%s", err, diff)
	}
	if diff := cmp.Diff([]int{0, 2, 2, 2}, progress); diff != "" {
		t.Errorf("progress:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"public:2:rows:#:0:-1", "public:2"}, heard(t, conn)); diff != "" {
		t.Errorf("connectors are told (-want +got):\n%s", diff)
	}
	o.Sinks = nil
	if got, err = PurgeDeadLetters(ctx, w.admin, o); err != nil || got.Deleted != 2 {
		t.Errorf("the rest: %+v, %v", got, err)
	}
	if text := w.text(left); text != "0:0/A 1:0/3 1:0/4 1:0/5 1:0/6 2:0/2 3:0/8" {
		t.Errorf("left: %s", text)
	}
	discarded := w.text(`select string_agg(concat_ws(':', processor_id, commit_lsn, error_message), ' ' order by processor_id, commit_lsn)
		from outbox_delivery_log where status = 'discarded'`)
	if discarded != "0:0/9:discarded by me 1:0/1:discarded by me 1:0/2:discarded by me 2:0/7:discarded by me" {
		t.Errorf("log: %s", discarded)
	}

	o.Confirm = func(PurgeResult) error {
		t.Error("asked about nothing")
		return nil
	}
	got, err = PurgeDeadLetters(ctx, w.admin, o)
	if err != nil || got.Matched != 0 || got.Younger != 5 || got.Oldest != nil || got.Sinks == nil {
		t.Errorf("nothing is left to purge: %+v, %v", got, err)
	}
	o.Sinks = []string{"c"}
	if _, err = PurgeDeadLetters(ctx, w.admin, o); err == nil || err.Error() != `no sink "c"; those of connector "shop" are: a, b` {
		t.Errorf("an unknown sink: %v", err)
	}
}

// More dead letters than fit on a page are found, and a purge that is interrupted says how far it came.
func TestPurgeInChunks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event, parked_at)
		select 1, '0/1', n, ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, n, 'dead', '{}', now() - interval '2 days' from generate_series(1, 1234) n`,
		`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		select event_id, 1, 1, 'dead', now(), commit_lsn, tx_index, 7 from outbox_parked where tx_index % 2 = 0`)
	ctx, cancel := context.WithCancelCause(pgtest.Context(t))
	defer cancel(nil)
	stop := errors.New("interrupted")
	o := PurgeOptions{OlderThan: 24 * time.Hour, Progress: func(done, total int) {
		if total != 617 {
			t.Errorf("%d in all", total)
		}
		if done > 0 {
			cancel(stop)
		}
	}}
	r, err := PurgeDeadLetters(ctx, w.admin, o)
	if !errors.Is(err, stop) || err.Error() != "500 of 617 discarded, then: interrupted" || r.Deleted != 500 {
		t.Errorf("interrupted: %v, %+v", err, r)
	}
	if n := w.text("select count(*) from outbox_parked where tx_index % 2 = 1"); n != "117" {
		t.Errorf("%s are left", n)
	}
	o.Progress = nil
	if r, err = PurgeDeadLetters(pgtest.Context(t), w.admin, o); err != nil || r.Deleted != 117 || r.Younger != 617 {
		t.Errorf("the rest: %v, %+v", err, r)
	}
}
