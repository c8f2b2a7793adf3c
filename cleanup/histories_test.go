package cleanup_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
)

// history is a random state of outbox and ledger.
type history struct {
	rows  []historyRow
	slots []historySlot
	job   string // the status of a job, "" for none
}

type historyRow struct {
	age    time.Duration
	ledger []historyEntry
	locked bool
}

// historyEntry is a row of the log, or with epoch 0 of outbox_parked.
type historyEntry struct {
	status            string
	lsn, index, epoch int
}

type historySlot struct {
	state              string
	lsn, index, epochs int
}

func newHistory(r *rand.Rand) history {
	var h history
	for range 1 + r.IntN(2) + r.IntN(2) {
		s := historySlot{"ready", 100 + r.IntN(20), r.IntN(4) - 1, 1 + r.IntN(3)}
		if r.IntN(30) == 0 {
			s.state = "building"
		}
		h.slots = append(h.slots, s)
	}
	if r.IntN(8) == 0 {
		h.job = []string{"running", "done"}[r.IntN(2)]
	}
	for range r.IntN(40) {
		row := historyRow{age: time.Duration(r.IntN(8))*20*time.Minute + 10*time.Minute, locked: r.IntN(10) == 0}
		at := historyEntry{lsn: 90 + r.IntN(40), index: r.IntN(5), epoch: 1 + r.IntN(4)}
		if r.IntN(6) == 0 {
			at.index = -1 - r.IntN(9)
		}
		for _, status := range []string{"delivered", "failed", "dead", "discarded", "parked", "owed"} {
			if r.IntN(5) > 0 {
				continue
			}
			entry := at
			entry.status = status
			if status == "parked" || status == "owed" {
				entry.epoch = 0
			}
			row.ledger = append(row.ledger, entry)
		}
		h.rows = append(h.rows, row)
	}
	return h
}

// goes says, as plainly as can be, whether the rule lets a row go that is not locked: it is older than an hour, and one row of the ledger
// stands at or before the least prefix.
func (h *history) goes(row *historyRow) bool {
	if h.job == "running" || row.age < time.Hour || len(h.slots) == 0 {
		return false
	}
	for _, s := range h.slots {
		if s.state != "ready" {
			return false
		}
	}
	for _, e := range row.ledger {
		settled := true
		for _, s := range h.slots {
			if e.lsn > s.lsn || e.lsn == s.lsn && e.index > s.index {
				settled = false
			}
		}
		before := e.epoch > 0 // every slot was made later
		for _, s := range h.slots {
			before = before && e.epoch < s.epochs
		}
		if settled || before || e.index < 0 {
			return true
		}
	}
	return false
}

func lsn(n int) string { return fmt.Sprintf("0/%X", n) }

func (h *history) write(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	var b pgx.Batch
	for _, table := range []string{"event_outbox", "outbox_delivery_log", "outbox_parked", "outbox_checkpoints", "outbox_backlog"} {
		b.Queue("delete from " + table)
	}
	for i, slot := range h.slots {
		b.Queue(`insert into outbox_checkpoints (slot_name, state, prefix_lsn, prefix_index, confirmed_lsn, epoch, slot_epoch) values ($1, $2, $3, $4, '0/0', 9, $5)`,
			fmt.Sprint("slot", i), slot.state, lsn(slot.lsn), slot.index, slot.epochs)
	}
	if h.job != "" {
		b.Queue("insert into outbox_backlog (processor_id, mode, status) values (1, 'missing', $1)", h.job)
	}
	for i, row := range h.rows {
		b.Queue(`insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) values ($1, 'o', 'a', 'e', '{}', now() - $2::interval)`,
			rowID(i), row.age.String())
		for j, e := range row.ledger {
			if e.epoch == 0 {
				b.Queue(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event) values ($1, $2, $3, $4, 1, $5, '{}')`,
					100*i+j, lsn(e.lsn), e.index, rowID(i), map[string]string{"parked": "parked", "owed": "dead"}[e.status])
				continue
			}
			b.Queue(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) values ($1, 1, 1, $2, now(), $3, $4, $5)`,
				rowID(i), e.status, lsn(e.lsn), e.index, e.epoch)
		}
	}
	if err := conn.SendBatch(context.Background(), &b).Close(); err != nil {
		t.Fatal(err)
	}
}

func rowID(i int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", i) }

// A pass deletes of a random history what the rule lets go, and nothing else; what is locked goes when it is free.
func TestPassOverRandomHistories(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	const seeds = 100
	locker, reader := s.db.Conn(t), s.db.Conn(t)
	exec := func(sql string, args ...any) {
		if _, err := locker.Exec(context.Background(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	database := s.database()
	for seed := range seeds {
		h := newHistory(rand.New(rand.NewPCG(uint64(seed), 0)))
		h.write(t, reader)
		left := func() []string {
			rows, err := reader.Query(context.Background(), "select id::text from event_outbox order by id")
			if err != nil {
				t.Fatal(err)
			}
			ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			return ids
		}
		var free, stay []string // what is left while rows are locked, and after that
		exec("begin")
		for i, row := range h.rows {
			if row.locked {
				exec("select from event_outbox where id = $1 for no key update", rowID(i))
			}
			if !h.goes(&row) {
				stay = append(stay, rowID(i))
			}
			if !h.goes(&row) || row.locked {
				free = append(free, rowID(i))
			}
		}
		c := cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: time.Hour, Ledger: time.Hour}, Database: database})
		for pass, want := range [][]string{free, stay} {
			r, err := c.Pass(context.Background())
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if got := left(); !slices.Equal(got, want) {
				t.Fatalf("seed %d, pass %d: rows that are left (-want +got):\n%s\n%+v\n%+v", seed, pass, cmp.Diff(want, got), h, r)
			}
			old := 0
			for _, row := range h.rows {
				if row.age >= time.Hour {
					old++
				}
			}
			if pass == 0 && r.Blocked == "" && int(r.Outbox.Deleted+r.Outbox.Kept.Total()) != old {
				t.Fatalf("seed %d: %d rows are old, the report has %+v", seed, old, r.Outbox)
			}
			if pass == 0 {
				exec("rollback")
			}
		}
	}
}
