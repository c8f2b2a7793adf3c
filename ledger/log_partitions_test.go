package ledger_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const week = 7 * 24 * time.Hour

// logged makes the partition of a UTC day, and in it a row of sink 1.
func (l *testLedger) logged(day, lsn string, index int64, epoch int) {
	l.t.Helper()
	l.exec("select outbox_make_partitions($1::timestamptz, 0)", day+" 12:00Z")
	l.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		values (gen_random_uuid(), 1, 1, 'delivered', $1::timestamptz, $2::pg_lsn, $3, $4)`, day+" 12:00Z", lsn, index, epoch)
}

// outcomes is what a list of partitions says, without those that are young. Their partitions of now and the days to come are not a test's.
func outcomes(all []ledger.LogPartition) []string {
	list := []string{}
	for _, p := range all {
		if p.Outcome != ledger.LogYoung {
			list = append(list, strings.TrimSuffix(fmt.Sprintf("%s %s: %s", strings.TrimPrefix(p.Name, "outbox_delivery_log_"), p.Outcome, p.Reason), ": "))
		}
	}
	return list
}

// drop calls the function until it drops nothing more.
func (l *testLedger) drop(db ledger.Querier) []string {
	l.t.Helper()
	all := []string{}
	for {
		looked, err := ledger.Schema("public").DropLogPartition(context.Background(), db, ledger.LogCutoff{Age: week})
		if err != nil {
			l.t.Fatal(err)
		}
		all = append(all, outcomes(looked)...)
		if len(looked) == 0 || looked[len(looked)-1].Outcome != ledger.LogDropped {
			return all
		}
	}
}

// plan is what the function says that drop would do.
func (l *testLedger) plan() []string {
	l.t.Helper()
	all, err := ledger.Schema("public").PlanLogDrop(pgtest.Context(l.t), l.conn, ledger.LogCutoff{Age: week})
	if err != nil {
		l.t.Fatal(err)
	}
	return outcomes(all)
}

func (l *testLedger) wantDrops(want ...string) {
	l.t.Helper()
	if diff := cmp.Diff(want, l.drop(l.conn)); diff != "" {
		l.t.Errorf("-want +got:\n%s", diff)
	}
}

// Days are dropped from the oldest one on, as long as their rows are settled for every slot.
func TestDropLogPartitions(t *testing.T) {
	t.Parallel()
	const gone = "20200101 dropped"
	for name, tc := range map[string]struct {
		setUp []string
		want  []string // of the days 20200101, 20200102, 20200103
		plan  []string // what is said before that; nil: the same
	}{
		"all settled": {want: []string{gone, "20200102 dropped", "20200103 dropped"}},
		"at the prefix": {
			[]string{"update outbox_checkpoints set prefix_lsn = '0/20', prefix_index = 5"},
			[]string{gone, "20200102 dropped", "20200103 unsettled: slot s has not settled all of it, and it does not exist any more: delete from public.outbox_checkpoints where slot_name = 's'"},
			nil,
		},
		"index beyond the prefix": {
			[]string{"update outbox_checkpoints set prefix_lsn = '0/20', prefix_index = 4"},
			[]string{gone, "20200102 unsettled: slot s has not settled all of it, and it does not exist any more: delete from public.outbox_checkpoints where slot_name = 's'"},
			[]string{gone, "20200102 unsettled: slot s has not settled all of it, and it does not exist any more: delete from public.outbox_checkpoints where slot_name = 's'", "20200103 behind: an older partition has to stay"},
		},
		"another slot": {
			[]string{"insert into outbox_checkpoints (slot_name, state, prefix_lsn, prefix_index, confirmed_lsn, slot_epoch) values ('other', 'ready', '0/11', 0, '0/11', 1)"},
			[]string{gone, "20200102 unsettled: slot other has not settled all of it, and it does not exist any more: delete from public.outbox_checkpoints where slot_name = 'other'"},
			[]string{gone, "20200102 unsettled: slot other has not settled all of it, and it does not exist any more: delete from public.outbox_checkpoints where slot_name = 'other'", "20200103 behind: an older partition has to stay"},
		},
		"of an older slot": {
			[]string{"update outbox_checkpoints set prefix_lsn = '0/1', slot_epoch = 4"},
			[]string{gone, "20200102 dropped", "20200103 dropped"},
			nil,
		},
		"never streamed": {
			[]string{"update outbox_checkpoints set prefix_lsn = '0/1'", "update outbox_delivery_log set tx_index = -7"},
			[]string{gone, "20200102 dropped", "20200103 dropped"},
			nil,
		},
		"failed, of no sink": {
			[]string{"update outbox_checkpoints set prefix_lsn = '0/1'", "update outbox_delivery_log set status = 'failed', processor_id = 0"},
			[]string{"20200101 unsettled: slot s has not settled all of it, and it does not exist any more: delete from public.outbox_checkpoints where slot_name = 's'"},
			[]string{
				"20200101 unsettled: slot s has not settled all of it, and it does not exist any more: delete from public.outbox_checkpoints where slot_name = 's'",
				"20200102 behind: an older partition has to stay", "20200103 behind: an older partition has to stay",
			},
		},
		"building": {
			[]string{"insert into outbox_checkpoints (slot_name, state) values ('new', 'building')"},
			[]string{"20200101 held: slot new is being made; run \"outbox-cdc init\" if no init is running"},
			[]string{
				"20200101 held: slot new is being made; run \"outbox-cdc init\" if no init is running",
				"20200102 behind: an older partition has to stay", "20200103 behind: an older partition has to stay",
			},
		},
		"no position": {
			[]string{"update outbox_checkpoints set prefix_index = null"},
			[]string{"20200101 held: the checkpoint of slot s has no position"},
			[]string{
				"20200101 held: the checkpoint of slot s has no position", "20200102 behind: an older partition has to stay", "20200103 behind: an older partition has to stay",
			},
		},
		"job": {
			[]string{"insert into outbox_backlog (processor_id, mode, status) values (1, 'missing', 'done'), (1, 'missing', 'running')"},
			[]string{"20200101 held: job 2 of outbox_backlog is unfinished"},
			[]string{
				"20200101 held: job 2 of outbox_backlog is unfinished", "20200102 behind: an older partition has to stay", "20200103 behind: an older partition has to stay",
			},
		},
		"no slot": {[]string{"delete from outbox_checkpoints"}, []string{gone, "20200102 dropped", "20200103 dropped"}, nil},
		"of others": {
			[]string{
				"create role stranger_of_log", "alter table outbox_delivery_log_20200102 owner to stranger_of_log",
				"create table rest partition of outbox_delivery_log default", "create table old partition of outbox_delivery_log for values from (minvalue) to ('1999-01-01Z') partition by range (completed_at)",
				"create table minutes partition of outbox_delivery_log for values from ('2020-01-04Z') to ('2020-01-04 00:01Z')",
			},
			[]string{
				"old foreign: it is no plain table; detach it or drop it yourself", gone,
				"old foreign: it is no plain table; detach it or drop it yourself", "20200102 foreign: it belongs to role stranger_of_log; detach it or drop it yourself", "20200103 dropped",
				"old foreign: it is no plain table; detach it or drop it yourself", "20200102 foreign: it belongs to role stranger_of_log; detach it or drop it yourself", "minutes dropped",
				"old foreign: it is no plain table; detach it or drop it yourself", "20200102 foreign: it belongs to role stranger_of_log; detach it or drop it yourself",
			},
			[]string{
				"old foreign: it is no plain table; detach it or drop it yourself", gone, "20200102 foreign: it belongs to role stranger_of_log; detach it or drop it yourself", "20200103 dropped",
				"minutes dropped", "rest foreign: it is the default partition; detach it or drop it yourself",
			},
		},
		"a view needs it": {
			[]string{"create view mine as select * from outbox_delivery_log_20200102"},
			[]string{gone, "20200102 refused: cannot drop table public.outbox_delivery_log_20200102 because other objects depend on it; view public.mine depends on table public.outbox_delivery_log_20200102"},
			[]string{gone, "20200102 dropped", "20200103 dropped"}, // nobody knows before
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			l.logged("2020-01-01", "0/10", 0, 3)
			l.logged("2020-01-02", "0/20", 5, 3)
			l.logged("2020-01-03", "0/30", 0, 3)
			for _, sql := range tc.setUp {
				role := "r_" + l.db.Name
				if strings.HasPrefix(sql, "create role") {
					t.Cleanup(func() { l.exec("drop owned by " + role); l.exec("drop role " + role) })
				}
				l.exec(strings.ReplaceAll(sql, "stranger_of_log", role))
			}
			want := func(list []string) []string {
				return strings.Split(strings.ReplaceAll(strings.Join(list, "\n"), "stranger_of_log", "r_"+l.db.Name), "\n")
			}
			plan := tc.plan
			if plan == nil {
				plan = tc.want
			}
			before := l.query("select string_agg(relname, ' ' order by relname) from pg_class")
			if diff := cmp.Diff(want(plan), l.plan()); diff != "" {
				t.Errorf("dry run, -want +got:\n%s", diff)
			}
			if after := l.query("select string_agg(relname, ' ' order by relname) from pg_class"); after != before {
				t.Error("a dry run has changed something")
			}
			l.wantDrops(want(tc.want)...)
		})
	}
}

// What was dropped is noted with the end of the newest day that had rows, and does not go back.
func TestDroppedUntil(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	ctx := pgtest.Context(t)
	until := func(want string) {
		t.Helper()
		r, err := ledger.Schema("public").ReadRetention(ctx, l.conn)
		got := ""
		if !r.LogDroppedUntil.IsZero() {
			got = r.LogDroppedUntil.UTC().Format(time.DateOnly)
		}
		if err != nil || got != want {
			t.Errorf("dropped until %q, %v, want %q", got, err, want)
		}
	}
	until("")
	l.exec("select outbox_make_partitions('2020-01-01 12:00Z', 0)")
	l.wantDrops("20200101 dropped")
	until("")
	l.logged("2020-01-05", "0/20", 0, 3)
	l.wantDrops("20200105 dropped")
	until("2020-01-06")
	l.logged("2020-01-03", "0/10", 0, 3) // a clock that was two days off
	l.exec("select outbox_make_partitions('2020-01-08 12:00Z', 0)")
	l.wantDrops("20200103 dropped", "20200108 dropped")
	until("2020-01-06")

	// The report beside it.
	if err := ledger.Schema("public").WriteRetentionReport(ctx, l.conn, json.RawMessage(`{"deleted": 7}`)); err != nil {
		t.Fatal(err)
	}
	r, err := ledger.Schema("public").ReadRetention(ctx, l.conn)
	if err != nil || string(r.Report) != `{"deleted": 7}` || time.Since(r.LastPassAt).Abs() > time.Minute {
		t.Errorf("%+v, %v", r, err)
	}
	until("2020-01-06")
	l.exec("delete from outbox_retention") // somebody has emptied it
	if r, err := ledger.Schema("public").ReadRetention(ctx, l.conn); err != nil || !r.LogDroppedUntil.IsZero() {
		t.Errorf("%+v, %v", r, err)
	}
	l.logged("2020-01-01", "0/10", 0, 3)
	l.wantDrops("20200101 dropped")
	until("2020-01-02")
}

// A partition that may still be written stays, whatever the retention is, and so does one whose rows are needed.
func TestYoungLogPartitionsStay(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	ctx := pgtest.Context(t)
	l.exec("delete from outbox_checkpoints")
	last := func(c ledger.LogCutoff) string {
		t.Helper()
		for {
			all, err := ledger.Schema("public").DropLogPartition(ctx, l.conn, c)
			if err != nil || len(all) == 0 {
				t.Fatal(all, err)
			}
			if p := all[len(all)-1]; p.Outcome != ledger.LogDropped {
				return fmt.Sprint(p.Outcome, " ", p.From.UTC().Format(time.DateOnly))
			}
		}
	}
	l.logged("2020-01-01", "0/10", 0, 3)
	l.logged("2020-01-02", "0/10", 0, 3)
	if got := last(ledger.LogCutoff{Needed: time.Date(2020, 1, 2, 12, 0, 0, 0, time.UTC)}); got != "young 2020-01-02" {
		t.Error(got)
	}
	today := l.query("select (now() at time zone 'UTC')::date::text")
	if got := last(ledger.LogCutoff{}); got != "young "+today && got != "young "+l.query("select (now() at time zone 'UTC')::date::text") {
		t.Error(got, today)
	}
	all, err := ledger.Schema("public").LogPartitions(ctx, l.conn)
	if err != nil || len(all) != 8 || all[0].From.UTC().Format(time.DateOnly) < today || all[0].Until.Sub(all[0].From) != 24*time.Hour || all[0].Bytes == 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// The slot that holds the log is named with what is so of it, and the statements that it says help.
func TestLogHeldBySlot(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	slot := l.db.Slot(t)
	l.exec("select pg_create_logical_replication_slot($1::name, 'pgoutput')", slot)
	l.exec("update outbox_checkpoints set slot_name = $1, updated_at = '2020-01-01 12:34:56Z'", slot)
	l.logged("2020-01-01", "0/99", 0, 3)
	said := l.drop(l.conn)[0]
	if want := "20200101 unsettled: slot " + slot + " has not settled all of it, and nobody streams from it since 2020-01-01 12:34 UTC: start its connector, or remove it: "; !strings.HasPrefix(said, want) {
		t.Fatalf("got  %s\nwant %s", said, want)
	}
	_, remedy, _ := strings.Cut(said, "or remove it: ")
	drop, forget, _ := strings.Cut(remedy, "; ")
	l.exec(drop)
	said = l.drop(l.conn)[0]
	if want := "20200101 unsettled: slot " + slot + " has not settled all of it, and it does not exist any more: " + forget; said != want {
		t.Errorf("got  %s\nwant %s", said, want)
	}
	l.exec(forget)
	l.wantDrops("20200101 dropped")
}
