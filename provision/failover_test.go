package provision

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// newOutboxOn17 makes an outbox on a server of its own that has failover slots.
func newOutboxOn17(t *testing.T) *outboxDB {
	p := pgtest.Start(t, servers.PostgresOptions{Version: "17", Settings: servers.NoSync()})
	dsn := p.DSN("postgres")
	if err := migrations.Apply(pgtest.Context(t), dsn, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(pgtest.Context(t), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return newOutboxAt(t, dsn, conn, "own")
}

func (o *outboxDB) failover() string {
	o.t.Helper()
	return o.text("select failover::text from pg_replication_slots where slot_name = $1", o.cfg.Slot)
}

func (o *outboxDB) warnings() []string {
	o.t.Helper()
	f, err := Preflight(pgtest.Context(o.t), o.conn, PreflightConfig{Source: o.cfg.Source})
	if err != nil {
		o.t.Fatal(err)
	}
	return f.Warnings
}

// wantWarnings checks that each of the warnings contains the text at its place.
func wantWarnings(t *testing.T, got []string, want ...string) {
	t.Helper()
	ok := slices.EqualFunc(got, want, strings.Contains)
	if !ok {
		t.Errorf("the warnings are\n%s\nwant them to contain\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestFailoverSlot(t *testing.T) {
	t.Parallel()
	o := newOutboxOn17(t)
	o.setup()
	if got := o.failover(); got != "false" {
		t.Fatalf("failover of a slot for which nobody has asked it = %s", got)
	}
	wantWarnings(t, o.warnings())
	o.cfg.Failover = true
	wantWarnings(t, o.warnings(), `source.failover is true, but slot "own" is no failover slot`)

	// A slot that exists is changed, and not made anew.
	steps, err := Plan(t.Context(), o.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"make replication slot own a failover slot"}; !cmp.Equal(steps, want) {
		t.Errorf("the plan is %q, want %q", steps, want)
	}
	before := o.text("select confirmed_flush_lsn::text from pg_replication_slots")
	r := o.setup()
	if !r.FailoverSet || r.SlotCreated || o.failover() != "true" {
		t.Errorf("Setup of a slot that exists = %+v, and failover is %s", r, o.failover())
	}
	if after := o.text("select confirmed_flush_lsn::text from pg_replication_slots"); after != before {
		t.Errorf("the slot has moved from %s to %s", before, after)
	}
	const empty = "synchronized_standby_slots is empty"
	wantWarnings(t, r.Warnings, empty)
	if r := o.setup(); r.FailoverSet {
		t.Error("Setup has changed a slot that was a failover slot")
	}

	// Who copies it is counted.
	for _, want := range []int64{0, 1} {
		m, err := Measure(t.Context(), o.conn, o.cfg.Source, MeasureQuery{})
		if err != nil || m.SyncStandbys == nil || *m.SyncStandbys != want || !*m.Failover {
			t.Errorf("Measure = %+v, %v; want %d standbys", m, err, want)
		}
		worker, err := pgx.Connect(t.Context(), o.dsn+"&application_name=east_slotsync%20worker")
		if err != nil {
			t.Fatal(err)
		}
		defer worker.Close(context.Background())
	}

	// What it says of synchronized_standby_slots.
	o.exec(`select pg_create_physical_replication_slot('b', true)`)
	for _, c := range []struct {
		setting string
		want    []string
	}{
		{"", []string{empty}},
		{"b", []string{"no standby streams, so nothing is delivered until one does: b;"}},
		{`a, "b",c`, []string{"do not exist, so nothing is delivered: a, c;", "until one does: b;"}},
	} {
		o.exec("alter system set synchronized_standby_slots = "+quoteLiteral(c.setting), "select pg_reload_conf()")
		pgtest.WaitTrue(t, o.dsn, "select current_setting('synchronized_standby_slots') = "+quoteLiteral(c.setting))
		pgtest.Exec(t, o.conn, "select pg_sleep(0)") // this backend has read the new setting after a command
		wantWarnings(t, o.warnings(), c.want...)
	}
	o.exec("alter system reset synchronized_standby_slots", "select pg_reload_conf()")

	// A new slot is one at once.
	o.exec("select pg_drop_replication_slot('SLOT')", "delete from outbox_checkpoints")
	if steps, err = Plan(t.Context(), o.cfg); err != nil || len(steps) != 1 || !strings.Contains(steps[0], "(pgoutput, failover)") {
		t.Errorf("the plan is %q, %v", steps, err)
	}
	if r := o.setup(); !r.SlotCreated || r.FailoverSet || o.failover() != "true" {
		t.Errorf("Setup = %+v, and failover is %s", r, o.failover())
	}
	// A slot that is made anew in its place is one too, whatever the configuration says.
	o.cfg.Failover = false
	o.cfg.Connector, o.cfg.Processors = "orders", []ledger.Processor{{Name: "a", Type: "stdout"}}
	again, err := Resync(pgtest.Context(t), ResyncConfig{SetupConfig: o.cfg})
	if err != nil || !again.SlotCreated || o.failover() != "true" {
		t.Errorf("Resync = %+v, %v, and failover is %s", again, err, o.failover())
	}
	wantWarnings(t, again.Warnings, empty)
}

// A slot from which somebody streams cannot be changed. Setup says so, and what to do.
func TestFailoverOfASlotInUse(t *testing.T) {
	t.Parallel()
	o := newOutboxOn17(t)
	o.setup()
	repl, err := connectReplication(pgtest.Context(t), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer repl.Close(pgtest.Context(t))
	err = pglogrepl.StartReplication(pgtest.Context(t), repl, o.cfg.Slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'outbox_cdc'"},
	})
	if err != nil {
		t.Fatal(err)
	}
	o.cfg.Failover = true
	_, err = Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Config, "cannot be made a failover slot while a connector streams from it", "stop all connectors")
	if got := o.failover(); got != "false" {
		t.Errorf("failover = %s", got)
	}
}

func TestNoFailoverBefore17(t *testing.T) {
	t.Parallel()
	for version, want := range map[int]string{
		140020: "PostgreSQL 14 keeps no slot on a standby", 160011: "PostgreSQL 16 keeps no slot on a standby", 170000: "", 190000: "",
	} {
		var p problems
		checkFailover(Source{Failover: true}, server{version: version}, &p)
		if want == "" {
			if len(p) > 0 {
				t.Errorf("%d: %v", version, p)
			}
			continue
		}
		exitcodetest.Want(t, p.join(), exitcode.Config, want, "docs/failover.md#before-17")
		p = nil
		if checkFailover(Source{}, server{version: version}, &p); len(p) > 0 {
			t.Errorf("%d without failover: %v", version, p)
		}
	}
	// Nothing is made.
	o := newOutbox(t)
	var version int
	if err := o.conn.QueryRow(t.Context(), "select current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version >= failoverVersion {
		return
	}
	o.cfg.Failover = true
	_, err := Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Config, "keeps no slot on a standby")
	if n := o.text("select count(*) from pg_publication"); n != "0" {
		t.Errorf("%s publications were made", n)
	}
	// A connector whose slot is there goes on. Its warning does not name init, which would refuse.
	warnings, err := failoverWarnings(pgtest.Context(t), o.conn, o.cfg.Source, &slotRow{plugin: outputPlugin})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "source.failover is true, but PostgreSQL "+strconv.Itoa(version/10000)+" keeps no slot") {
		t.Errorf("warnings: %q, %v", warnings, err)
	}
}
