package provision

import (
	"context"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// A role that the printed SQL creates cannot take all connections of the server. A role that exists keeps its limit.
func TestPrintedConnectionLimits(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
	ctx := pgtest.Context(t)
	one, two, both := "one_"+d.Name, "two_"+d.Name, "both_"+d.Name
	t.Cleanup(func() {
		for _, role := range []string{one, two, both} {
			for _, sql := range []string{"drop owned by " + role, "drop role " + role} {
				if _, err := o.conn.Exec(context.Background(), sql); err != nil {
					t.Error(err)
				}
			}
		}
	})
	text := SQLText(o.cfg.Source, Roles{SQL: one, Replication: two, SQLConnections: 6}) + SQLText(o.cfg.Source, Roles{SQL: both, Replication: both, SQLConnections: 10})
	for _, sql := range []string{text, "alter role " + one + " connection limit 50", text} {
		if _, err := o.conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
		var got string
		err := o.conn.QueryRow(ctx, "select string_agg(rolconnlimit::text, ' ' order by rolname desc) from pg_roles where rolname = any ($1)", []string{one, two, both}).Scan(&got)
		want := "3 16 27"
		if sql != text || strings.HasPrefix(got, "3 50") {
			want = "3 50 27"
		}
		if err != nil || got != want {
			t.Errorf("limits %s, %v; want %s", got, err, want)
		}
	}
}

// psql warns about a transaction within a transaction, and an administrator would then look for a mistake.
func TestPrintedRolesAreOneTransaction(t *testing.T) {
	t.Parallel()
	text := SQLText(Source{Table: "public.event_outbox", LedgerSchema: "public", Publication: "outbox_cdc"}, Roles{SQL: "app", Replication: "stream"})
	if begins, commits := strings.Count(text, "begin;\n"), strings.Count(text, "commit;\n"); begins != 1 || commits != 1 {
		t.Errorf("%d begin, %d commit:\n%s", begins, commits, text)
	}
}
