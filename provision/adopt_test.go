package provision

import (
	"errors"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// What Adopt does with each way in which a database differs from the one of the checkpoint. Afterwards Preflight is content.
func TestAdopt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before   []string
		compares bool
		row      string // timeline, and whether the log's rows from before still count
	}{
		"another cluster":             {[]string{"update outbox_checkpoints set system_identifier = '7'"}, true, "0 f"},
		"another oid":                 {[]string{"update outbox_checkpoints set database_oid = 1"}, true, "0 f"},
		"renamed":                     {[]string{"update outbox_checkpoints set database_name = 'shop'"}, false, "1 t"},
		"promoted under another host": {[]string{"update outbox_checkpoints set timeline = 99, source_hosts = 'db:1'"}, true, "0 t"},
		"moved":                       {[]string{"update outbox_checkpoints set source_hosts = 'db:1'"}, false, "1 t"},
		"renamed, and the slot ahead": {[]string{"update outbox_checkpoints set database_name = 'shop', confirmed_lsn = '0/1'"}, true, "1 t"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newSetup(t)
			o.cfg.Hosts = "here:5432"
			o.exec(test.before...)
			o.exec("update outbox_checkpoints set epoch = 5") // five sessions
			cfg := AdoptConfig{Source: o.cfg.Source, DSN: o.dsn, DryRun: true}
			untouched := o.text("select c::text from outbox_checkpoints c")
			planned, err := Adopt(pgtest.Context(t), cfg)
			if err != nil || planned.Differs == "" || planned.Compares != test.compares || planned.Adopted {
				t.Fatalf("plan %+v, %v", planned, err)
			}
			no := errors.New("no")
			cfg.DryRun, cfg.Confirm = false, func(AdoptResult) error { return no }
			if _, err := Adopt(pgtest.Context(t), cfg); !errors.Is(err, no) {
				t.Fatal(err)
			}
			if now := o.text("select c::text from outbox_checkpoints c"); now != untouched {
				t.Fatalf("the checkpoint was %s, and is %s", untouched, now)
			}
			cfg.Confirm = nil
			done, err := Adopt(pgtest.Context(t), cfg)
			if err != nil || !done.Adopted || done.Compares != test.compares {
				t.Fatalf("%+v, %v", done, err)
			}
			if got := o.text("select format('%s %s', timeline, slot_epoch < 6) from outbox_checkpoints"); got != test.row {
				t.Errorf("the checkpoint is %s, want %s", got, test.row)
			}
			if _, err := o.preflight(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if again, err := Adopt(pgtest.Context(t), cfg); err != nil || again.Differs != "" || again.Adopted {
				t.Errorf("a second time: %+v, %v", again, err)
			}
		})
	}
}

// Where Adopt would be wrong it changes nothing, and names what is right.
func TestAdoptRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before []string
		code   exitcode.Code
		words  []string
	}{
		"no slot": {
			[]string{"update outbox_checkpoints set system_identifier = '7'", "select pg_drop_replication_slot('SLOT')"}, exitcode.SlotLost, []string{"is gone", StartAnew},
		},
		"no checkpoint":  {[]string{"select pg_drop_replication_slot('SLOT')", "delete from outbox_checkpoints"}, exitcode.Config, []string{`run "outbox-cdc init"`}},
		"another plugin": {[]string{"select pg_drop_replication_slot('SLOT')", "select pg_create_logical_replication_slot('SLOT', 'test_decoding')"}, exitcode.SlotLost, []string{"pgoutput"}},
		"positions of another server": {
			[]string{"update outbox_checkpoints set system_identifier = '7', confirmed_lsn = 'FF/0'"}, exitcode.SlotLost, []string{"another server", StartAnew},
		},
		"parked rows of another server": {
			[]string{
				"update outbox_checkpoints set system_identifier = '7'",
				"insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event) values (1, 'FF/0', 0, 1, 'parked', '{}')",
			}, exitcode.SlotLost, []string{"another server", StartAnew},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newSetup(t)
			o.exec(test.before...)
			before := o.text("select coalesce((select c::text from outbox_checkpoints c), '')")
			_, err := Adopt(pgtest.Context(t), AdoptConfig{Source: o.cfg.Source, DSN: o.dsn})
			exitcodetest.Want(t, err, test.code, test.words...)
			if now := o.text("select coalesce((select c::text from outbox_checkpoints c), '')"); now != before {
				t.Errorf("the checkpoint was %s, and is %s", before, now)
			}
		})
	}
}
