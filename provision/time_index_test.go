package provision

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// Rows that are to be deleted by their age are found by an index on their time. A start without one is refused, and the statements of the
// message are enough.
func TestTimeIndex(t *testing.T) {
	t.Parallel()
	mapped := decoder.DefaultColumns()
	mapped.CreatedAt = "At"
	for name, test := range map[string]struct {
		sql     string // makes the table "Shop".outbox
		own     bool   // it is event_outbox
		columns func(c *decoder.Columns)
		lacks   []string // words of the error; none: it is accepted
		warns   string
	}{
		"our own":                     {own: true},
		"our own without its index":   {own: true, sql: "drop index idx_outbox_created_at", lacks: []string{"create index concurrently idx_outbox_created_at on public.event_outbox (created_at, id)"}},
		"an index":                    {sql: `create table "Shop".outbox (id bigint, "At" timestamptz not null); create index on "Shop".outbox ("At", id)`},
		"a descending index":          {sql: `create table "Shop".outbox (id bigint, "At" timestamp not null); create index on "Shop".outbox ("At" desc)`},
		"none":                        {sql: `create table "Shop".outbox (id bigint, "At" timestamptz not null)`, lacks: []string{`create index concurrently on "Shop".outbox ("At")`, "retention.outbox: off"}},
		"the second column":           {sql: `create table "Shop".outbox (id bigint, "At" timestamptz not null); create index on "Shop".outbox (id, "At")`, lacks: []string{`on "Shop".outbox ("At")`}},
		"a part of the rows":          {sql: `create table "Shop".outbox (id bigint, "At" timestamptz not null); create index on "Shop".outbox ("At") where id > 7`, lacks: []string{`on "Shop".outbox ("At")`}},
		"an expression":               {sql: `create table "Shop".outbox (id bigint, "At" timestamp not null); create index on "Shop".outbox (date_trunc('day', "At"))`, lacks: []string{`on "Shop".outbox ("At")`}},
		"a brin index":                {sql: `create table "Shop".outbox (id bigint, "At" timestamptz not null); create index on "Shop".outbox using brin ("At")`, lacks: []string{`on "Shop".outbox ("At")`}},
		"an invalid one":              {sql: `create table "Shop".outbox (id bigint, "At" timestamptz not null); create index broken on "Shop".outbox ("At"); update pg_index set indisvalid = false where indexrelid = '"Shop".broken'::regclass`, lacks: []string{`drop index concurrently "Shop".broken; create index concurrently on "Shop".outbox ("At")`}},
		"a time that may be null":     {sql: `create table "Shop".outbox (id bigint, "At" timestamptz); create index on "Shop".outbox ("At")`, warns: `alter table "Shop"."outbox" alter column "At" set not null`},
		"a date":                      {sql: `create table "Shop".outbox (id bigint, "At" date not null); create index on "Shop".outbox ("At")`, lacks: []string{"is no timestamp"}},
		"a domain":                    {sql: `create domain moment as timestamptz not null; create table "Shop".outbox (id bigint, "At" moment); create index on "Shop".outbox ("At")`},
		"no time":                     {sql: `create table "Shop".outbox (id bigint)`, columns: func(c *decoder.Columns) { c.CreatedAt = "" }, lacks: []string{"names no created_at"}},
		"partitions":                  {sql: `create table "Shop".outbox (id bigint, "At" timestamptz not null) partition by range ("At"); create table "Shop".p1 partition of "Shop".outbox default; create index on "Shop".outbox ("At")`},
		"partitions, one without one": {sql: `create table "Shop".outbox (id bigint, "At" timestamptz not null) partition by range ("At"); create table "Shop".p1 partition of "Shop".outbox default; create table "Shop".p2 partition of "Shop".outbox for values from ('2020-01-01') to ('2021-01-01'); create index on "Shop".p1 ("At")`, lacks: []string{`create index concurrently on "Shop".p2 ("At"); create index on "Shop"."outbox" ("At")`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.New(t).Conn(t)
			exec := func(sql string) {
				t.Helper()
				if _, err := conn.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatal(err)
				}
			}
			s := Source{Table: "Shop.outbox", LedgerSchema: "public", Columns: mapped, Cleanup: Cleanup{Outbox: true}}
			if test.own {
				s.Table, s.Columns = "public.event_outbox", decoder.DefaultColumns()
			}
			if test.columns != nil {
				test.columns(&s.Columns)
			}
			exec(`create schema "Shop"; set allow_system_table_mods = on; ` + test.sql + "; set search_path = pg_catalog")
			check := func() (problems, []string) {
				t.Helper()
				var p problems
				schema, name := s.tableName()
				table := Table{}
				err := conn.QueryRow(context.Background(), "select c.oid, relkind::text from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = $1 and relname = $2", schema, name).
					Scan(&table.OID, &table.kind)
				if err != nil {
					t.Fatal(err)
				}
				warnings, err := checkCleanup(context.Background(), conn, s, &table, &p)
				if err != nil {
					t.Fatal(err)
				}
				return p, warnings
			}
			p, warnings := check()
			if got := strings.Join(warnings, "\n"); (got == "") != (test.warns == "") || !strings.Contains(got, test.warns) {
				t.Errorf("warnings %q, want %q", got, test.warns)
			}
			if (len(p) == 0) != (test.lacks == nil) {
				t.Fatalf("%v, want %q", p.join(), test.lacks)
			}
			if p == nil {
				return
			}
			text := p.join().Error()
			for _, words := range test.lacks {
				if !strings.Contains(text, words) {
					t.Errorf("%q lacks %q", text, words)
				}
			}
			if exitcode.Of(p.join()) != exitcode.Config {
				t.Errorf("exit code %d", exitcode.Of(p.join()))
			}
			_, statements, found := strings.Cut(text, "as its owner: ")
			if !found {
				return
			}
			all := strings.Split(statements, "; ")
			for _, sql := range slices.Delete(all, len(all)-1, len(all)) {
				exec(sql)
			}
			if p, _ := check(); p != nil {
				t.Errorf("after the remedy: %v", p.join())
			}
			s.Cleanup.Outbox = false
			if p, warnings := check(); p != nil || warnings != nil {
				t.Errorf("rows are kept: %v, %q", p.join(), warnings)
			}
		})
	}
}
