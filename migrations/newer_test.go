package migrations_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// A ledger that a later version has changed is refused, with that version if it has signed, and stays as it is.
func TestNewerLedger(t *testing.T) {
	t.Parallel()
	ctx := pgtest.Context(t)
	d := pgtest.Unmigrated(t)
	o := migrations.Options{Schema: "the \"ledger", Version: "v1.2.3"}
	const table = `"the ""ledger".outbox_migrations`
	comment := func() (text string) {
		t.Helper()
		if err := d.Conn(t).QueryRow(ctx, "select coalesce(obj_description($1::regclass), '')", table).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	apply(t, d.DSN, o)
	signed := comment()
	if want := "outbox-cdc v1.2.3 applied migrations up to 10"; signed != want {
		t.Errorf("signed %q, want %q", signed, want)
	}
	o.Version = "v1.2.4"
	apply(t, d.DSN, o)
	if got := comment(); got != signed {
		t.Errorf("a version that has applied nothing signs: %q", got)
	}
	exec1(t, d, "delete from "+table+" where version_id = 7")
	o.Version = "v1.2.5-0.20261129060000-abcdefabcdef"
	apply(t, d.DSN, o)
	if got := comment(); got != signed {
		t.Errorf("a version that nobody can install signs: %q", got)
	}

	exec1(t, d, "insert into "+table+" (version_id, is_applied, tstamp) values (11, true, '2031-02-03'), (12, true, '2031-02-04')")
	for _, c := range []struct{ comment, wrote string }{
		{signed, "a later version"}, // psql has applied the others
		{"outbox-cdc v2.0.0 applied migrations up to 12", "version v2.0.0"},
		{"outbox-cdc v2.0.0 applied migrations up to 12, or so", "a later version"},
		{"outbox-cdc \x1b[31m applied migrations up to 12", "a later version"},
		{"", "a later version"},
	} {
		exec1(t, d, "comment on table "+table+" is '"+c.comment+"'")
		before := dump(t, d.DSN)
		for name, refuses := range map[string]func() error{
			"CheckNewer": func() error { return migrations.CheckNewer(ctx, d.Conn(t), o.Schema) },
			"Apply":      func() error { return migrations.Apply(ctx, d.DSN, o) },
			"Pending":    func() error { _, err := migrations.Pending(ctx, d.DSN, o); return err },
		} {
			t.Run(name, func(t *testing.T) {
				exitcodetest.Want(t, refuses(), exitcode.Config, c.wrote+" has applied migration 12 on 2031-02-04, and this one knows those up to 10; install that version or a later one")
			})
		}
		if diff := cmp.Diff(before, dump(t, d.DSN)); diff != "" {
			t.Errorf("a refusal has changed something (-before +after):\n%s", diff)
		}
	}
}

// Whoever may not read which migrations were applied is told nothing by it, and a table of somebody else is not read.
func TestNewerLedgerUnread(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]string{
		"no ledger":       "drop table outbox_migrations",
		"somebody else's": "drop table outbox_migrations; create view outbox_migrations as select 11 as version_id, now()::timestamp as tstamp",
		"not readable":    "insert into outbox_migrations (version_id, is_applied) values (11, true); set role pg_monitor",
		"as it should be": "select",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.New(t).Conn(t)
			if _, err := conn.Exec(pgtest.Context(t), prepare); err != nil {
				t.Fatal(err)
			}
			if err := migrations.CheckNewer(pgtest.Context(t), conn, "public"); err != nil {
				t.Error(err)
			}
		})
	}
}

// The connector's login finds it as well in a ledger of somebody who was given the right to make it, and reads nothing of a stranger's.
func TestNewerLedgerOfAnother(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		right   string
		refused bool
	}{
		"by name": {"grant create on schema public to ", true},
		"revoked": {"revoke create on schema public from ", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.New(t).Conn(t)
			owner, _ := pgtest.NewLogin(t, conn)
			reader, _ := pgtest.NewLogin(t, conn)
			pgtest.Exec(t, conn, "insert into outbox_migrations (version_id, is_applied) values (11, true)", "grant create on schema public to "+owner,
				"alter table outbox_migrations owner to "+owner, "grant select on outbox_migrations to "+reader, "grant usage on schema public to "+reader,
				c.right+owner, "set role "+reader)
			err := migrations.CheckNewer(pgtest.Context(t), conn, "public")
			if (err != nil) != c.refused {
				t.Errorf("%v, refused %t", err, c.refused)
			}
			pgtest.Exec(t, conn, "reset role")
		})
	}
}
