package ledger_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Whoever uses the log or the partition is named, and nothing waits for it. When it has gone, the partition is dropped.
func TestLogPartitionInUse(t *testing.T) {
	t.Parallel()
	const day = "outbox_delivery_log_20200101"
	for name, uses := range map[string]string{
		"reader":                "select from outbox_delivery_log where completed_at < '2020-01-02Z'",
		"reader of another day": "select from outbox_delivery_log where completed_at > now()",
		"reader of one day":     "select from " + day,
		"writer":                "insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) values (1, 1, 'delivered', '2020-01-01 13:00Z', '0/99', 0, 3)",
		"recorder":              "insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) values (1, 1, 'delivered', now(), '0/99', 0, 3)",
		"job":                   "insert into outbox_backlog (processor_id, mode, status) values (1, 'missing', 'new')",
		"another drop":          "select pg_advisory_xact_lock('pg_inherits'::regclass::oid::int, 'outbox_delivery_log'::regclass::oid::int)",
		"report":                "update outbox_retention set report = '{}'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			l.logged("2020-01-01", "0/10", 0, 3)
			other := l.db.Conn(t)
			for _, sql := range []string{"insert into outbox_retention (id) values (1) on conflict do nothing", "begin", uses} {
				if _, err := other.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			got := l.drop(l.conn)
			took := time.Since(began)
			want := fmt.Sprintf("20200101 busy: somebody uses it: pid %d", other.PgConn().PID())
			if name == "another drop" || name == "report" { // they hold neither the log nor the partition
				want = "20200101 busy: somebody used it a moment ago"
			}
			if len(got) != 1 || got[0] != want {
				t.Errorf("got  %q\nwant %s", got, want)
			}
			if took > time.Second {
				t.Errorf("it took %s", took)
			}
			if _, err := other.Exec(t.Context(), "rollback"); err != nil {
				t.Fatal(err)
			}
			l.wantDrops("20200101 dropped")
		})
	}
}

// A transaction that holds the log for long makes nobody queue behind the drop: it does not even ask for the lock.
func TestNobodyQueuesBehindTheDrop(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.logged("2020-01-01", "0/10", 0, 3)
	reader := l.db.Conn(t)
	for _, sql := range []string{"begin", "select from outbox_delivery_log"} {
		if _, err := reader.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	watch, calls := l.db.Conn(t), l.db.Conn(t)
	ctx, stop := context.WithCancel(t.Context())
	var asked int
	var failed error
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil && failed == nil {
			var n int
			failed = watch.QueryRow(t.Context(), `select count(*) from pg_locks where not granted and mode = 'AccessExclusiveLock'
				and relation = 'outbox_delivery_log'::regclass and database = (select oid from pg_database where datname = current_database())`).Scan(&n)
			asked += n
		}
	})
	for range 10 {
		if got := l.drop(calls); len(got) != 1 || !strings.Contains(got[0], "busy") {
			t.Errorf("%q", got)
		}
	}
	stop()
	group.Wait()
	if failed != nil || asked > 0 {
		t.Errorf("seen waiting %d times, %v", asked, failed)
	}
}

// A row that another session commits into the partition between the look without a lock and the lock counts. So does one that it commits
// after the transaction of the drop has begun, which is why that transaction has to be read committed.
func TestDropSeesLateRows(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.logged("2020-01-01", "0/10", 0, 3)
	tx, err := l.db.Conn(t).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.Schema("public").DropLogPartition(t.Context(), tx, ledger.LogCutoff{Age: week}); err == nil || !strings.Contains(err.Error(), "read committed") {
		t.Errorf("in a transaction with an older snapshot: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	// The drop has looked at the partition without a lock, and waits for the lock, which the writer has: for a tenth of a second.
	writer := l.db.Conn(t)
	for range 20 {
		if _, err := writer.Exec(t.Context(), `begin; insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			values (1, 1, 'delivered', '2020-01-01 13:00Z', '0/99', 0, 3)`); err != nil {
			t.Fatal(err)
		}
		done := make(chan []string, 1)
		dropper := l.db.Conn(t)
		go func() { done <- l.drop(dropper) }()
		l.waitsFor(`select exists (select from pg_locks where not granted and mode = 'ShareLock' and relation = 'outbox_delivery_log_20200101'::regclass
			and database = (select oid from pg_database where datname = current_database()))`)
		if _, err := writer.Exec(t.Context(), "commit"); err != nil {
			t.Fatal(err)
		}
		got := <-done
		if strings.Contains(strings.Join(got, ""), "busy") { // a slow machine: the lock was given up before the commit
			if _, err := writer.Exec(t.Context(), "delete from outbox_delivery_log where commit_lsn = '0/99'"); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if len(got) != 1 || !strings.Contains(got[0], "20200101 unsettled") {
			t.Errorf("%q", got)
		}
		return
	}
	t.Error("the lock was never given in time")
}

// The recorder goes on while days are dropped, and partitions are made.
func TestDropBesideOthers(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	loop := func(conn *pgx.Conn, sqls ...string) {
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				for _, sql := range sqls {
					if _, err := conn.Exec(t.Context(), strings.ReplaceAll(sql, "%d", fmt.Sprint(n%300))); err != nil {
						t.Errorf("%s: %v", sql, err)
						return
					}
				}
			}
		})
	}
	connect := func() *pgx.Conn {
		conn := l.db.Conn(t)
		if _, err := conn.Exec(t.Context(), "set lock_timeout = '2s'"); err != nil { // as a connector has it
			t.Fatal(err)
		}
		return conn
	}
	loop(connect(), `insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		select gen_random_uuid(), 1, 1, 'delivered', now(), '0/1', 0, 3 from generate_series(1, 100)`)
	loop(connect(), "select count(*) from outbox_delivery_log where event_id = '00000000-0000-0000-0000-000000000000'")
	loop(connect(), "select outbox_make_partitions('2031-01-01Z'::timestamptz + %d * interval '1 day', 0)")
	db := l.db.Conn(t)
	var slowest time.Duration
	for n := range 30 {
		l.logged(fmt.Sprintf("2020-01-%02d", n+1), "0/10", 0, 3)
		for deadline := time.Now().Add(time.Minute); ; {
			began := time.Now()
			looked, err := ledger.Schema("public").DropLogPartition(pgtest.Context(t), db, ledger.LogCutoff{Age: week})
			if err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(began))
			if last := looked[len(looked)-1]; last.Outcome == ledger.LogDropped {
				break
			} else if last.Outcome != ledger.LogBusy || time.Now().After(deadline) {
				t.Fatalf("%+v", last)
			}
		}
	}
	stop()
	group.Wait()
	t.Logf("the slowest call took %s", slowest)
	if got := l.query("select count(*)::text from outbox_delivery_log where completed_at < '2021-01-01Z'"); got != "0" {
		t.Errorf("%s rows are left", got)
	}
}
