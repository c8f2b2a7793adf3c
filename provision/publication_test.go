package provision

import (
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// The version of a publication changes with each change that concerns the outbox, even if the change is undone at once.
func TestPublicationVersion(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	version := func() string {
		t.Helper()
		v, err := PublicationVersion(pgtest.Context(t), o.conn, o.cfg.Source, f.Table.OID)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	o.exec("create table other (i int)")
	for _, step := range []struct {
		sql     []string
		changes bool
	}{
		{nil, false},
		{[]string{"alter publication outbox_cdc add table other"}, false},
		{[]string{"alter publication outbox_cdc set table event_outbox"}, false},
		{[]string{"alter table event_outbox rename to x", "alter table x rename to event_outbox"}, false},
		{[]string{"alter publication outbox_cdc drop table event_outbox", "alter publication outbox_cdc add table event_outbox"}, true},
		{[]string{"alter publication outbox_cdc rename to x", "alter publication x rename to outbox_cdc"}, true},
		{[]string{"alter publication outbox_cdc set (publish = 'delete')", "alter publication outbox_cdc set (publish = 'insert')"}, true},
		{[]string{"drop publication outbox_cdc", publicationSQL(o.cfg.Source)}, true},
		{[]string{"drop publication outbox_cdc"}, true},
	} {
		before := version()
		o.exec(step.sql...)
		if after := version(); (after != before) != step.changes {
			t.Errorf("%v: %s became %s", step.sql, before, after)
		}
	}
	if v := version(); v != "" {
		t.Errorf("one that does not exist has the version %s", v)
	}
}

// If the outbox is a partition of a table that is published too, its rows are sent as rows of that table.
func TestOutboxIsPartitionOfAPublishedTable(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	f, err := o.preflight()
	if err != nil {
		t.Fatal(err)
	}
	o.exec(`create table "the Root" (like event_outbox including defaults) partition by list (aggregate_type)`,
		`alter table "the Root" attach partition event_outbox default`)
	if _, err := o.drift(f); err != nil {
		t.Errorf("a root that is not published does no harm: %v", err)
	}
	o.exec(`alter publication outbox_cdc add table "the Root"`)
	_, err = o.drift(f)
	exitcodetest.Want(t, err, exitcode.Config, `is a partition of public."the Root"`, `alter publication "outbox_cdc" drop table public."the Root"`)
	_, err = o.preflight()
	exitcodetest.Want(t, err, exitcode.Config, `is a partition of public."the Root"`)
	o.exec(`alter publication "outbox_cdc" drop table public."the Root"`)
	if _, err := o.drift(f); err != nil {
		t.Error(err)
	}
}
