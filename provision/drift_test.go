package provision

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// drift checks for drift as a running connector does. f are the facts of its start.
func (o *outboxDB) drift(f Facts) (moved string, err error) {
	o.t.Helper()
	return CheckDrift(pgtest.Context(o.t), o.conn, o.cfg.Source, f.Table.OID)
}

func TestPublicationDrifts(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.drift(f); err != nil {
		t.Fatal(err)
	}
	o.exec("alter publication outbox_cdc drop table event_outbox")
	_, err = o.drift(f)
	exitcodetest.Want(t, err, exitcode.Config, "does not publish table")
	// The table is known by its OID, so a rename does not matter.
	o.exec("alter table event_outbox rename to renamed", "alter publication outbox_cdc add table renamed")
	if _, err := o.drift(f); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = CheckDrift(ctx, o.conn, o.cfg.Source, f.Table.OID)
	if exitcode.Of(err) != exitcode.Failure {
		t.Errorf("a server that is away is taken for drift: %v", err)
	}
}

// While the connector runs, the outbox's name comes to mean another table, or none.
func TestOutboxReplaced(t *testing.T) {
	t.Parallel()
	copied := "create table eo2 (like event_outbox including all); "
	for name, test := range map[string]struct {
		sql     string
		replace bool   // the name means another table now
		called  string // the present name of the old table; empty if it was dropped
		words   []string
	}{
		"renamed, and another in its place": {
			sql:     copied + "begin; alter table event_outbox rename to eo_old; alter table eo2 rename to event_outbox; commit",
			replace: true, called: "public.eo_old",
		},
		"moved away, and another in its place": {
			sql: copied + "create schema archive; begin; alter table event_outbox set schema archive; alter table eo2 rename to event_outbox; commit", replace: true,
			called: "archive.event_outbox",
		},
		"dropped and made anew":  {sql: copied + "drop table event_outbox cascade; alter table eo2 rename to event_outbox", replace: true},
		"replaced by a view":     {sql: "alter table event_outbox rename to base; create view event_outbox as select * from base", replace: true, called: "public.base"},
		"replaced by its root":   {sql: "alter table event_outbox rename to p1; create table event_outbox (like p1) partition by list (tenant_id); alter table event_outbox attach partition p1 default", replace: true, called: "public.p1"},
		"replaced by a sequence": {sql: "alter table event_outbox rename to base; create sequence event_outbox", replace: true, called: "public.base"},
		"replaced by a foreign one": {
			sql: "create foreign data wrapper w; create server s foreign data wrapper w; alter table event_outbox rename to base; " +
				"create foreign table event_outbox (id uuid) server s", replace: true, called: "public.base",
		},
		"its schema renamed, and another in its place": {
			sql:     "alter schema public rename to old; create schema public; create table public.event_outbox (like old.event_outbox including all)",
			replace: true, called: "old.event_outbox",
		},
		"renamed":             {sql: "alter table event_outbox rename to events", called: "public.events"},
		"moved":               {sql: `create schema "other One"; alter table event_outbox set schema "other One"`, called: "other One.event_outbox"},
		"dropped for good":    {sql: "drop table event_outbox cascade"},
		"renamed, and broken": {sql: "alter table event_outbox rename to events; alter publication outbox_cdc drop table events", called: "public.events", words: []string{"does not publish table public.events", `add table "public"."events"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newSetup(t)
			f, err := o.preflight()
			if err != nil {
				t.Fatal(err)
			}
			o.exec(test.sql)
			conn, err := connect(pgtest.Context(t), o.dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			moved, err := CheckDrift(pgtest.Context(t), conn, o.cfg.Source, f.Table.OID)
			switch {
			case test.replace:
				was := "which was dropped"
				if test.called != "" {
					was = "which is " + test.called + " now"
				}
				exitcodetest.Want(t, err, exitcode.Config, "public.event_outbox is another relation now", fmt.Sprintf("the one with OID %d", f.Table.OID), was, "docs/table.md#swapped")
			case test.words != nil:
				exitcodetest.Want(t, err, exitcode.Config, test.words...)
			case err != nil:
				t.Error(err)
			case test.called == "":
				if !strings.Contains(moved, "table public.event_outbox was dropped") {
					t.Errorf("it says %q", moved)
				}
			default:
				if !strings.Contains(moved, "table public.event_outbox is called "+test.called+" now") {
					t.Errorf("it says %q", moved)
				}
			}
		})
	}
}
