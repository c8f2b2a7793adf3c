package connector

import (
	"context"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const theSlot = "(select slot_name from outbox_checkpoints)"

// A database that may be a copy, or whose checkpoint is of another history, is refused: nothing is delivered, and nothing changed.
func TestForeignHistoryIsRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ sql, text string }{
		"checkpoint of the future":       {"update outbox_checkpoints set confirmed_lsn = 'FF/0'", "ahead of the server"},
		"another cluster":                {"update outbox_checkpoints set system_identifier = '1', timeline = 99, database_oid = 1, source_hosts = 'db:5432'", "system identifier 1 on db:5432,"},
		"another database":               {"update outbox_checkpoints set database_oid = 1", "with oid 1,"},
		"renamed":                        {"update outbox_checkpoints set database_name = 'shop'", `database "shop"`},
		"promoted or restored elsewhere": {"update outbox_checkpoints set timeline = 99, source_hosts = 'db:5432'", "timeline 99 on db:5432, and this one is on timeline 1 and reached by "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newConnectorBench(t)
			b.event("a", "one")
			b.exec(tt.sql)
			const row = "select to_jsonb(c) - array ['epoch', 'owner', 'updated_at', 'recorder_pid', 'recorder_started'] from outbox_checkpoints c"
			before := b.query(row)
			b.run().wantRefusal(exitcode.SlotLost, tt.text)
			if got := b.received(); got != "" {
				t.Errorf("received %q", got)
			}
			if after := b.query(row); after != before {
				t.Errorf("the checkpoint was %s, and is %s", before, after)
			}
		})
	}
}

// jobsQuery shows the jobs.
const jobsQuery = `select coalesce(string_agg(format('%s %s base %s start %s', processor_name, reason, (base_lsn, base_index), start_lsn), '; ' order by processor_name), '')
	from outbox_backlog b join outbox_processors p on p.id = processor_id`

// A slot that stands ahead of the checkpoint may have passed events that the ledger does not know. The session files a job for each sink from
// the checkpoint's prefix on, moves the checkpoint to the slot, and streams.
func TestSlotAheadIsReconciled(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string][]string{
		"advanced by hand": {"select pg_replication_slot_advance(" + theSlot + ", pg_current_wal_lsn())"},
		"made anew by hand": {
			"select pg_drop_replication_slot(" + theSlot + ")", "select pg_create_logical_replication_slot(" + theSlot + ", 'pgoutput')",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newConnectorBench(t)
			r := b.runAndDeliverOne()
			r.stop()
			before := b.query("select format('(%s,%s)', prefix_lsn, prefix_index) from outbox_checkpoints")
			b.event("a", "missed")
			for _, statement := range sql {
				b.exec(statement)
			}
			slot := b.query("select confirmed_flush_lsn from pg_replication_slots where slot_name = " + theSlot)
			r = b.run()
			b.event("a", "two")
			want := "s reconcile base " + before + " start " + slot
			b.eventually("select count(*) from outbox_backlog", "1")
			if got := b.query(jobsQuery); got != want {
				t.Errorf("jobs: %s, want %s", got, want)
			}
			b.eventually("select confirmed_lsn >= '"+slot+"' and (prefix_lsn, prefix_index) >= ('"+slot+"', -1) from outbox_checkpoints", "true")
			b.eventually(logQuery, "one:delivered missed:delivered two:delivered")
			r.stop()
			r = b.run() // what was reconciled stays so
			r.stop()
			if got := b.query("select count(*) from outbox_backlog"); got != "1" {
				t.Errorf("%s jobs after a second session, want 1", got)
			}
		})
	}
}

// A server on another timeline that is reached by the same hosts was promoted. Timeline 0 says that a person has adopted the database. In both
// cases the slot does not show what it has passed.
func TestPromotedServerIsReconciled(t *testing.T) {
	t.Parallel()
	for timeline, says := range map[string]string{"99": "the server was promoted", "0": "a person has said that the outbox goes on with this database"} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			b := newConnectorBench(t)
			r := b.runAndDeliverOne()
			r.stop()
			b.exec("update outbox_checkpoints set timeline = " + timeline)
			position := b.query("select format('base (%s,%s) start %s', prefix_lsn, prefix_index, confirmed_lsn) from outbox_checkpoints")
			log := b.keepLog()
			r = b.run()
			b.eventually("select timeline from outbox_checkpoints", "1")
			if got, want := b.query(jobsQuery), "s reconcile "+position; got != want {
				t.Errorf("jobs: %s, want %s", got, want)
			}
			r.stop()
			if text := log.String(); strings.Count(text, says) != 1 || strings.Count(text, "the outbox is compared with the ledger") != 1 {
				t.Errorf("log:\n%s", text)
			}
		})
	}
}

// The first session writes what a ledger of an older version, or an init, does not know. A session that finds other hosts says so once.
func TestSessionWritesIdentity(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.exec("update outbox_checkpoints set database_oid = null, database_name = null, source_hosts = null")
	const identity = "select concat_ws(' ', database_oid, database_name, source_hosts) from outbox_checkpoints"
	want := b.query("select concat_ws(' ', oid, datname) from pg_database where datname = current_database()")
	r := b.run()
	b.eventually("select source_hosts is not null from outbox_checkpoints", "true")
	r.stop()
	got := b.query(identity)
	if !strings.HasPrefix(got, want+" ") {
		t.Errorf("the checkpoint has %q, want %q and the hosts", got, want)
	}
	if n := b.query("select count(*) from outbox_backlog"); n != "0" {
		t.Errorf("%s jobs, want none", n)
	}
	b.exec("update outbox_checkpoints set source_hosts = 'elsewhere:5432'")
	log := b.keepLog()
	for range 2 {
		r = b.run()
		b.eventually("select source_hosts <> 'elsewhere:5432' and recorder_pid is not null from outbox_checkpoints", "true")
		r.stop()
	}
	if n := strings.Count(log.String(), "it has moved, or it is a copy"); n != 1 {
		t.Errorf("the move was told %d times, want once:\n%s", n, log)
	}
	if again := b.query(identity); again != got {
		t.Errorf("after a move the checkpoint has %q, want %q", again, got)
	}
}

// historyDatabase is a database that only notes how a session goes on.
type historyDatabase struct {
	database
	written []ledger.Continuation
}

func (d *historyDatabase) continueAt(_ context.Context, _ int32, c ledger.Continuation) error {
	d.written = append(d.written, c)
	return nil
}

// What a session writes and files, and where it starts, by what it finds.
func TestReconcile(t *testing.T) {
	t.Parallel()
	home := ledger.Identity{SystemIdentifier: "7", Timeline: 1, DatabaseOID: 5, DatabaseName: "shop", Hosts: "a:1,b:1"}
	with := func(change func(*ledger.Identity)) ledger.Identity {
		i := home
		change(&i)
		return i
	}
	at := func(lsn pglogrepl.LSN, index int64) checkpoint.Position {
		return checkpoint.Position{LSN: lsn, Index: index}
	}
	beyond := func(ps ...checkpoint.Position) map[checkpoint.Key]struct{} {
		all := map[checkpoint.Key]struct{}{}
		for _, p := range ps {
			all[checkpoint.Key{Processor: 1, Position: p}] = struct{}{}
		}
		return all
	}
	for name, tt := range map[string]struct {
		now    ledger.Identity
		slot   pglogrepl.LSN
		then   ledger.Identity
		prefix checkpoint.Position
		want   ledger.Start
		jobs   pglogrepl.LSN // where they start; 0: there are none
		writes bool
	}{
		"nothing has happened": {
			now: home, slot: 100, then: home, prefix: at(100, 2),
			want: ledger.Start{Clean: true, Checkpoint: ledger.Checkpoint{Prefix: at(100, 2), Confirmed: 110}, Settled: beyond(at(120, 0), at(300, 1))},
		},
		"the slot has fallen back": {
			now: home, slot: 50, then: home, prefix: at(100, 2),
			want: ledger.Start{Clean: true, Checkpoint: ledger.Checkpoint{Prefix: at(100, 2), Confirmed: 110}, Settled: beyond(at(120, 0), at(300, 1))},
		},
		"moved": {
			now: home, slot: 100, then: with(func(i *ledger.Identity) { i.Hosts = "c:1" }), prefix: at(100, 2), writes: true,
			want: ledger.Start{Clean: true, Checkpoint: ledger.Checkpoint{Prefix: at(100, 2), Confirmed: 110}, Settled: beyond(at(120, 0), at(300, 1))},
		},
		"ahead": {
			now: home, slot: 200, then: home, prefix: at(100, 2), writes: true, jobs: 200,
			want: ledger.Start{Checkpoint: ledger.Checkpoint{Prefix: at(200, -1), Confirmed: 200}, Settled: beyond(at(300, 1))},
		},
		"ahead, and the prefix is in a transaction behind the slot": {
			now: home, slot: 200, then: home, prefix: at(250, 2), writes: true, jobs: 200,
			want: ledger.Start{Checkpoint: ledger.Checkpoint{Prefix: at(250, 2), Confirmed: 200}, Settled: beyond(at(300, 1))},
		},
		"promoted": {
			now: with(func(i *ledger.Identity) { i.Timeline = 2 }), slot: 100, then: home, prefix: at(100, 2), writes: true, jobs: 110,
			want: ledger.Start{Checkpoint: ledger.Checkpoint{Prefix: at(100, 2), Confirmed: 110}, Settled: beyond(at(120, 0), at(300, 1))},
		},
		"adopted": {
			now: home, slot: 200, then: with(func(i *ledger.Identity) { i.Timeline = 0 }), prefix: at(100, 2), writes: true, jobs: 200,
			want: ledger.Start{Checkpoint: ledger.Checkpoint{Prefix: at(200, -1), Confirmed: 200}, Settled: beyond(at(300, 1))},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := &historyDatabase{}
			c := &Connector{cfg: Config{Logger: slog.New(slog.DiscardHandler)}, db: db}
			start := ledger.Start{
				Clean: true, Checkpoint: ledger.Checkpoint{Identity: tt.then, Prefix: tt.prefix, Confirmed: 110}, Settled: beyond(at(120, 0), at(300, 1)),
			}
			got, err := c.settleHistory(t.Context(), history{now: tt.now, slot: tt.slot, written: 1000}, start, map[string]int32{"a": 1, "b": 2})
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Identity = tt.now
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("starts with\n%+v, want\n%+v", got, tt.want)
			}
			var want []ledger.Continuation
			if tt.writes {
				want = []ledger.Continuation{{Identity: tt.now, Prefix: tt.want.Prefix, Confirmed: tt.want.Confirmed}}
			}
			for _, processor := range []int32{1, 2} {
				if tt.jobs > 0 {
					want[0].Jobs = append(want[0].Jobs, ledger.NewJob{Processor: processor, Reason: ledger.JobOfReconcile, Base: tt.prefix, Start: tt.jobs})
				}
			}
			if !reflect.DeepEqual(db.written, want) {
				t.Errorf("wrote\n%+v, want\n%+v", db.written, want)
			}
		})
	}
}
