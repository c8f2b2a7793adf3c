package admin

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// newStatusWorld is a world with a slot and a publication of its own.
func newStatusWorld(t *testing.T) (*world, StatusConfig) {
	t.Helper()
	w := newWorld(t)
	slot := (&pgtest.Database{}).Slot(t)
	w.admin.Source.Slot, w.admin.Source.Publication = slot, slot
	w.exec("delete from outbox_checkpoints",
		fmt.Sprintf(`insert into outbox_checkpoints (slot_name, state, epoch, system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn)
			select '%s', 'ready', 7, system_identifier, 1, '0/1', 0, '0/1' from pg_control_system()`, slot),
		fmt.Sprintf("create publication %s for table event_outbox with (publish = 'insert', publish_via_partition_root)", slot))
	pgtest.Exec(t, w.conn, fmt.Sprintf("select pg_create_logical_replication_slot('%s', 'pgoutput')", slot))
	w.exec("update outbox_checkpoints c set confirmed_lsn = confirmed_flush_lsn from pg_replication_slots s where s.slot_name = c.slot_name")
	return w, StatusConfig{Config: w.admin, DSNPlace: "test"}
}

func (w *world) status(cfg StatusConfig) Status {
	w.t.Helper()
	s, err := ReadStatus(pgtest.Context(w.t), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (s *Status) toDoText() string {
	var all []string
	for _, t := range s.ToDo {
		all = append(all, string(t.Level)+": "+t.What+" ["+t.Command+"]")
	}
	return strings.Join(all, "\n")
}

// wantToDo fails the test unless each text is on the list, in this order.
func wantToDo(t *testing.T, s Status, wants ...string) {
	t.Helper()
	rest := s.toDoText()
	for _, want := range wants {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Errorf("no %q, or not in this order:\n%s", want, s.toDoText())
			return
		}
		rest = after
	}
}

// What the database alone says: the slot, sinks whose state was written by the session of the checkpoint's epoch, rows, transactions.
func TestStatusOfTheDatabase(t *testing.T) {
	t.Parallel()
	w, cfg := newStatusWorld(t)
	w.park(1, 1, "parked", "parked_at = now() - interval '90 s'")
	w.park(1, 2, "parked", "")
	w.park(2, 3, "dead", "")
	w.park(0, 4, "dead", "")
	cfg.Sinks = []string{"a"}
	if s := w.status(cfg); s.Sizes.OutboxFrom != nil {
		t.Errorf("an empty outbox goes back to %s", s.Sizes.OutboxFrom)
	}
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) values ('order', '1', 'made', '{}', '2026-01-02 03:04:05Z'), ('order', '1', 'made', '{}', now())")
	s := w.status(cfg)
	if from := s.Sizes.OutboxFrom; from == nil || !from.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("the outbox goes back to %v", from)
	}
	a, b := s.Sinks[0], s.Sinks[1]
	if *a.Rows.Parked != 2 || *a.Rows.Dead != 0 || *a.Rows.OldestSeconds < 89 || a.Rows.AtLeast || a.Condition != conditionUnknown {
		t.Errorf("a: %+v", a)
	}
	if b.Configured || *b.Rows.Dead != 1 || *s.NoSink.Dead != 1 {
		t.Errorf("b: %+v, no sink %+v", b, s.NoSink)
	}
	if s.Slot.State != SlotIdle || s.Slot.LagBytes == nil || s.Slot.KeptLimit != nil || s.Slot.Epoch != 7 || s.Level != monitoring.LevelFailed || *s.Sizes.Outbox == 0 ||
		s.Sizes.LogFrom == nil {
		t.Errorf("%+v, %+v", s.Slot, s)
	}
	wantToDo(t, s, "failed: no connector streams", "degraded: 1 dead letter of b", "1 dead letter of no sink")

	w.exec("update outbox_processors set is_active = false where id = 1", "delete from outbox_parked")
	if s = w.status(cfg); s.Sinks[0].Condition != monitoring.ConditionPaused || len(s.Sinks) != 1 {
		t.Errorf("paused: %+v", s.Sinks)
	}
	wantToDo(t, s, "ok: a is paused [outbox-cdc resume a]")
}

// Each of these slots has a state and a remedy.
func TestStatusOfSlots(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sql   string // SLOT is the slot
		state SlotState
		want  string
	}{
		"dropped": {"select pg_drop_replication_slot('SLOT')", SlotMissing, "is gone; find out who dropped it"},
		// The next session compares what such a slot has passed.
		"made anew": {
			"select pg_drop_replication_slot('SLOT'); select pg_create_logical_replication_slot('SLOT', 'pgoutput')", SlotIdle, "no connector streams",
		},
		"building": {"update outbox_checkpoints set state = 'building', prefix_lsn = null where slot_name = 'SLOT'", SlotBuilding, `run "outbox-cdc init" again`},
		"unknown":  {"delete from outbox_checkpoints where slot_name = 'SLOT'", SlotForeign, "no checkpoint knows it"},
		"absent": {
			"delete from outbox_checkpoints where slot_name = 'SLOT'; select pg_drop_replication_slot('SLOT')", SlotAbsent, `was not made yet; run "outbox-cdc init"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, cfg := newStatusWorld(t)
			for sql := range strings.SplitSeq(strings.ReplaceAll(test.sql, "SLOT", cfg.Source.Slot), "; ") {
				w.exec(sql)
			}
			s := w.status(cfg)
			if s.Slot.State != test.state || s.Level != monitoring.LevelFailed {
				t.Errorf("slot %+v, level %s", s.Slot, s.Level)
			}
			wantToDo(t, s, test.want)
		})
	}
}

// A ledger of an older version, a login that may read nothing, and no ledger at all: each says what is missing, and shows the rest.
func TestStatusOfLesserLedgers(t *testing.T) {
	t.Parallel()
	w, cfg := newStatusWorld(t)
	w.park(1, 1, "parked", "")
	w.exec("alter table outbox_processors drop column state", "delete from outbox_migrations where version_id > 5")
	s := w.status(cfg)
	if *s.Sinks[0].Rows.Parked != 1 || len(s.Database.Pending) == 0 {
		t.Errorf("an old ledger: %+v", s)
	}
	wantToDo(t, s, `lacks the column state, because an older version has made it; run "outbox-cdc init"`)

	w.exec("drop table outbox_retention cascade")
	wantToDo(t, w.status(cfg), `lacks the tables outbox_retention; run "outbox-cdc init"`)

	name, password := pgtest.NewLogin(t, w.conn)
	cfg.DSN = pgtest.WithLogin(t, w.admin.DSN, name, password)
	s = w.status(cfg)
	if s.Slot == nil || s.NoSink.Parked != nil || len(s.Sinks) != 0 {
		t.Errorf("without rights: %+v", s)
	}
	wantToDo(t, s, "lacks privileges; as the owner of the tables: ")

	empty := pgtest.Unmigrated(t)
	cfg.DSN = empty.DSN
	s = w.status(cfg)
	wantToDo(t, s, `run "outbox-cdc init"`)
}

// A transaction that is open for an hour is told, with what ends it.
func TestStatusTellsOldTransactions(t *testing.T) {
	t.Parallel()
	r := &statusReader{status: &Status{}}
	r.status.At = r.server.Now
	h := StatusHolder{Kind: "transaction", User: "ann", PID: 99, State: "idle in transaction", Since: new(r.status.At.Add(-longTransaction))}
	r.judgeHolder(h)
	wantToDo(t, *r.status, "select pg_terminate_backend(99)")
	w, cfg := newStatusWorld(t)
	w.exec("begin; select pg_current_xact_id()")
	if s := w.status(cfg); len(s.Holders) != 0 {
		t.Errorf("a transaction of a moment: %+v", s.Holders)
	}
	w.exec("rollback")
}

// A table of the ledger that somebody has locked is not read, and nothing else is concluded from that.
func TestStatusOfLockedLedgers(t *testing.T) {
	t.Parallel()
	w, cfg := newStatusWorld(t)
	w.park(1, 1, "dead", "")
	for _, table := range []string{"outbox_parked", "outbox_checkpoints"} {
		w.exec("begin; lock table " + table)
		s := w.status(cfg)
		w.exec("rollback")
		if len(s.Unknown) == 0 || !strings.Contains(s.Unknown[0], "another session holds a lock on it") || s.Slot.State != SlotIdle || s.NoSink.Parked != nil {
			t.Errorf("%s: slot %+v, rows %+v, not known: %q", table, s.Slot, s.NoSink, s.Unknown)
		}
		if text := s.toDoText(); !strings.Contains(text, "no connector streams") || len(s.ToDo) != 1 {
			t.Errorf("%s: to do:\n%s", table, text)
		}
		if named := len(s.Sinks) > 0; named != (table == "outbox_parked") {
			t.Errorf("%s: sinks %+v", table, s.Sinks)
		}
	}
}

// The size of a table that somebody has locked is not known; those of the others are.
func TestStatusOfLockedTables(t *testing.T) {
	t.Parallel()
	w, cfg := newStatusWorld(t)
	for table, want := range map[string]struct{ unknown, known string }{
		"event_outbox":        {"the size of the outbox", "log parked"},
		"outbox_delivery_log": {"the size of the log", "outbox parked"},
		"outbox_parked":       {"the size of outbox_parked", "outbox log"},
	} {
		w.exec("begin; lock table " + table)
		s := w.status(cfg)
		w.exec("rollback")
		if !slices.Contains(s.Unknown, want.unknown+": another session holds a lock on it") {
			t.Errorf("%s: not known: %q", table, s.Unknown)
		}
		var known []string
		if z := s.Sizes; z != nil {
			for name, size := range map[string]*int64{"outbox": z.Outbox, "log": z.Log, "parked": z.Parked} {
				if size != nil && *size > 0 {
					known = append(known, name)
				}
			}
		}
		slices.Sort(known)
		if got, all := strings.Join(known, " "), strings.Fields(want.known); len(known) != 2 || !slices.Contains(known, all[0]) || !slices.Contains(known, all[1]) {
			t.Errorf("%s: the sizes of %q are known, want %q", table, got, want.known)
		}
	}
}

// A slot that nobody streams from, while an instance is connected, needs no further instance.
func TestStatusOfAnInstanceThatDoesNotStream(t *testing.T) {
	t.Parallel()
	r := &statusReader{status: &Status{Slot: &StatusSlot{Name: "s", State: SlotIdle}, Instances: []StatusInstance{{PID: 7}}}}
	r.judgeSlot()
	wantToDo(t, *r.status, "although an instance is connected")
}
