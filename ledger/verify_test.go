package ledger_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

var ownTable = ledger.OutboxTable{
	Schema: "public", Name: "event_outbox", ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", EventType: "event_type", TenantID: "tenant_id", CreatedAt: "created_at",
}

// compare returns what Compare finds: for each sink the ids, in order.
func (w *walking) compare(q ledger.VerifyQuery) (map[int32][]string, ledger.VerifyPoint) {
	w.t.Helper()
	s := ledger.Schema("public")
	v, err := s.OpenVerify(w.t.Context(), w.conn, ownTable)
	if err != nil {
		w.t.Fatal(err)
	}
	if q.Witness.Snapshot == "" {
		if q.Witness, err = s.ReadWitness(w.t.Context(), w.conn); err != nil {
			w.t.Fatal(err)
		}
	}
	found := map[int32][]string{}
	p, err := v.CompareAll(w.t.Context(), w.conn, q, func(_ *ledger.VerifyPoint, u *ledger.Unknown) error {
		found[u.Processor] = append(found[u.Processor], u.ID)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, ids := range found {
		slices.Sort(ids)
	}
	return found, p
}

func (w *walking) checkpointAt(prefix checkpoint.Position) {
	w.exec("delete from outbox_checkpoints")
	w.exec(`insert into outbox_checkpoints (slot_name, state, system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn)
		values ('s', 'ready', '1', 1, $1, $2, $1)`, prefix.LSN, prefix.Index)
}

// The comparison of all rows finds what the comparison of each row finds, whatever has happened.
func TestCompareAgreesWithMissing(t *testing.T) {
	t.Parallel()
	r := testrand.New(t)
	w := newWalking(t)
	base := checkpoint.Position{LSN: 0x500, Index: 4}
	w.checkpointAt(base)
	var ids []string
	const events = 300
	w.exec("insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload) select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'order', n::text, 'made', '{}' from generate_series(0, $1::int - 1) n", events)
	var log, parked []string
	for n := range events {
		id := fmt.Sprintf("00000000-0000-7000-8000-%012d", n)
		ids = append(ids, id)
		for range r.IntN(4) {
			lsn, index := 0x4fe+r.IntN(5), r.IntN(8)
			processor := r.IntN(4) // 0 is of no sink
			if r.IntN(4) == 0 && processor != 0 {
				index = -1 - r.IntN(9)
			}
			if r.IntN(3) == 0 {
				status := []string{"parked", "dead"}[r.IntN(2)]
				if processor == 0 {
					lsn = 0x4f0
				}
				parked = append(parked, fmt.Sprintf("(%d, '0/%X', %d, '%s', 1, '%s', '{}')", processor, lsn, index+10*n*sign(index), id, status))
				continue
			}
			status := []string{"delivered", "failed", "dead", "discarded"}[r.IntN(4)]
			if processor == 0 { // jobs write none, see compare
				lsn = 0x4f0
			}
			log = append(log, fmt.Sprintf("('%s', %d, 1, '%s', now(), '0/%X', %d, 1)", id, processor, status, lsn, index))
		}
	}
	w.exec("insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) values " + strings.Join(log, ", "))
	w.exec("insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event) values " + strings.Join(parked, ", ") + " on conflict do nothing")

	got, _ := w.compare(ledger.VerifyQuery{Slot: "s", Processors: []int32{1, 2, 3}})
	want, total := map[int32][]string{}, 0
	for _, p := range []int32{1, 2, 3} {
		missing, err := ledger.Schema("public").Missing(t.Context(), w.conn, ledger.MissingQuery{Processor: p, Base: base, IDs: ids})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range missing {
			want[p] = append(want[p], ids[i])
		}
		total += len(missing)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if total < events/3 || total > 3*events*9/10 {
		t.Errorf("%d are missing: the histories say little", total)
	}
}

func sign(n int) int {
	if n < 0 {
		return -1
	}
	return 1
}

// What cannot be known yet is told apart: rows that were not there at the moment of the witness, and a stream that is not settled so far.
func TestCompareWithAWitness(t *testing.T) {
	t.Parallel()
	w := newWalking(t)
	insert := func(id string) {
		w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, tenant_id, created_at) values ('order', $1, 'made', '{}', $1, '2026-01-02')", id)
	}
	insert("early")
	s := ledger.Schema("public")
	witness, err := s.ReadWitness(t.Context(), w.conn)
	if err != nil {
		t.Fatal(err)
	}
	insert("late")
	v, err := s.OpenVerify(t.Context(), w.conn, ownTable)
	if err != nil {
		t.Fatal(err)
	}
	check := func(q ledger.VerifyQuery, want string) {
		t.Helper()
		q.Slot, q.Processors, q.Witness = "s", []int32{7}, witness
		var got []string
		p, err := v.CompareAll(t.Context(), w.conn, q, func(_ *ledger.VerifyPoint, u *ledger.Unknown) error {
			got = append(got, fmt.Sprint(u.AggregateID, " ", u.EventType, " ", u.TenantID, " ", u.Seen, " ", u.Matches, " ", u.CreatedAt.UTC().Format(time.DateOnly)))
			return nil
		})
		slices.Sort(got)
		if got = append(got, fmt.Sprint("decides ", p.Decides)); err != nil || strings.Join(got, ", ") != want {
			t.Errorf("%+v: %v, %q", q, err, got)
		}
	}
	w.checkpointAt(checkpoint.Position{LSN: 1, Index: -1})
	check(ledger.VerifyQuery{}, "early made early true [] 2026-01-02, late made late false [] 2026-01-02, decides false")
	w.exec("update outbox_checkpoints set confirmed_lsn = pg_current_wal_insert_lsn()")
	check(ledger.VerifyQuery{Filters: []string{"tenant_id = 'late' -- theirs", "null"}}, "early made early true [false false] 2026-01-02, late made late false [true false] 2026-01-02, decides true")
	check(ledger.VerifyQuery{Since: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)}, "decides true")

	// A row of the log that a slot before this one has left counts as one before the prefix.
	w.exec("insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) select id, 9, 1, 'delivered', now(), 'F/0', 1, 4 from event_outbox where tenant_id = 'early'")
	check(ledger.VerifyQuery{}, "early made early true [] 2026-01-02, late made late false [] 2026-01-02, decides true")
	w.exec("update outbox_checkpoints set slot_epoch = 5")
	check(ledger.VerifyQuery{}, "late made late false [] 2026-01-02, decides true")
	w.exec("update outbox_checkpoints set state = 'building'")
	if _, err := v.CompareAll(t.Context(), w.conn, ledger.VerifyQuery{Slot: "s", Witness: witness}, nil); err == nil {
		t.Error("a checkpoint that is building was taken")
	}
}
