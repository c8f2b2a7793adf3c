package ledger_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// giveParked gives the recorder one outcome about the row of each LSN, all in one transaction of it.
func (r *recorderBench) giveParked(entry uint64, outcomes ...checkpoint.Outcome) {
	for i := range outcomes {
		o := &outcomes[i]
		o.Entry, o.Processor, o.EventID, o.Attempt = entry, 1, eventID(int(o.Position.LSN)), 1
		o.StartedAt, o.CompletedAt = time.Now(), time.Now()
		if o.Parked != nil && o.Row == checkpoint.RowInsert {
			o.Parked.Event, o.Parked.Payload = fmt.Appendf(nil, `{"n":%d}`, o.Position.LSN), []byte("p")
		}
	}
	r.seq++
	r.in <- checkpoint.Outcomes{Rows: outcomes, Seq: r.seq, Recorded: r.notices, Urgent: true}
	r.recorded()
}

// Outcomes insert, change and delete parked rows. Several outcomes about one row in one transaction come to one change.
func TestParkedRows(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := l.record(l.config())
	r.Begin()
	e := r.Add(pos(100, 0), 100, 10, time.Now())
	r.Tracker.Commit(checkpoint.Transaction{LSN: 100, EndLSN: 108, Last: 0, Ours: true})
	insert := func(lsn int) checkpoint.Outcome {
		return checkpoint.Outcome{Status: checkpoint.Parked, Settles: true, Row: checkpoint.RowInsert, Position: pos(100, int64(lsn)), Parked: &checkpoint.ParkedState{}}
	}
	update := func(lsn int, s checkpoint.Status, row checkpoint.ParkedState) checkpoint.Outcome {
		return checkpoint.Outcome{Status: s, Row: checkpoint.RowUpdate, Position: pos(100, int64(lsn)), Error: "why", Parked: &row}
	}
	remove := func(lsn int) checkpoint.Outcome {
		return checkpoint.Outcome{Status: checkpoint.Delivered, Row: checkpoint.RowDelete, Position: pos(100, int64(lsn))}
	}
	rows := func(want string) {
		t.Helper()
		got := l.query(`select string_agg(concat_ws(' ', tx_index, status, attempts, tries, case when next_attempt_at = 'infinity' then 'blocks'
			when next_attempt_at is null then 'null' else round(extract(epoch from next_attempt_at - clock_timestamp()) / 60)::text end,
			coalesce(error_message, '-'), convert_from(payload, 'UTF8')), '; ' order by tx_index) from outbox_parked`)
		if got != want {
			t.Errorf("parked rows\n got %s\nwant %s", got, want)
		}
	}
	due := time.Now().Add(10 * time.Minute)
	r.giveParked(e, insert(1), insert(2), insert(3), insert(4), insert(5))
	rows("1 parked 0 0 null - p; 2 parked 0 0 null - p; 3 parked 0 0 null - p; 4 parked 0 0 null - p; 5 parked 0 0 null - p")
	r.giveParked(e, remove(1), update(2, checkpoint.Failed, checkpoint.ParkedState{Attempts: 1, Tries: 2, TriedAt: time.Now(), NextAttempt: due}),
		update(3, checkpoint.Dead, checkpoint.ParkedState{Attempts: 4, Tries: 4, Blocks: true}), update(4, checkpoint.Dead, checkpoint.ParkedState{Attempts: 4, Tries: 4}))
	rows("2 parked 1 2 10 why p; 3 dead 4 4 blocks why p; 4 dead 4 4 null why p; 5 parked 0 0 null - p")
	// The first try stays the first, whatever another clock makes of it.
	r.giveParked(e, update(2, checkpoint.Failed, checkpoint.ParkedState{Attempts: 1, Tries: 3, TriedAt: time.Now().Add(time.Hour), NextAttempt: due}))
	if got := l.query("select (tried_at < clock_timestamp())::text from outbox_parked where tx_index = 2"); got != "true" {
		t.Error("the time of the first try has moved")
	}
	// Within one transaction.
	r.giveParked(e, insert(6), remove(6), insert(7), update(7, checkpoint.Failed, checkpoint.ParkedState{Tries: 1, NextAttempt: due}),
		update(2, checkpoint.Failed, checkpoint.ParkedState{Tries: 3, NextAttempt: due}), remove(2), remove(5))
	rows("3 dead 4 4 blocks why p; 4 dead 4 4 null why p; 7 parked 0 1 10 why p")
	// A person was there first: nothing comes back, nothing is undone.
	l.exec("delete from outbox_parked where tx_index = 4")
	r.giveParked(e, update(3, checkpoint.Failed, checkpoint.ParkedState{Tries: 9, NextAttempt: due}), update(4, checkpoint.Failed, checkpoint.ParkedState{Tries: 9, NextAttempt: due}), remove(4))
	rows("3 dead 4 4 blocks why p; 7 parked 0 1 10 why p")
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	if got := l.query("select string_agg(tx_index || ' ' || status, ', ' order by tx_index, status) from outbox_delivery_log"); got !=
		"1 delivered, 2 delivered, 2 failed, 2 failed, 2 failed, 3 dead, 3 failed, 4 dead, 4 delivered, 4 failed, 5 delivered, 6 delivered, 7 failed" {
		t.Errorf("log %s", got)
	}
}

// Large values are sent to COPY without being copied into its buffer. They arrive in the right rows, between the small ones.
func TestParkedRowsOfAllSizes(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := l.record(l.config())
	r.Begin()
	e := r.Add(pos(100, 0), 100, 10, time.Now())
	r.Tracker.Commit(checkpoint.Transaction{LSN: 100, EndLSN: 108, Last: 0, Ours: true})
	sizes := []int{0, 1, ledger.SentFromPlace - 1, ledger.SentFromPlace, ledger.SentFromPlace + 1, 3 << 20, 10, 5 * ledger.SentFromPlace, 3}
	value := func(i, size int) []byte { return bytes.Repeat([]byte{'a' + byte(i)}, size) }
	var outcomes []checkpoint.Outcome
	for i, size := range sizes {
		outcomes = append(outcomes, checkpoint.Outcome{
			Status: checkpoint.Parked, Settles: true, Row: checkpoint.RowInsert, Position: pos(100, int64(i)), Entry: e, Processor: 1, EventID: eventID(i),
			Parked: &checkpoint.ParkedState{Event: fmt.Appendf(nil, "%q", value(i, sizes[len(sizes)-1-i])), Payload: value(i, size)},
		})
	}
	r.in <- checkpoint.Outcomes{Rows: outcomes, Seq: 1, Recorded: r.notices, Urgent: true}
	r.seq = 1
	r.recorded()
	for i, size := range sizes {
		got := l.query(fmt.Sprintf(`select (event::text = '"' || repeat('%[1]c', %[2]d) || '"')::text || ' ' || (payload = convert_to(repeat('%[1]c', %[3]d), 'UTF8'))::text
			from outbox_parked where tx_index = %[4]d`, 'a'+i, sizes[len(sizes)-1-i], size, i))
		if got != "true true" {
			t.Errorf("row %d of %d bytes: event and payload are what they were: %s", i, size, got)
		}
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
}
