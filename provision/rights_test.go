package provision

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

func (o *outboxDB) connectAs(name, password string) *pgx.Conn {
	o.t.Helper()
	conn, err := connect(pgtest.Context(o.t), o.as(name, password))
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func TestPreflightPrivileges(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	o.exec("create schema closed", "alter table event_outbox set schema closed")
	o.cfg.Table = "closed.event_outbox"
	name, password := pgtest.NewLogin(t, o.conn)
	conn := o.connectAs(name, password)
	cfg := PreflightConfig{Source: o.cfg.Source, ReplicationUser: name}
	_, err := Preflight(pgtest.Context(t), conn, cfg)
	exitcodetest.Want(t, err, exitcode.Privilege,
		"grant usage on schema closed to \""+name, "grant select on table closed.event_outbox to", "grant insert, select on table public.outbox_delivery_log to",
		"grant delete, insert, select, update on table public.outbox_checkpoints to", "grant execute on function public.outbox_make_partitions(timestamptz, int) to",
		"may not replicate", `alter role "`+name+`" replication`)
	// What the message tells the owner to do is enough.
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if _, remedy, ok := strings.Cut(line, "as the owner of the tables: "); ok {
			o.exec(strings.Split(remedy, "; ")...)
		}
	}
	o.exec("alter role " + name + " replication")
	if _, err := Preflight(pgtest.Context(t), conn, cfg); err != nil {
		t.Error(err)
	}
}

func TestReplicationPrivilege(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	name, password := pgtest.NewLogin(t, o.conn)
	o.cfg.ReplicationDSN = o.as(name, password)
	_, err := Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Privilege, "may not replicate", "alter role")
	_, err = connectReplication(pgtest.Context(t), o.cfg.ReplicationDSN)
	exitcodetest.Want(t, err, exitcode.Privilege, "may not replicate", "alter role")
	// The right to create a publication is missing too.
	o.exec(strings.Join(grantStatements(o.cfg.Source, name), "; "), "alter role "+name+" replication")
	o.cfg.DSN = o.cfg.ReplicationDSN
	_, err = Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Privilege, "create publication", "--dsn or OUTBOX_ADMIN_URL")
}

// The printed grants are enough for init, for the statements of a run, and for destroy, except that only an owner may drop the
// publication.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
	app, appPassword := pgtest.NewLogin(t, o.conn)
	stream, streamPassword := pgtest.NewLogin(t, o.conn)
	text, err := migrations.SQL(migrations.Options{Schema: "public"})
	if err != nil {
		t.Fatal(err)
	}
	text += "revoke create on schema public from public;" // the default from PostgreSQL 15 on
	text += SQLText(o.cfg.Source, Roles{SQL: app, Replication: stream})
	for range 2 { // it can be run again
		if _, err := o.conn.Exec(pgtest.Context(t), text); err != nil {
			t.Fatal(err)
		}
	}
	o.cfg.DSN, o.cfg.ReplicationDSN = o.as(app, appPassword), o.as(stream, streamPassword)
	if err := migrations.Apply(pgtest.Context(t), o.cfg.DSN, migrations.Options{Schema: "public"}); err != nil {
		t.Fatal(err)
	}
	if r := o.setup(); !r.SlotCreated || r.PublicationCreated {
		t.Errorf("%+v", r)
	}
	conn := o.connectAs(app, appPassword)
	cfg := PreflightConfig{Source: o.cfg.Source, ReplicationUser: stream}
	f, err := Preflight(pgtest.Context(t), conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CheckDrift(pgtest.Context(t), conn, o.cfg.Source, f.Table.OID); err != nil {
		t.Error(err)
	}
	if _, err := o.cfg.ledger().RegisterProcessors(pgtest.Context(t), conn, "c", []ledger.Processor{{Name: "a", Type: "kafka"}}); err != nil {
		t.Error(err)
	}
	if _, err := conn.Exec(pgtest.Context(t), "set search_path = public"); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"select outbox_make_partitions(now() + interval '40 days')",
		"insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) values (1, 1, 'delivered', now(), '0/1', 0, 1)",
		"insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event) values (1, '0/1', 0, 1, 'dead', '{}')",
		"delete from outbox_parked",
		"update outbox_checkpoints set epoch = epoch + 1",
		"insert into outbox_backlog (processor_id, mode, status) values (1, 'replay', 'new')",
		"insert into outbox_metrics (processor_id, metric_type, time_window, value) values (1, 'x', '[2026-01-01,2026-01-02)', 1)",
		"select count(*) from event_outbox",
	} {
		if _, err := conn.Exec(pgtest.Context(t), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')",
		"delete from event_outbox", "delete from outbox_delivery_log", "update outbox_delivery_log set epoch = 0", "create table mine ()",
	} {
		if _, err := conn.Exec(pgtest.Context(t), sql); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	r, err := Destroy(pgtest.Context(t), DestroyConfig{Source: o.cfg.Source, DSN: o.cfg.DSN, ReplicationDSN: o.cfg.ReplicationDSN})
	exitcodetest.Want(t, err, exitcode.Privilege, "drop publication", "--dsn or OUTBOX_ADMIN_URL")
	if !r.SlotDropped || r.PublicationDropped || r.CheckpointDeleted {
		t.Errorf("%+v", r)
	}
	if r, err = Destroy(pgtest.Context(t), DestroyConfig{Source: o.cfg.Source, DSN: o.dsn, ReplicationDSN: o.dsn}); err != nil || !r.CheckpointDeleted {
		t.Errorf("%+v, %v", r, err)
	}
}
