package service

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// An outbox by day is made, delivered from with the least rights, and init makes a day that is missing.
func TestInitPartitioned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	app, appDSN := w.newRole()
	stream, streamDSN := w.newRole()
	w.exec("alter role " + stream + " replication")
	w.cfg.Source.DSN, w.cfg.Source.ReplicationDSN = config.DSN(appDSN), config.DSN(streamDSN)
	o := InitOptions{AdminDSN: w.admin, Partitioned: true}
	if _, err := Init(pgtest.Context(t), w.cfg, o); err != nil {
		t.Fatal(err)
	}
	const ahead = "select count(*)::text from pg_inherits where inhparent = 'event_outbox'::regclass"
	drop := "do $$ begin execute to_char((now() at time zone 'UTC')::date + 14, '\"drop table event_outbox_\"YYYYMMDD'); end $$"
	w.exec(drop)
	if _, err := Init(pgtest.Context(t), w.cfg, o); err != nil || w.text(ahead) != "16" {
		t.Errorf("init again: %v, %s partitions", err, w.text(ahead))
	}
	runAndDeliver(t, w)
	w.exec("revoke execute on function outbox_make_event_partitions from " + app)
	_, err := InitPlan(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Privilege, "grant execute on function public.outbox_make_event_partitions(timestamptz, int) to \""+app)
}

func TestInitPartitionedRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	o := InitOptions{Partitioned: true}
	_, err := Init(pgtest.Context(t), w.cfg, o)
	exitcodetest.Want(t, err, exitcode.Config, "exists and is not partitioned", "docs/partitions.md#existing")
	_, err = InitPlan(pgtest.Context(t), w.cfg, o)
	exitcodetest.Want(t, err, exitcode.Config, "exists and is not partitioned")
	w.exec("create table mine (id uuid primary key, kind text, key text, type text, body text)")
	w.cfg.Source.Table = "public.mine"
	_, err = Init(pgtest.Context(t), w.cfg, o)
	exitcodetest.Want(t, err, exitcode.Config, "--partitioned is for event_outbox", "docs/partitions.md#mapped")
	if _, err = InitSQL(pgtest.Context(t), w.cfg, o); err == nil || !strings.Contains(err.Error(), "a table of your own") {
		t.Error(err)
	}
}
