package provision

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

func (o *outboxDB) preflight() (Facts, error) {
	o.t.Helper()
	return Preflight(pgtest.Context(o.t), o.conn, PreflightConfig{Source: o.cfg.Source, ReplicationUser: o.conn.Config().User})
}

func TestPreflightFacts(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(f.version, " ", f.Identity.SystemIdentifier, " ", f.Identity.Timeline, " ", f.Identity.DatabaseOID, " ", f.Identity.DatabaseName, " ", f.Table.OID, " ", f.Table.EventIDType(), " ", f.slot.plugin, " ", f.slot.confirmedFlush)
	want := o.text(`select concat_ws(' ', current_setting('server_version_num'), system_identifier, timeline_id, (select oid from pg_database where datname = current_database()), current_database(), 'event_outbox'::regclass::oid, 'uuid', plugin, confirmed_flush_lsn)
		from pg_control_system(), pg_control_checkpoint(), pg_replication_slots where slot_name = $1`, o.cfg.Slot)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// If nothing was set up, the error names everything that is missing.
func TestPreflightNamesEverything(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
	_, err := o.preflight()
	exitcodetest.Want(t, err, exitcode.Config, "table public.event_outbox does not exist", "lacks the tables outbox_delivery_log, outbox_processors", `run "outbox-cdc init"`)
	o = newOutbox(t)
	o.exec("drop view event_outbox_status", "alter table event_outbox drop column tenant_id", "alter table event_outbox alter payload type int using 1")
	_, err = o.preflight()
	exitcodetest.Want(t, err, exitcode.Config, `"tenant_id"`, "is missing", `"payload"`, "int4", `publication "outbox_cdc" does not exist`, "was not made yet")
}

// Each case breaks something after a setup, and says what Preflight reports.
func TestPreflightAfterSetup(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		since  int // the oldest server_version_num that knows the statement
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
			code:   exitcode.Config, words: []string{"table public.event_outbox does not exist", "publishes public.events", "set source.table to its name", "docs/table.md#swapped"},
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
		"a ledger of an older version": {
			before: []string{"alter table outbox_delivery_log drop column member", "alter table outbox_processors drop column state"},
			code:   exitcode.Config, words: []string{"outbox_delivery_log", "lacks the column member", "outbox_processors", "lacks the column state", `run "outbox-cdc init"`},
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
			code:   exitcode.SlotLost, words: []string{"system identifier 7", `run "outbox-cdc adopt"`},
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
			if version := o.version(); version < test.since {
				t.Skipf("PostgreSQL %d cannot do that", version/10000)
			}
			o.exec(test.before...)
			_, err := o.preflight()
			for i := range test.words {
				test.words[i] = strings.ReplaceAll(test.words[i], "SLOT", o.cfg.Slot)
			}
			exitcodetest.Want(t, err, test.code, test.words...)
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
	table, err := FindTable(pgtest.Context(t), o.dsn, o.cfg.Source)
	if err != nil || table == nil || table.EventIDType() != "text" {
		t.Fatalf("%+v, %v", table, err)
	}
	options := migrations.Options{Schema: "cdc", Mapped: true, EventIDType: "text"}
	if err := migrations.Apply(pgtest.Context(t), o.dsn, options); err != nil {
		t.Fatal(err)
	}
	o.cfg.LedgerSchema = "cdc"
	o.setup()
	if _, err := o.preflight(); err != nil {
		t.Fatal(err)
	}
	o.exec("alter publication outbox_cdc set (publish_via_partition_root = false)")
	_, err = o.preflight()
	exitcodetest.Want(t, err, exitcode.Config, "under the names of its partitions", "publish_via_partition_root = true")
	o.exec("alter publication outbox_cdc set (publish_via_partition_root = true)", `alter table public."my Events" alter key type uuid using null`)
	_, err = o.preflight()
	exitcodetest.Want(t, err, exitcode.Config, `the ledger in schema "cdc" was made for ids of type text`, "source.ledger_schema")
}

func TestWALLevelReplica(t *testing.T) {
	t.Parallel()
	o := ownServer(t, pgtest.Start(t, servers.PostgresOptions{Settings: map[string]string{"wal_level": "replica", "fsync": "off"}}))
	_, err := Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Config, "wal_level is replica", "set wal_level = logical", "restart")
	if o.checkpoint() != "none" || o.text("select count(*)::text from pg_publication") != "0" {
		t.Error("a refusal made something")
	}
	_, err = o.preflight()
	exitcodetest.Want(t, err, exitcode.Config, "wal_level is replica")
}

func TestNoSlotLeft(t *testing.T) {
	t.Parallel()
	o := ownServer(t, pgtest.Start(t, servers.PostgresOptions{Settings: map[string]string{"max_replication_slots": "1", "fsync": "off"}}))
	o.exec("select pg_create_physical_replication_slot('other')")
	_, err := Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Config, "all replication slots are in use", "raise max_replication_slots")
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
	exitcodetest.Want(t, err, exitcode.SlotLost, "was invalidated", StartAnew)
	_, err = Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.SlotLost, "was invalidated")
	if o.slot() == "none" {
		t.Error("init dropped it")
	}
}

// A slot of another database may belong to somebody who is away, so the message does not tell anybody to drop it.
func TestSlotOfAnotherDatabase(t *testing.T) {
	t.Parallel()
	var p problems
	judge(Source{Slot: "s"}, server{Identity: ledger.Identity{DatabaseName: "here"}}, &slotRow{plugin: outputPlugin, database: "there"}, nil, &p)
	if len(p) != 1 || !strings.Contains(p[0].Error(), `belongs to database "there"`) || strings.Contains(p[0].Error(), "drop") {
		t.Errorf("problems %v, want one that names the database and drops nothing", p)
	}
}
