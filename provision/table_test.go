package provision

import (
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// partitioned makes event_outbox a partitioned table with one partition, p1.
func (o *outboxDB) partitioned() {
	o.t.Helper()
	o.exec("drop view event_outbox_status", "alter table event_outbox rename to plain",
		"create table event_outbox (like plain including defaults) partition by range (created_at)",
		"create table p1 partition of event_outbox for values from ('2026-01-01') to ('2030-01-01')")
}

// Some changes of the outbox keep rows out of the stream. init, each start, and a running connector refuse each of them, and what
// the message tells a person to do is enough.
func TestRowsThatTheStreamLacks(t *testing.T) {
	t.Parallel()
	foreign := "create foreign data wrapper w; create server s foreign data wrapper w; "
	for name, test := range map[string]struct {
		since       int // the oldest server_version_num that knows the statement
		until       int // the oldest one to which the case does not apply; 0 if it applies to all
		partitioned bool
		sql         string
		words       []string
		remedy      string
	}{
		"a child": {
			sql:    "create table child () inherits (event_outbox)",
			words:  []string{"inherit from public.event_outbox", "are no partitions", "public.child", `no inherit "public"."event_outbox"`, "docs/table.md#inheritance"},
			remedy: `alter table child no inherit "public"."event_outbox"`,
		},
		"a child of a child in another schema": {
			sql:   "create table child () inherits (event_outbox); create schema far; create table far.grandchild () inherits (child)",
			words: []string{"far.grandchild, public.child;"}, remedy: `alter table child no inherit event_outbox`,
		},
		"many children": {
			sql:    "do $$ begin for i in 1..9 loop execute format('create table c%s () inherits (event_outbox)', i); end loop; end $$",
			words:  []string{"public.c1, public.c2, public.c3, public.c4, public.c5 and 4 more"},
			remedy: "drop table c1, c2, c3, c4, c5, c6, c7, c8, c9",
		},
		"a rule": {
			sql:    `create table other (like event_outbox); create rule "to Other" as on insert to event_outbox do instead insert into other values (new.*)`,
			words:  []string{`rule "to Other" does something else`, `drop rule "to Other" on "public"."event_outbox"`},
			remedy: `drop rule "to Other" on "public"."event_outbox"`,
		},
		"a rule for some rows": {
			sql:    `create rule r as on insert to event_outbox where new.tenant_id = 'test' do instead nothing`,
			words:  []string{`rule "r"`},
			remedy: `alter table event_outbox disable rule r`,
		},
		"a foreign partition": {
			partitioned: true,
			sql:         foreign + "create foreign table p2 partition of event_outbox for values from ('2030-01-01') to ('2031-01-01') server s",
			words:       []string{"partition public.p2 of public.event_outbox is a foreign table", "docs/table.md#inheritance"},
			remedy:      "alter table event_outbox detach partition p2",
		},
		"an unlogged partition": {
			partitioned: true, sql: `create unlogged table "P 2" partition of event_outbox for values from ('2030-01-01') to ('2031-01-01')`,
			words:  []string{"partition public.P 2 of public.event_outbox is unlogged", `alter table public."P 2" set logged`},
			remedy: `alter table public."P 2" set logged`,
		},
		"a partition that becomes unlogged": {
			partitioned: true, sql: "alter table p1 set unlogged",
			words: []string{"partition public.p1 of public.event_outbox is unlogged"}, remedy: "alter table p1 set logged",
		},
		"an unlogged partition of a partition": {
			partitioned: true,
			sql: `create table p2 partition of event_outbox for values from ('2030-01-01') to ('2031-01-01') partition by list (tenant_id);
				create unlogged table p2a partition of p2 for values in ('a')`,
			words: []string{"partition public.p2a of public.event_outbox is unlogged"}, remedy: "alter table p2a set logged",
		},
		"a generated column before 18": {
			until: 180000, sql: `alter table event_outbox drop column tenant_id cascade;
				alter table event_outbox add column tenant_id text generated always as (aggregate_type || '!') stored`,
			words: []string{
				`column "tenant_id" of public.event_outbox is generated`, `alter table "public"."event_outbox" alter column "tenant_id" drop expression`,
				"docs/table.md#generated",
			},
			remedy: `alter table "public"."event_outbox" alter column "tenant_id" drop expression`,
		},
		"a virtual column": {
			since: 180000, sql: `alter table event_outbox drop column tenant_id cascade;
				alter table event_outbox add column tenant_id text generated always as (aggregate_type || '!') virtual`,
			words:  []string{`column "tenant_id" of public.event_outbox is generated and not stored`, "docs/table.md#generated"},
			remedy: "alter table event_outbox drop column tenant_id; alter table event_outbox add column tenant_id text",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			if version := o.version(); version < test.since || test.until > 0 && version >= test.until {
				return // the case is about other servers
			}
			if test.partitioned {
				o.partitioned()
			}
			o.exec(test.sql)
			_, err := FindTable(pgtest.Context(t), o.dsn, o.cfg.Source)
			exitcodetest.Want(t, err, exitcode.Config, test.words...)
			_, err = Setup(pgtest.Context(t), o.cfg)
			exitcodetest.Want(t, err, exitcode.Config, test.words...)
			if got := o.slot(); got != "none" {
				t.Errorf("init has left %s", got)
			}
			o.exec(test.remedy)
			o.setup()
			if _, err := o.preflight(); err != nil {
				t.Errorf("after the remedy: %v", err)
			}
		})
		t.Run(name+", later", func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			if version := o.version(); version < test.since || test.until > 0 && version >= test.until {
				return // as above
			}
			if test.partitioned {
				o.partitioned()
			}
			o.setup()
			f, err := o.preflight()
			if err != nil {
				t.Fatal(err)
			}
			o.exec(test.sql)
			_, err = o.preflight()
			exitcodetest.Want(t, err, exitcode.Config, test.words...)
			_, err = o.drift(f)
			exitcodetest.Want(t, err, exitcode.Config, test.words...)
			o.exec(test.remedy)
			if moved, err := o.drift(f); moved != "" || err != nil {
				t.Errorf("after the remedy: %s, %v", moved, err)
			}
		})
	}
}

// These changes look similar, and lose no row.
func TestRowsThatTheStreamHas(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	o.exec("create table other (like event_outbox)", "create rule also as on insert to event_outbox do also insert into other values (new.*)",
		"create rule off as on insert to event_outbox do instead nothing", "alter table event_outbox disable rule off",
		"create rule u as on update to event_outbox do instead nothing",
		"create table parent (id uuid not null)", "alter table event_outbox inherit parent", // the outbox's rows remain its own
		"alter table event_outbox add column noise text generated always as (aggregate_type || '!') stored") // the column is not needed
	o.setup()
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	if moved, err := o.drift(f); moved != "" || err != nil {
		t.Errorf("%s, %v", moved, err)
	}
}

// From PostgreSQL 18 on, a stored generated column is in the stream if the publication says so.
func TestGeneratedColumnFrom18(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	if o.version() < 180000 {
		return // TestRowsThatTheStreamLacks tests older servers
	}
	o.exec("alter table event_outbox drop column tenant_id cascade",
		"alter table event_outbox add column tenant_id text generated always as (aggregate_type || '!') stored")
	_, err := Setup(pgtest.Context(t), o.cfg)
	create := `create publication "outbox_cdc" for table "public"."event_outbox" with ` +
		`(publish = 'insert', publish_via_partition_root = true, publish_generated_columns = stored)`
	exitcodetest.Want(t, err, exitcode.Config, "tenant_id", create, "docs/table.md#generated")
	if o.slot() != "none" || o.text("select count(*)::text from pg_publication") != "0" {
		t.Error("a refusal made something")
	}
	o.exec(create)
	o.setup()
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	o.exec("alter publication outbox_cdc set (publish_generated_columns = none)")
	_, err = o.drift(f)
	exitcodetest.Want(t, err, exitcode.Config, "generated: tenant_id", `alter publication "outbox_cdc" set (publish_generated_columns = stored)`)
	o.exec(`alter publication "outbox_cdc" set (publish_generated_columns = stored)`,
		"alter publication outbox_cdc set table event_outbox (id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, "+
			"created_at, max_retries, correlation_id, causation_id)")
	_, err = o.preflight()
	exitcodetest.Want(t, err, exitcode.Config, "generated: tenant_id", `alter publication "outbox_cdc" set table "public"."event_outbox"; alter publication`)
	o.exec(`alter publication "outbox_cdc" set table "public"."event_outbox"`)
	if _, err := o.preflight(); err != nil {
		t.Error(err)
	}
}

// A table in a schema that is published as a whole can be made unlogged. A mapped outbox may be such a table.
func TestUnloggedInAPublishedSchema(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	if o.version() < 150000 {
		return // older servers have no publications of schemas
	}
	o.exec("create schema shop", "create table shop.events (like event_outbox including all)",
		"create publication outbox_cdc for tables in schema shop with (publish = 'insert', publish_via_partition_root = true)")
	o.cfg.Table = "shop.events"
	o.setup()
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	o.exec("alter table shop.events set unlogged")
	_, err = o.drift(f)
	exitcodetest.Want(t, err, exitcode.Config, "table shop.events is unlogged", `alter table "shop"."events" set logged`)
	o.exec(`alter table "shop"."events" set logged`)
	if moved, err := o.drift(f); moved != "" || err != nil {
		t.Errorf("%s, %v", moved, err)
	}
}
