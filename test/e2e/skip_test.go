package e2e

import (
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
)

// skipper is a world whose stream cannot pass a transaction, and an instance that runs skip through a tap.
type skipper struct {
	*world
	tap    *tap
	runs   *connector // skip
	status map[string]string
}

// poison commits an event, then a transaction of three of which only the first can be decoded, and then five more events. It returns the LSN by
// which skip knows the transaction. The events that skip is to leave out are noted.
func (s *skipper) poison(c *connector) (lsn string) {
	s.t.Helper()
	s.insert(1)
	statements := []string{
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'b-1', 'made', '{}')",
		"alter table event_outbox rename payload to body",
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, body) values ('order', 'b-2', 'made', '{}') returning id::text",
		"alter table event_outbox rename body to payload",
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('invoice', 'b-3', 'made', '{}') returning id::text",
	}
	conn := connect(s.t, s.dsn)
	defer conn.Close(s.t.Context())
	tx, err := conn.Begin(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for i, sql := range statements {
		var id string
		if i == 2 || i == 4 {
			err = tx.QueryRow(s.t.Context(), sql).Scan(&id)
			s.status[id] = "skipped"
		} else {
			_, err = tx.Exec(s.t.Context(), sql)
		}
		if err != nil {
			s.t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := tx.Commit(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.insert(5)

	c.start() // delivers all that comes before the second event
	c.isWithin(30*time.Second, isFailed, "session", "payload", "3 times in a row", "outbox-cdc skip --lsn")
	h, err := c.health()
	if err != nil {
		s.t.Fatal(err)
	}
	m := regexp.MustCompile(`outbox-cdc skip --lsn ([0-9A-F]+/[0-9A-F]+)`).FindStringSubmatch(h.Components["session"].Detail)
	if m == nil {
		s.t.Fatalf("no command in %s", h)
	}
	c.term()
	return m[1]
}

// state is what skip changes: checkpoint, slot and log.
func (s *skipper) state() string {
	s.t.Helper()
	return ask[string](s.world, `select format('checkpoint %s/%s confirmed %s epoch %s, slot %s, %s skipped', prefix_lsn, prefix_index, confirmed_lsn, epoch,
		confirmed_flush_lsn, (select count(*) from outbox_delivery_log where processor_id = 0))
		from outbox_checkpoints join pg_replication_slots using (slot_name) where slot_name = $1`, s.slot)
}

// killed runs skip, and kills it at a step.
func (s *skipper) killed(m moment, lsn string) {
	s.t.Helper()
	before, skipped := s.state(), len(s.status)
	to, err := pglogrepl.ParseLSN(lsn)
	if err != nil {
		s.t.Fatal(err)
	}
	to++
	hit := s.tap.arm(m, 0)
	s.runs.startCommand("skip", "--lsn", lsn, "--yes")
	await(s.t, m, hit)
	if m == skipCommits { // at once: idle_in_transaction_session_timeout ends it
		if open := ask[int](s.world, `select count(*) from pg_stat_activity where datname = $1 and state = 'idle in transaction'
			and query like 'update %outbox_checkpoints set prefix_lsn%'`, s.database); open != 1 {
			s.t.Errorf("%d transactions are open that have moved the checkpoint, want 1", open)
		}
	}
	s.reached(m, before, to, skipped)
	if !s.runs.running() {
		s.t.Fatalf("skip has ended by itself:\n%s", tail(s.runs.last().stderr, 10))
	}
	s.runs.kill()
	s.tap.disarm()
	s.snapshot()
}

// reached checks that skip, which is held at a step, has changed what it has until then, and nothing else.
func (s *skipper) reached(m moment, before string, to pglogrepl.LSN, skipped int) {
	s.t.Helper()
	var checkpoint, slot pglogrepl.LSN
	switch m {
	case skipReads, skipWrites, skipCommits:
		if now := s.state(); now != before {
			s.t.Errorf("%s: %s became %s", m, before, now)
		}
		return
	}
	checkpoint = ask[pglogrepl.LSN](s.world, "select confirmed_lsn from outbox_checkpoints where slot_name = $1 and prefix_lsn = confirmed_lsn and prefix_index = -1", s.slot)
	slot = s.confirmed()
	logged := ask[int](s.world, "select count(*) from outbox_delivery_log where processor_id = 0 and status = 'discarded' and event_id is not null")
	if checkpoint != to || logged != skipped || (slot == to) != (m == skipHasMoved) || slot > to {
		s.t.Errorf("%s: checkpoint %s, slot %s, %d rows of the log, want %s and %d", m, checkpoint, slot, logged, to, skipped)
	}
}

// kill -9 of skip at each of its steps. A proxy to PostgreSQL stops it there, and what checkpoint, slot and log say meanwhile proves which step
// it was. Another skip finishes it, and so does a connector if the first one had moved the checkpoint.
func TestKillsOfSkip(t *testing.T) {
	t.Parallel()
	for _, m := range []moment{skipReads, skipWrites, skipCommits, skipIsCommitted, skipMovesSlot, skipHasMoved} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{})
			s := &skipper{world: w, tap: newTap(t, w.pg.Addr()), status: map[string]string{}}
			c := w.connector()
			w.source["dsn"] = through(t, w.dsn, s.tap.proxy.Addr())
			s.runs = w.connector()
			again := func(lsn string) {
				t.Helper()
				out, code := c.command(nil, "skip", "--lsn", lsn, "--yes", "--config", c.config)
				wantCode, tells := 0, "SKIPPED transaction "
				switch m {
				case skipIsCommitted, skipMovesSlot:
					tells = "an earlier skip had moved the checkpoint"
				case skipHasMoved: // it has done all that it is for, and what comes next can be read
					wantCode, tells = 1, "comes first: it can be read"
				}
				if int(code) != wantCode || !containsAll(out, []string{tells}) {
					t.Errorf("again: exit code %d, want %d and %q\n%s", code, wantCode, tells, out)
				}
			}

			// Another skip goes on, while no connector runs.
			lsn := s.poison(c)
			s.killed(m, lsn)
			again(lsn)
			c.start()
			c.ready("leader")
			w.settled(w.truth())
			c.term()

			// A connector goes on.
			lsn = s.poison(c)
			s.killed(m, lsn)
			c.start()
			switch m {
			case skipReads, skipWrites, skipCommits: // it names the command, and may go on running beside that
				c.isWithin(30*time.Second, isFailed, "session", fmt.Sprintf("outbox-cdc skip --lsn %s", lsn))
				again(lsn)
			}
			c.ready("leader")
			w.verify(expectation{status: s.status})
			switch m {
			case skipIsCommitted, skipMovesSlot:
				c.says("the slot was moved past it")
			}
			c.term()
		})
	}
}
