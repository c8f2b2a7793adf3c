package provision

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// remedies does what commands of our messages do.
var remedies = map[string]func(*outboxDB) error{
	`run "outbox-cdc adopt"`: func(o *outboxDB) error {
		_, err := Adopt(pgtest.Context(o.t), AdoptConfig{Source: o.cfg.Source, DSN: o.dsn})
		return err
	},
	`run "outbox-cdc resync"`: func(o *outboxDB) error {
		_, err := Resync(pgtest.Context(o.t), ResyncConfig{SetupConfig: o.cfg})
		return err
	},
	`run "outbox-cdc resync --parked keep"`: func(o *outboxDB) error {
		o.cfg.Parked = ParkedKeep
		_, err := Resync(pgtest.Context(o.t), ResyncConfig{SetupConfig: o.cfg})
		return err
	},
	`run "outbox-cdc resync --backlog none --parked discard"`: func(o *outboxDB) error {
		o.cfg.Parked, o.cfg.Backlog.None = ParkedDiscard, true
		_, err := Resync(pgtest.Context(o.t), ResyncConfig{SetupConfig: o.cfg})
		return err
	},
	`set source.slot to another name and run "outbox-cdc init --backlog none --parked discard"`: func(o *outboxDB) error {
		o.cfg.Slot += "_copy"
		o.cfg.Parked, o.cfg.Backlog.None = ParkedDiscard, true
		_, err := Setup(pgtest.Context(o.t), o.cfg)
		return err
	},
}

// Every command that a message about a slot names mends what the message is about: Preflight is content afterwards. What was parked is still
// owed, or not any more if the command is for a copy.
func TestRemediesOfTheSlot(t *testing.T) {
	t.Parallel()
	const drop = "select pg_drop_replication_slot('SLOT')"
	anotherCluster := "update outbox_checkpoints set system_identifier = '7'"
	elsewhere := "update outbox_checkpoints set timeline = 99, source_hosts = 'db:1'"
	for name, test := range map[string]struct {
		before []string
		mend   string // what else the message says has to be done
		names  []string
	}{
		"gone":                        {before: []string{drop}, names: []string{`run "outbox-cdc resync"`}},
		"promoted, no slot":           {before: []string{"update outbox_checkpoints set timeline = 99, source_hosts = 'here:5432'", drop}, names: []string{`run "outbox-cdc resync"`}},
		"another plugin":              {before: []string{drop, "select pg_create_logical_replication_slot('SLOT', 'test_decoding')"}, mend: drop, names: []string{`run "outbox-cdc resync"`}},
		"another cluster":             {before: []string{anotherCluster}, names: []string{`run "outbox-cdc adopt"`, `run "outbox-cdc resync --backlog none --parked discard"`}},
		"another cluster, no slot":    {before: []string{anotherCluster, drop}, names: []string{`run "outbox-cdc resync --parked keep"`, `run "outbox-cdc resync --backlog none --parked discard"`}},
		"restored elsewhere":          {before: []string{elsewhere}, names: []string{`run "outbox-cdc adopt"`, `run "outbox-cdc resync --backlog none --parked discard"`}},
		"restored elsewhere, no slot": {before: []string{elsewhere, drop}, names: []string{`run "outbox-cdc resync --parked keep"`, `run "outbox-cdc resync --backlog none --parked discard"`}},
		"renamed":                     {before: []string{"update outbox_checkpoints set database_name = 'shop'"}, names: []string{`run "outbox-cdc adopt"`, `run "outbox-cdc resync --backlog none --parked discard"`}},
	} {
		for _, remedy := range test.names {
			t.Run(name+"/"+strings.Trim(remedy, "run \""), func(t *testing.T) {
				t.Parallel()
				o := newSetup(t)
				o.cfg.Hosts, o.cfg.Connector, o.cfg.Processors = "here:5432", "shop", []ledger.Processor{{Name: "a", Type: "t"}}
				o.exec("insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event) values (1, '0/1', 0, 1, 'parked', '{}')")
				o.exec(test.before...)
				_, err := o.preflight()
				exitcodetest.Want(t, err, exitcode.SlotLost, remedy)
				if test.mend != "" {
					o.exec(test.mend)
				}
				if err := remedies[remedy](o); err != nil {
					t.Fatal(err)
				}
				if _, err := o.preflight(); err != nil {
					t.Errorf("afterwards: %v", err)
				}
				want := "1"
				if strings.Contains(remedy, "discard") {
					want = "0"
				}
				if owed := o.text("select count(*) from outbox_parked where status = 'parked'"); owed != want {
					t.Errorf("%s events are owed, want %s", owed, want)
				}
			})
		}
	}
}

// A copy of a database on its own server has the checkpoint of a slot that belongs to the original.
func TestRemedyOfACopyOnTheSameServer(t *testing.T) {
	t.Parallel()
	o := newSetup(t)
	o.exec("insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event) values (1, '0/1', 0, 1, 'parked', '{}')")
	d := pgtest.CopyOf(t, &o.conn)
	c := newOutboxAt(t, d.DSN, d.Conn(t), o.cfg.Slot)
	c.cfg.Connector, c.cfg.Processors = "shop", []ledger.Processor{{Name: "a", Type: "t"}}
	_, err := c.preflight()
	remedy := `set source.slot to another name and run "outbox-cdc init --backlog none --parked discard"`
	exitcodetest.Want(t, err, exitcode.SlotLost, "with oid", "the slot belongs to database", remedy)
	_, err = Resync(pgtest.Context(t), ResyncConfig{SetupConfig: c.cfg})
	exitcodetest.Want(t, err, exitcode.SlotLost, `drop the slot there ("outbox-cdc destroy")`, remedy)
	if err := remedies[remedy](c); err != nil {
		t.Fatal(err)
	}
	if _, err := c.preflight(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if owed := c.text("select count(*) from outbox_parked where status = 'parked'"); owed != "0" {
		t.Errorf("the copy owes %s events", owed)
	}
	if _, err := o.preflight(); err != nil {
		t.Errorf("the original: %v", err)
	}
	// The checkpoint of the original's slot holds back the cleanup of the copy, until the statement of the page has deleted it.
	least := func() ledger.SlotPrefix {
		p, err := c.cfg.ledger().LeastPrefix(pgtest.Context(t), c.conn)
		if err != nil || p == nil {
			t.Fatal(p, err)
		}
		return *p
	}
	if p := least(); p.Slot != o.cfg.Slot || p.Exists {
		t.Errorf("the cleanup waits for %+v, want the slot of the original, which is not in this database", p)
	}
	page, err := os.ReadFile("../docs/copies.md")
	if err != nil {
		t.Fatal(err)
	}
	statement := regexp.MustCompile("`(delete from outbox_checkpoints .*'outbox_cdc')`").FindSubmatch(page)
	if statement == nil {
		t.Fatal("docs/copies.md has no statement that deletes a checkpoint")
	}
	c.exec(strings.Replace(string(statement[1]), "outbox_cdc", o.cfg.Slot, 1))
	if p := least(); p.Slot != c.cfg.Slot || !p.Exists {
		t.Errorf("the cleanup waits for %+v, want the slot of the copy", p)
	}
}
