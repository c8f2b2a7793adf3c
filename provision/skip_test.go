package provision

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

const insertEvent = "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', '%s', 'made', '{}')"

// poison commits a transaction that cannot be decoded: it writes a, then b while the table has no payload, then c. It returns the
// transaction's commit LSN, as the command says it to whoever names another one.
func (o *outboxDB) poison() pglogrepl.LSN {
	o.t.Helper()
	o.exec("begin; " + fmt.Sprintf(insertEvent, "a") + "; alter table event_outbox alter payload drop not null; alter table event_outbox rename payload to body;" +
		" insert into event_outbox (aggregate_type, aggregate_id, event_type, body) values ('order', 'b', 'made', '{}'); alter table event_outbox rename body to payload; " +
		fmt.Sprintf(insertEvent, "c") + "; commit")
	_, err := o.skip(1, nil)
	if err != nil && strings.Contains(err.Error(), "comes first") { // the row a
		at, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "the event at "), ":")
		lsn, parseErr := pglogrepl.ParseLSN(at)
		if parseErr != nil {
			o.t.Fatal(err, parseErr)
		}
		return lsn
	}
	o.t.Fatalf("the transaction is not found: %v", err)
	return 0
}

func (o *outboxDB) skip(lsn pglogrepl.LSN, change func(*SkipConfig)) (SkipResult, error) {
	o.t.Helper()
	cfg := SkipConfig{Source: o.cfg.Source, DSN: o.dsn, ReplicationDSN: o.dsn, MaxEventBytes: 1 << 20, LSN: lsn}
	if change != nil {
		change(&cfg)
	}
	return Skip(pgtest.Context(o.t), cfg)
}

// settle says in the checkpoint that everything up to this event is settled, as the recorder does.
func (o *outboxDB) settle(lsn pglogrepl.LSN, index int) {
	o.t.Helper()
	o.exec(fmt.Sprintf("update outbox_checkpoints set prefix_lsn = '%s', prefix_index = %d, batch_seq = batch_seq + 1", lsn, index))
	o.exec(fmt.Sprintf("insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) "+
		"select id, 1, 1, 'delivered', now(), '%s', 0, 1 from event_outbox where aggregate_id = 'a'", lsn))
}

// logged returns the log rows of processor 0: the aggregate of each.
func (o *outboxDB) logged() string {
	o.t.Helper()
	return o.text(`select coalesce(string_agg(concat(e.aggregate_id, ' ', status, ' ', tx_index), ', ' order by tx_index), '')
		from outbox_delivery_log l left join event_outbox e on e.id = event_id where processor_id = 0`)
}

func TestSkip(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	lsn := o.poison()
	o.exec(fmt.Sprintf(insertEvent, "d"))
	before := o.checkpoint() + o.slot()

	// The row a can be read: a connector delivers it first.
	if _, err := o.skip(lsn, nil); err == nil || !strings.Contains(err.Error(), "not settled for every sink") {
		t.Errorf("with an event before it: %v", err)
	}
	if now := o.checkpoint() + o.slot(); now != before {
		t.Errorf("%s became %s", before, now)
	}
	o.settle(lsn, 0)
	before = o.checkpoint() + o.slot()

	// Another LSN is refused, with the right one.
	for _, other := range []pglogrepl.LSN{1, lsn - 1, lsn + 1, lsn + 0x10000} {
		if _, err := o.skip(other, nil); err == nil || !strings.Contains(err.Error(), `run "outbox-cdc skip --lsn `+lsn.String()+`"`) {
			t.Errorf("at %s: %v", other, err)
		}
	}
	refused := errors.New("no")
	if _, err := o.skip(lsn, func(c *SkipConfig) { c.Confirm = func(SkipResult) error { return refused } }); !errors.Is(err, refused) {
		t.Errorf("a person says no: %v", err)
	}
	r, err := o.skip(lsn, func(c *SkipConfig) { c.DryRun = true })
	if err != nil || r.RowCount != 3 || len(r.Rows) != 3 || r.Rows[0].Known || !r.Rows[2].Known || r.MovedTo != "" || !strings.Contains(r.Cause, "payload") {
		t.Errorf("dry run: %+v, %v", r, err)
	}
	if now := o.checkpoint() + o.slot(); now != before || o.logged() != "" {
		t.Errorf("%s became %s, log %q", before, now, o.logged())
	}

	r, err = o.skip(lsn, nil)
	if err != nil || r.Resumed || r.MovedTo != (lsn+1).String() {
		t.Fatalf("%+v, %v", r, err)
	}
	if got := o.checkpoint(); !strings.Contains(got, fmt.Sprintf("ready %s/-1 confirmed %[1]s epoch 1", lsn+1)) {
		t.Error(got)
	}
	if got := o.slot(); !strings.HasSuffix(got, (lsn + 1).String()) {
		t.Error(got)
	}
	if got := o.logged(); got != "b discarded 1, c discarded 2" && got != "c discarded 1, b discarded 2" {
		t.Error(got)
	}
	// The next event comes.
	if _, err := o.skip(lsn, nil); err == nil || !strings.Contains(err.Error(), "comes first: it can be read") {
		t.Errorf("behind it: %v", err)
	}
	o.exec("update outbox_checkpoints set prefix_lsn = pg_current_wal_insert_lsn(), prefix_index = -1")
	if _, err := o.skip(lsn, nil); !errors.Is(err, errNothingToSkip) {
		t.Errorf("at the end: %v", err)
	}
}

// Killed after any of its steps, skip can be run again, and the slot is never ahead of the checkpoint.
func TestSkipIsKilled(t *testing.T) {
	t.Parallel()
	for _, step := range []skipStep{skipLooked, skipMovedCheckpoint, skipMovedSlot} {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			t.Parallel()
			o := newSetup(t)
			lsn := o.poison()
			o.settle(lsn, 0)
			o.exec(fmt.Sprintf(insertEvent, "d"))
			killed := errors.New("killed")
			_, err := o.skip(lsn, func(c *SkipConfig) {
				c.after = func(s skipStep) error {
					if s == step {
						return killed
					}
					return nil
				}
			})
			if !errors.Is(err, killed) {
				t.Fatal(err)
			}
			if o.text(`select (s.confirmed_flush_lsn <= c.confirmed_lsn)::text from outbox_checkpoints c join pg_replication_slots s using (slot_name)`) != "true" {
				t.Errorf("the slot is ahead: %s, %s", o.checkpoint(), o.slot())
			}
			asked := false
			r, err := o.skip(lsn, func(c *SkipConfig) { c.Confirm = func(SkipResult) error { asked = true; return nil } })
			if step == skipMovedSlot {
				if err == nil || !strings.Contains(err.Error(), "comes first") {
					t.Errorf("again: %+v, %v", r, err)
				}
			} else if err != nil || r.Resumed != (step == skipMovedCheckpoint) || asked == r.Resumed {
				t.Errorf("again: %+v, asked %v, %v", r, asked, err)
			}
			if got := o.slot(); !strings.HasSuffix(got, (lsn + 1).String()) {
				t.Error(got)
			}
			if got := strings.Count(o.logged(), "discarded"); got != 2 {
				t.Errorf("%d rows in the log: %s", got, o.logged())
			}
		})
	}
}

// What a session records while a person is asked is not undone, and what it makes unsettled again is not lost.
func TestSkipBesideASession(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	lsn := o.poison()
	o.settle(lsn, 0)
	_, err := o.skip(lsn, func(c *SkipConfig) {
		c.Confirm = func(SkipResult) error {
			o.exec("update outbox_checkpoints set epoch = epoch + 5, batch_seq = batch_seq + 1")
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := o.checkpoint(); !strings.Contains(got, "epoch 6 ") || !strings.Contains(got, "confirmed "+(lsn+1).String()) {
		t.Error(got)
	}

	o = newSetup(t)
	lsn = o.poison()
	o.settle(lsn, 0)
	_, err = o.skip(lsn, func(c *SkipConfig) {
		c.Confirm = func(SkipResult) error {
			o.exec("update outbox_checkpoints set prefix_lsn = '0/1', batch_seq = batch_seq + 1")
			return nil
		}
	})
	if err == nil || !strings.Contains(err.Error(), "comes first") {
		t.Error(err)
	}
	if got := o.logged(); got != "" {
		t.Error(got)
	}
}

// A slot that somebody has moved has passed what the ledger does not know: to move the checkpoint as well would hide that for good.
func TestSkipOfASlotThatIsAhead(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	o.exec(fmt.Sprintf(insertEvent, "lost"), "select pg_replication_slot_advance('SLOT', pg_current_wal_lsn())")
	o.exec("begin; alter table event_outbox alter payload drop not null; alter table event_outbox rename payload to body;" +
		" insert into event_outbox (aggregate_type, aggregate_id, event_type, body) values ('order', 'b', 'made', '{}'); alter table event_outbox rename body to payload; commit")
	before := o.checkpoint() + o.slot()
	if _, err := o.skip(1, nil); exitcode.Of(err) != exitcode.SlotLost || !strings.Contains(err.Error(), "ahead of the checkpoint") {
		t.Errorf("%v", err)
	}
	if now := o.checkpoint() + o.slot(); now != before {
		t.Errorf("%s became %s", before, now)
	}
}

func TestSkipOfASlotThatIsNotOurs(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	if _, err := o.skip(1, nil); exitcode.Of(err) != exitcode.SlotLost || !strings.Contains(err.Error(), `run "outbox-cdc init"`) {
		t.Errorf("without a slot: %v", err)
	}
	o.exec("select pg_create_logical_replication_slot('SLOT', 'pgoutput')")
	if _, err := o.skip(1, nil); exitcode.Of(err) != exitcode.SlotLost || !strings.Contains(err.Error(), "was not made by") {
		t.Errorf("with somebody else's: %v", err)
	}

	o = newSetup(t)
	lsn := o.poison()
	o.settle(lsn, 0)
	before := o.checkpoint() + o.slot()
	stream, _, err := replication.Open(pgtest.Context(t), replication.StreamConfig{DSN: o.dsn, Slot: o.cfg.Slot, Publication: o.cfg.Publication, ApplicationName: "another"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := o.skip(lsn, nil); !errors.Is(err, replication.ErrSlotInUse) || !strings.Contains(err.Error(), `application "another"`) {
		t.Errorf("while another one streams: %v", err)
	}
	if now := o.checkpoint() + o.slot(); now != before {
		t.Errorf("%s became %s", before, now)
	}
}
