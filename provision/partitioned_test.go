package provision

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// statements returns the SQL of a part of docs/partitions.md: the indented blocks between two texts, with the days that stand there as
// examples moved to today and tomorrow.
func statements(t *testing.T, from, to string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/partitions.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(text), from)
	part, _, ends := strings.Cut(part, to)
	if !found || !ends {
		t.Fatalf("docs/partitions.md has no part from %q to %q", from, to)
	}
	var sql strings.Builder
	for line := range strings.Lines(part) {
		if strings.HasPrefix(line, "    ") {
			sql.WriteString(line)
		}
	}
	today := time.Now().UTC()
	return strings.NewReplacer("20261128", today.Format("20060102"), "2026-11-29", today.AddDate(0, 0, 1).Format(time.DateOnly)).Replace(sql.String())
}

// The steps by which a person makes a filled outbox partitioned, as docs/partitions.md has them.
func TestPlainBecomesPartitioned(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	o.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'a', n::text, 'e', '{}' from generate_series(1, 100) n")
	o.exec(statements(t, "give its name away:", "3. Make the new one"))
	printed, err := migrations.SQL(migrations.Options{Schema: "public", Partitioned: true})
	if err != nil {
		t.Fatal(err)
	}
	name, password := pgtest.NewLogin(t, o.conn)
	o.exec(printed, SQLText(o.cfg.Source, Roles{SQL: name, Replication: name}))
	o.exec(statements(t, "4. Put the old one", "5. Run"))
	if r := o.setup(); r.SlotCreated || r.PublicationCreated {
		t.Errorf("%+v", r)
	}
	if got := o.text("select format('%s in the view, %s to come', (select count(*) from event_outbox_status where status = 'pending'), " +
		"(select count(*) from pg_inherits where inhparent = 'event_outbox'::regclass))"); got != "100 in the view, 16 to come" {
		t.Error(got)
	}
	// No index was made anew, and the old table keeps its key.
	if got := o.text("select string_agg(relname, ' ' order by relname) from pg_index join pg_class c on c.oid = indexrelid where indrelid = 'event_outbox_before'::regclass"); got !=
		"event_outbox_pkey idx_outbox_before_aggregate idx_outbox_before_created_at idx_outbox_before_tenant_id" {
		t.Error(got)
	}
	if _, err := Preflight(pgtest.Context(t), o.connectAs(name, password), PreflightConfig{Source: o.cfg.Source, ReplicationUser: name}); err != nil {
		t.Error(err)
	}
	o.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', 'new', 'e', '{}')", "drop table event_outbox_before")
}

// An empty one is made anew.
func TestEmptyBecomesPartitioned(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
	o.setup()
	if _, err := Destroy(pgtest.Context(t), DestroyConfig{Source: o.cfg.Source, DSN: o.dsn, ReplicationDSN: o.dsn}); err != nil {
		t.Fatal(err)
	}
	o.exec(statements(t, "**An empty table.**", "and `outbox-cdc init"))
	if err := migrations.Apply(pgtest.Context(t), o.dsn, migrations.Options{Schema: "public", Partitioned: true}); err != nil {
		t.Fatal(err)
	}
	if r := o.setup(); !r.SlotCreated {
		t.Errorf("%+v", r)
	}
	o.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', 'new', 'e', '{}')")
}
