package ledger_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// deadRows reads what the server says of a table, again until it is as wanted: statistics come late. It gives up before the context of the test
// ends after a minute, so that the failure shows what the server says.
func (l *testLedger) deadRows(table string, wanted func(d *ledger.DeadRows) bool) *ledger.DeadRows {
	l.t.Helper()
	ctx, conn := pgtest.Context(l.t), l.db.Conn(l.t)
	for deadline := time.Now().Add(40 * time.Second); ; {
		all, err := ledger.Schema("public").ReadDeadRows(ctx, conn, ownOutbox)
		if err != nil {
			l.t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(d ledger.DeadRows) bool { return d.Table == table })
		if i >= 0 && wanted(&all[i]) {
			return &all[i]
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("the server says %+v", all)
		}
		l.exec("select pg_sleep(0.1)") // in which it writes its statistics
	}
}

// counts has the server count what l.conn has done. A session says it at most once a second (PGSTAT_MIN_INTERVAL; twice before 15), at the end
// of a transaction. Said after a vacuum, it would be added to what the vacuum has counted.
func (l *testLedger) counts() {
	l.t.Helper()
	l.exec("select pg_sleep(1.1)")
}

// Rows that were deleted beside an open transaction are counted, and so is who keeps them from vacuum: also for a login that may not see
// the transactions of others.
func TestDeadRowsBesideAnOpenTransaction(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec("alter table event_outbox set (autovacuum_enabled = off)")
	l.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'order', 'a', 'made', '{}' from generate_series(1, 1000)")
	reader := l.db.Conn(t)
	pgtest.Exec(t, reader, "begin isolation level repeatable read", "select count(*) from event_outbox")
	l.exec("delete from event_outbox where id in (select id from event_outbox limit 900)")
	l.counts()
	l.exec("vacuum event_outbox")
	d := l.deadRows("public.event_outbox", func(d *ledger.DeadRows) bool { return d.Dead == 900 && d.VacuumedAt != nil })
	if d.Live != 100 || !d.AutovacuumOff || d.At.Before(*d.VacuumedAt) {
		t.Errorf("%+v", d)
	}
	if h := d.Holder; h != nil && h.PID == int(reader.PgConn().PID()) && d.At.Sub(*h.Since) < time.Minute {
		t.Errorf("a transaction of less than a minute is told: %+v", d.Holder)
	}
	name, password := pgtest.NewLogin(t, l.db.Conn(t))
	weak := &testLedger{t: t, db: &pgtest.Database{DSN: pgtest.WithLogin(t, l.db.DSN, name, password)}, conn: l.conn}
	d = weak.deadRows("public.event_outbox", func(d *ledger.DeadRows) bool {
		return d.Holder != nil && d.Holder.PID == int(reader.PgConn().PID())
	})
	if d.Holder.Kind != ledger.HoldsTransaction || d.Holder.Since != nil || d.Dead != 900 {
		t.Errorf("a login without rights sees %+v of %+v", d.Holder, d)
	}
	pgtest.Exec(t, reader, "commit")
	l.exec("vacuum event_outbox")
	l.deadRows("public.event_outbox", func(d *ledger.DeadRows) bool { return d.Dead == 0 && d.Live == 100 })
}

// Rows of partitions are summed up; whether autovacuum is off is that of the one with the most deleted rows.
func TestDeadRowsOfPartitions(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec("drop table event_outbox cascade")
	l.exec("create table event_outbox (id int, at int) partition by range (at)")
	l.exec("create table one partition of event_outbox for values from (0) to (1) with (autovacuum_enabled = off)")
	l.exec("create table two partition of event_outbox for values from (1) to (2)")
	l.exec("insert into event_outbox select i, i % 2 from generate_series(1, 40) i")
	l.exec("delete from event_outbox where id > 20 or at = 0")
	d := l.deadRows("public.event_outbox", func(d *ledger.DeadRows) bool { return d.Dead == 30 })
	if d.Live != 10 || !d.AutovacuumOff || d.VacuumedAt != nil {
		t.Errorf("%+v", d)
	}
}
