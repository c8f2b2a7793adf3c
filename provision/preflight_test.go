package provision

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

func (o *outboxDB) preflight() (Facts, error) {
	o.t.Helper()
	return Preflight(testContext(o.t), o.conn, PreflightConfig{Source: o.cfg.Source, ReplicationUser: o.conn.Config().User})
}

// skipBefore ends a test that needs a newer server.
func (o *outboxDB) skipBefore(version int) {
	o.t.Helper()
	var have int
	if err := o.conn.QueryRow(testContext(o.t), "select current_setting('server_version_num')::int").Scan(&have); err != nil {
		o.t.Fatal(err)
	}
	if have < version {
		o.t.Skipf("PostgreSQL %d cannot do that", have/10000)
	}
}

func TestPreflightFacts(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(f.ServerVersion, " ", f.SystemIdentifier, " ", f.Table.OID, " ", f.Table.EventIDType(), " ", f.Slot.Plugin, " ", f.Slot.ConfirmedFlush)
	want := o.text(`select concat_ws(' ', current_setting('server_version_num'), system_identifier, 'event_outbox'::regclass::oid, 'uuid', plugin, confirmed_flush_lsn)
		from pg_control_system(), pg_replication_slots where slot_name = $1`, o.cfg.Slot)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Nothing was set up: everything that is missing is named at once.
func TestPreflightNamesEverything(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
	_, err := o.preflight()
	wantProblem(t, err, exitcode.Config, "table public.event_outbox does not exist", "lacks the tables outbox_delivery_log, outbox_processors", `run "outbox-cdc init"`)
	o = newOutbox(t)
	o.exec("drop view event_outbox_status", "alter table event_outbox drop column tenant_id", "alter table event_outbox alter payload type int using 1")
	_, err = o.preflight()
	wantProblem(t, err, exitcode.Config, `"tenant_id"`, "is missing", `"payload"`, "int4", `publication "outbox_cdc" does not exist`, "was not made yet")
}

// What goes wrong after a setup, and what preflight says.
func TestPreflightAfterSetup(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		since  int // server_version_num that knows the statement
		before []string
		code   exitcode.Code
		words  []string
	}{
		"no publication": {
			before: []string{"drop publication outbox_cdc"},
			code:   exitcode.Config, words: []string{`publication "outbox_cdc" does not exist`, `run "outbox-cdc init"`},
		},
		"a publication of all tables": {
			before: []string{"drop publication outbox_cdc", "create publication outbox_cdc for all tables"},
			code:   exitcode.Config, words: []string{"of all tables", "source.publication"},
		},
		"a publication without inserts": {
			before: []string{"alter publication outbox_cdc set (publish = 'update')"},
			code:   exitcode.Config, words: []string{"does not publish inserts", `alter publication "outbox_cdc" set (publish = 'insert')`},
		},
		"a publication of another table": {
			before: []string{"create table other ()", "alter publication outbox_cdc set table other"},
			code:   exitcode.Config, words: []string{"does not publish table public.event_outbox", `add table "public"."event_outbox"`, "it publishes public.other: if"},
		},
		"an outbox of another name": {
			before: []string{"alter table event_outbox rename to events"},
			code:   exitcode.Config, words: []string{"table public.event_outbox does not exist", "publishes public.events", "set source.table to its name", "docs/operations.md#swapped"},
		},
		"a publication of a table of the same name": {
			before: []string{"create schema other create table event_outbox ()", "alter publication outbox_cdc set table other.event_outbox"},
			code:   exitcode.Config, words: []string{"does not publish table public.event_outbox"},
		},
		"a row filter": {
			since:  150000,
			before: []string{"alter publication outbox_cdc set table event_outbox where (tenant_id = 'a')"},
			code:   exitcode.Config, words: []string{"by a filter", "tenant_id", "set table"},
		},
		"a column list": {
			since:  150000,
			before: []string{"alter publication outbox_cdc set table event_outbox (id, aggregate_type, aggregate_id, event_type, created_at)"},
			code:   exitcode.Config, words: []string{"leaves out columns", "event_version, payload, metadata, max_retries, tenant_id, correlation_id, causation_id"},
		},
		"a publication of the ledger": {
			since:  150000,
			before: []string{"alter publication outbox_cdc set tables in schema public"},
			code:   exitcode.Config, words: []string{"the ledger's own tables"},
		},
		"a publication of the log": {
			before: []string{"alter publication outbox_cdc add table outbox_delivery_log"},
			code:   exitcode.Config, words: []string{"the ledger's own tables"},
		},
		"a publication of a partition of the log, of whatever name": {
			before: []string{
				"create type outbox_delivery_log_20310101 as enum ()", "select outbox_make_partitions('2031-01-01 12:00Z', 0)",
				"do $$ begin execute 'alter publication outbox_cdc add table ' || (select relname from pg_class where relname ~ '^outbox_delivery_log_20310101_.{8}$'); end $$",
			},
			code: exitcode.Config, words: []string{"the ledger's own tables"},
		},
		"a column that was renamed": {
			before: []string{"alter table event_outbox rename aggregate_id to aggregateid"},
			code:   exitcode.Config, words: []string{`"aggregate_id"`, "aggregateid", "source.columns"},
		},
		"types that users have made": {
			before: []string{
				"create type mood as enum ('good')", "create domain json_text as text", "create schema other", "create type other.mood as enum ('good')",
				"drop view event_outbox_status", "alter table event_outbox alter payload type mood using null, alter metadata type json_text, alter event_version drop default, alter event_version type other.mood using null",
			},
			code: exitcode.Config, words: []string{
				`"payload" (payload) is of type public.mood,`, `"metadata" (metadata) is of type public.json_text (a domain over text),`,
				`"event_version" (event_version) is of type other.mood,`,
			},
		},
		"a part of the ledger is gone": {
			before: []string{"drop table outbox_parked cascade"},
			code:   exitcode.Config, words: []string{"lacks the tables outbox_parked", `run "outbox-cdc init"`},
		},
		"no slot": {
			before: []string{"select pg_drop_replication_slot('SLOT')"},
			code:   exitcode.SlotLost, words: []string{"SLOT", "is gone", StartAnew},
		},
		"no checkpoint": {
			before: []string{"delete from outbox_checkpoints"},
			code:   exitcode.SlotLost, words: []string{"was not made by"},
		},
		"a checkpoint that is half made": {
			before: []string{"update outbox_checkpoints set state = 'building', prefix_lsn = null"},
			code:   exitcode.Config, words: []string{"half made", `run "outbox-cdc init" again`},
		},
		"a checkpoint of another cluster": {
			before: []string{"update outbox_checkpoints set system_identifier = '7'"},
			code:   exitcode.SlotLost, words: []string{"system identifier 7", StartAnew},
		},
		"a slot of another plugin": {
			before: []string{"select pg_drop_replication_slot('SLOT')", "select pg_create_logical_replication_slot('SLOT', 'test_decoding')"},
			code:   exitcode.SlotLost, words: []string{"not a logical slot of pgoutput"},
		},
		"a physical slot": {
			before: []string{"select pg_drop_replication_slot('SLOT')", "select pg_create_physical_replication_slot('SLOT')"},
			code:   exitcode.SlotLost, words: []string{"not a logical slot of pgoutput"},
		},
		"a temporary slot": {
			before: []string{"select pg_drop_replication_slot('SLOT')", "select pg_create_logical_replication_slot('SLOT', 'pgoutput', true)"},
			code:   exitcode.SlotLost, words: []string{"is temporary"},
		},
		"the gravest first": {
			before: []string{"drop publication outbox_cdc", "select pg_drop_replication_slot('SLOT')"},
			code:   exitcode.SlotLost, words: []string{"is gone", `publication "outbox_cdc" does not exist`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newSetup(t)
			o.skipBefore(test.since)
			o.exec(test.before...)
			_, err := o.preflight()
			for i := range test.words {
				test.words[i] = strings.ReplaceAll(test.words[i], "SLOT", o.cfg.Slot)
			}
			wantProblem(t, err, test.code, test.words...)
			o.exec("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'SLOT' and (temporary or database is null)")
		})
	}
}

func TestPreflightPartitionedTable(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
	o.exec(`create table "my Events" (key bigint, kind text, of uuid, body bytea, at timestamptz not null) partition by range (at)`,
		`create table p1 partition of "my Events" for values from ('2026-01-01') to ('2030-01-01')`)
	o.cfg.Table = "public.my Events"
	o.cfg.Columns = decoder.Columns{ID: "key", AggregateType: "kind", AggregateID: "of", EventType: "kind", Payload: "body", CreatedAt: "at"}
	table, err := FindTable(testContext(t), o.dsn, o.cfg.Source)
	if err != nil || table == nil || table.EventIDType() != "text" {
		t.Fatalf("%+v, %v", table, err)
	}
	options := migrations.Options{Schema: "cdc", Mapped: true, EventIDType: "text"}
	if err := migrations.Apply(testContext(t), o.dsn, options); err != nil {
		t.Fatal(err)
	}
	o.cfg.LedgerSchema = "cdc"
	o.setup()
	if _, err := o.preflight(); err != nil {
		t.Fatal(err)
	}
	o.exec("alter publication outbox_cdc set (publish_via_partition_root = false)")
	_, err = o.preflight()
	wantProblem(t, err, exitcode.Config, "under the names of its partitions", "publish_via_partition_root = true")
	o.exec("alter publication outbox_cdc set (publish_via_partition_root = true)", `alter table public."my Events" alter key type uuid using null`)
	_, err = o.preflight()
	wantProblem(t, err, exitcode.Config, `the ledger in schema "cdc" was made for ids of type text`, "source.ledger_schema")
}

func TestPublicationDrifts(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	check := func() error {
		_, err := CheckDrift(testContext(t), o.conn, o.cfg.Source, f.Table.OID)
		return err
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	o.exec("alter publication outbox_cdc drop table event_outbox")
	wantProblem(t, check(), exitcode.Config, "does not publish table")
	// The table is known by its OID: under another name it is the same.
	o.exec("alter table event_outbox rename to renamed", "alter publication outbox_cdc add table renamed")
	if err := check(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = CheckDrift(ctx, o.conn, o.cfg.Source, f.Table.OID)
	if exitcode.Of(err) != exitcode.Failure {
		t.Errorf("a server that is away is taken for drift: %v", err)
	}
}

func TestWALLevelReplica(t *testing.T) {
	t.Parallel()
	o := ownServer(t, pgtest.Start(t, servers.PostgresOptions{Settings: map[string]string{"wal_level": "replica", "fsync": "off"}}))
	_, err := Setup(testContext(t), o.cfg)
	wantProblem(t, err, exitcode.Config, "wal_level is replica", "set wal_level = logical", "restart")
	if o.checkpoint() != "none" || o.text("select count(*)::text from pg_publication") != "0" {
		t.Error("a refusal made something")
	}
	_, err = o.preflight()
	wantProblem(t, err, exitcode.Config, "wal_level is replica")
}

func TestNoSlotLeft(t *testing.T) {
	t.Parallel()
	o := ownServer(t, pgtest.Start(t, servers.PostgresOptions{Settings: map[string]string{"max_replication_slots": "1", "fsync": "off"}}))
	o.exec("select pg_create_physical_replication_slot('other')")
	_, err := Setup(testContext(t), o.cfg)
	wantProblem(t, err, exitcode.Config, "all replication slots are in use", "raise max_replication_slots")
}

func TestLostSlot(t *testing.T) {
	t.Parallel()
	o := ownServer(t, pgtest.Start(t, servers.PostgresOptions{Settings: map[string]string{
		"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB", "fsync": "off",
	}}))
	o.setup()
	o.exec("create table filler (t text)")
	for range 4 {
		o.exec("insert into filler select repeat(md5(n::text), 40) from generate_series(1, 20000) n", "select pg_switch_wal()", "checkpoint")
	}
	_, err := o.preflight()
	wantProblem(t, err, exitcode.SlotLost, "was invalidated", StartAnew)
	_, err = Setup(testContext(t), o.cfg)
	wantProblem(t, err, exitcode.SlotLost, "was invalidated")
	if o.slot() == "none" {
		t.Error("init dropped it")
	}
}

// newRole is a login of the server that ends with the test.
func (o *outboxDB) newRole() (name, password string) {
	o.t.Helper()
	name = "role_" + strings.ToLower(rand.Text())
	o.exec("create role " + name + " login password 'x'")
	o.t.Cleanup(func() {
		for _, sql := range []string{"drop owned by " + name, "drop role " + name} {
			if _, err := o.conn.Exec(context.Background(), sql); err != nil {
				o.t.Error(err)
			}
		}
	})
	return name, "x"
}

func (o *outboxDB) connectAs(name, password string) *pgx.Conn {
	o.t.Helper()
	conn, err := connect(testContext(o.t), o.as(name, password))
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
	name, password := o.newRole()
	conn := o.connectAs(name, password)
	cfg := PreflightConfig{Source: o.cfg.Source, ReplicationUser: name}
	_, err := Preflight(testContext(t), conn, cfg)
	wantProblem(t, err, exitcode.Privilege,
		"grant usage on schema closed to \""+name, "grant select on table closed.event_outbox to", "grant insert, select on table public.outbox_delivery_log to",
		"grant delete, insert, select, update on table public.outbox_checkpoints to", "grant execute on function public.outbox_make_partitions(timestamptz, int) to",
		"may not replicate", `alter role "`+name+`" replication`)
	// What it says is what has to be done.
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if _, remedy, ok := strings.Cut(line, "as the owner of the tables: "); ok {
			o.exec(strings.Split(remedy, "; ")...)
		}
	}
	o.exec("alter role " + name + " replication")
	if _, err := Preflight(testContext(t), conn, cfg); err != nil {
		t.Error(err)
	}
}

func TestReplicationPrivilege(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	name, password := o.newRole()
	o.cfg.ReplicationDSN = o.as(name, password)
	_, err := Setup(testContext(t), o.cfg)
	wantProblem(t, err, exitcode.Privilege, "may not replicate", "alter role")
	_, err = connectReplication(testContext(t), o.cfg.ReplicationDSN)
	wantProblem(t, err, exitcode.Privilege, "may not replicate", "alter role")
	// An owner's rights are missing as well.
	o.exec(strings.Join(grantStatements(o.cfg.Source, name), "; "), "alter role "+name+" replication")
	o.cfg.DSN = o.cfg.ReplicationDSN
	_, err = Setup(testContext(t), o.cfg)
	wantProblem(t, err, exitcode.Privilege, "create publication", "--dsn or OUTBOX_ADMIN_URL")
}

// The printed grants are enough for init, for what a run asks for, and for destroy but for the publication.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
	app, appPassword := o.newRole()
	stream, streamPassword := o.newRole()
	text, err := migrations.SQL(migrations.Options{Schema: "public"})
	if err != nil {
		t.Fatal(err)
	}
	text += "revoke create on schema public from public;" // as it is from PostgreSQL 15 on
	text += SQLText(o.cfg.Source, Roles{SQL: app, Replication: stream})
	for range 2 { // it can be run again
		if _, err := o.conn.Exec(testContext(t), text); err != nil {
			t.Fatal(err)
		}
	}
	o.cfg.DSN, o.cfg.ReplicationDSN = o.as(app, appPassword), o.as(stream, streamPassword)
	if err := migrations.Apply(testContext(t), o.cfg.DSN, migrations.Options{Schema: "public"}); err != nil {
		t.Fatal(err)
	}
	if r := o.setup(); !r.SlotCreated || r.PublicationCreated {
		t.Errorf("%+v", r)
	}
	conn := o.connectAs(app, appPassword)
	cfg := PreflightConfig{Source: o.cfg.Source, ReplicationUser: stream}
	f, err := Preflight(testContext(t), conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CheckDrift(testContext(t), conn, o.cfg.Source, f.Table.OID); err != nil {
		t.Error(err)
	}
	if _, err := RegisterProcessors(testContext(t), conn, o.cfg.Source, "c", []Processor{{Name: "a", Type: "kafka"}}); err != nil {
		t.Error(err)
	}
	if _, err := conn.Exec(testContext(t), "set search_path = public"); err != nil {
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
		if _, err := conn.Exec(testContext(t), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')",
		"delete from event_outbox", "delete from outbox_delivery_log", "update outbox_delivery_log set epoch = 0", "create table mine ()",
	} {
		if _, err := conn.Exec(testContext(t), sql); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	r, err := Destroy(testContext(t), DestroyConfig{Source: o.cfg.Source, DSN: o.cfg.DSN, ReplicationDSN: o.cfg.ReplicationDSN})
	wantProblem(t, err, exitcode.Privilege, "drop publication", "--dsn or OUTBOX_ADMIN_URL")
	if !r.SlotDropped || r.PublicationDropped || r.CheckpointDeleted {
		t.Errorf("%+v", r)
	}
	if r, err = Destroy(testContext(t), DestroyConfig{Source: o.cfg.Source, DSN: o.dsn, ReplicationDSN: o.dsn}); err != nil || !r.CheckpointDeleted {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRegisterProcessors(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	register := func(connector string, ps ...Processor) map[string]int32 {
		t.Helper()
		ids, err := RegisterProcessors(testContext(t), o.conn, o.cfg.Source, connector, ps)
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	kafka := Processor{Name: "events", Type: "kafka", Configuration: []byte(`{"topic": "a"}`), FromStart: true}
	if diff := cmp.Diff(map[string]int32{"events": 1}, register("c", kafka)); diff != "" {
		t.Error(diff)
	}
	o.exec("update outbox_processors set is_active = false")
	version := func() string { return o.text("select xmin::text from outbox_processors where id = 1") }
	before := version()
	register("c", kafka)
	if version() != before {
		t.Error("the same again was written")
	}
	kafka.Configuration, kafka.FromStart = []byte(`{"topic": "b"}`), false
	if diff := cmp.Diff(map[string]int32{"events": 1, "log": 2}, register("c", kafka, Processor{Name: "log", Type: "stdout"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]int32{"events": 3}, register("d", kafka)); diff != "" {
		t.Error(diff)
	}
	got := o.text(`select string_agg(format('%s %s/%s %s %s %s %s', id, connector, processor_name, processor_type, configuration, is_active, since = '-infinity'), '; ' order by id)
		from outbox_processors`)
	want := `1 c/events kafka {"topic": "b"} f t; 2 c/log stdout {} t f; 3 d/events kafka {"topic": "b"} t f`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A slot of another database may be somebody's who is away: nobody is told to drop it.
func TestSlotOfAnotherDatabase(t *testing.T) {
	t.Parallel()
	var p problems
	judge(Source{Slot: "s"}, server{database: "here"}, &Slot{Plugin: plugin, Database: "there"}, nil, &p)
	if len(p) != 1 || !strings.Contains(p[0].Error(), `belongs to database "there"`) || strings.Contains(p[0].Error(), "drop") {
		t.Errorf("problems %v, want one that names the database and drops nothing", p)
	}
}
