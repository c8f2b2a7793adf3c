package service

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// What belongs to a superuser, only a superuser can change.
func TestInitOfASuperusersLedger(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	w.exec("delete from outbox_migrations where version_id = 5")
	role, dsn := w.newRole()
	w.exec("alter role "+role+" replication", "grant select on outbox_migrations to "+role)
	_, err := Init(pgtest.Context(t), w.cfg, InitOptions{AdminDSN: dsn})
	exitcodetest.Want(t, err, exitcode.Privilege, "public.outbox_delivery_log, ", `belong to the superuser "`, "a new version has to change them", "--dsn or OUTBOX_ADMIN_URL")
}

// A login without the rights that init needs gets all statements at once by which an administrator can give them. These are enough,
// and init has made nothing before.
func TestInitNamesTheGrants(t *testing.T) {
	t.Parallel()
	const closed = "revoke create on schema public from public" // the default from PostgreSQL 15 on
	byAdmin := func(t *testing.T, w *world) {
		t.Helper()
		if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		prepare func(t *testing.T, w *world)
		wants   []string // ROLE stands for the login, DB for the database
	}{
		"an empty database": {
			func(_ *testing.T, w *world) { w.exec(closed) },
			[]string{"grant usage, create on schema \"public\" to ROLE", "grant create on database DB to ROLE"},
		},
		"a schema that is not there": {
			func(_ *testing.T, w *world) {
				w.exec("create schema shop", "create table shop.events (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb)")
				s := &w.cfg.Source
				s.Table, s.LedgerSchema = "shop.events", "cdc"
				c := &s.Columns
				c.EventVersion, c.Metadata, c.CreatedAt, c.MaxRetries, c.TenantID, c.CorrelationID, c.CausationID = "", "", "", "", "", "", ""
			},
			[]string{"grant create on database DB to ROLE", `grant usage on schema "shop" to ROLE`, `grant select on table "shop"."events" to ROLE`, `create publication "outbox_cdc" for table "shop"."events"`},
		},
		"what an administrator has made": {
			func(t *testing.T, w *world) {
				byAdmin(t, w)
				w.exec("drop publication outbox_cdc", "select pg_drop_replication_slot('"+w.cfg.Source.Slot+"')", "delete from outbox_checkpoints", "revoke usage on schema public from public")
			},
			[]string{
				`grant usage on schema "public" to ROLE`, "grant select on table", `create publication "outbox_cdc" for table "public"."event_outbox"`,
				"grant insert, select on table public.outbox_delivery_log to ROLE", `grant select on table "public"."outbox_migrations" to ROLE`,
			},
		},
		"migrations of a ledger of another role": {
			func(t *testing.T, w *world) {
				owner, dsn := w.newRole()
				w.exec("grant create on schema public to "+owner, "alter role "+owner+" replication", "grant create on database "+w.database()+" to "+owner)
				admin := w.cfg.Source.DSN
				w.cfg.Source.DSN, w.cfg.Source.ReplicationDSN = config.DSN(dsn), config.DSN(dsn)
				byAdmin(t, w)
				w.cfg.Source.DSN, w.cfg.Source.ReplicationDSN = admin, admin
				w.exec(closed, "alter schema public owner to "+owner, "delete from outbox_migrations where version_id = 5", "alter table outbox_delivery_log drop column member",
					"grant select on outbox_migrations to public")
				w.owner = owner
			},
			[]string{`grant usage, create on schema "public" to ROLE; grant OWNER to ROLE`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			test.prepare(t, w)
			role, dsn := w.newRole()
			w.cfg.Source.DSN, w.cfg.Source.ReplicationDSN = config.DSN(dsn), config.DSN(dsn)
			before := w.text("select count(*)::text from pg_class")
			_, err := Init(pgtest.Context(t), w.cfg, InitOptions{})
			quoted := pgx.Identifier{role}.Sanitize()
			wants := []string{"may not replicate; alter role " + quoted + " replication", "lacks privileges for init", "--dsn or OUTBOX_ADMIN_URL", "--print-sql"}
			for _, want := range test.wants {
				wants = append(wants, strings.NewReplacer("ROLE", quoted, "DB", pgx.Identifier{w.database()}.Sanitize(), "OWNER", pgx.Identifier{w.owner}.Sanitize()).Replace(want))
			}
			exitcodetest.Want(t, err, exitcode.Privilege, wants...)
			if after := w.text("select count(*)::text from pg_class"); after != before {
				t.Errorf("a refusal has made relations: %s, and %s before", after, before)
			}
			if plan, err := InitPlan(pgtest.Context(t), w.cfg, InitOptions{}); exitcode.Of(err) != exitcode.Privilege {
				t.Errorf("the plan: %q, %v", plan, err)
			}
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if _, statements, ok := strings.Cut(line, "or these: "); ok {
					list := strings.Split(statements, "; ")
					once := slices.Compact(slices.Sorted(slices.Values(strings.Split(strings.ReplaceAll(statements, `"`, ""), "; "))))
					if len(once) != len(list) {
						t.Errorf("says something twice: %s", statements)
					}
					w.exec(list...)
				}
			}
			w.exec("alter role " + quoted + " replication")
			if result, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
				t.Errorf("with these grants: %+v, %v", result, err)
			}
		})
	}
}
