package provision

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// outboxDB is a database with an outbox, and the configuration of Setup for it.
type outboxDB struct {
	t    *testing.T
	dsn  string
	conn *pgx.Conn // as superuser
	cfg  SetupConfig
}

func newOutbox(t *testing.T) *outboxDB {
	d := pgtest.New(t)
	return newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
}

func newOutboxAt(t *testing.T, dsn string, conn *pgx.Conn, slot string) *outboxDB {
	return &outboxDB{t: t, dsn: dsn, conn: conn, cfg: SetupConfig{
		Source: Source{
			Table: "public.event_outbox", LedgerSchema: "public", Slot: slot, Publication: "outbox_cdc", Columns: decoder.DefaultColumns(),
		},
		DSN: dsn, ReplicationDSN: dsn,
	}}
}

// newSetup makes a database in which everything is set up.
func newSetup(t *testing.T) *outboxDB {
	o := newOutbox(t)
	o.setup()
	return o
}

func (o *outboxDB) setup() SetupResult {
	o.t.Helper()
	r, err := Setup(pgtest.Context(o.t), o.cfg)
	if err != nil {
		o.t.Fatal(err)
	}
	return r
}

// exec runs statements, in which SLOT stands for the name of the slot.
func (o *outboxDB) exec(sqls ...string) {
	o.t.Helper()
	for _, sql := range sqls {
		pgtest.Exec(o.t, o.conn, strings.ReplaceAll(sql, "SLOT", o.cfg.Slot))
	}
}

// text returns the one value that a query yields.
func (o *outboxDB) text(sql string, args ...any) string {
	o.t.Helper()
	return pgtest.Text(o.t, o.conn, sql, args...)
}

// as returns the DSN of another login for the same database.
func (o *outboxDB) as(user, password string) string {
	o.t.Helper()
	return pgtest.WithLogin(o.t, o.dsn, user, password)
}

func (o *outboxDB) checkpoint() string {
	o.t.Helper()
	return o.text(`select coalesce((select format('%s %s/%s confirmed %s epoch %s slot_epoch %s batch_seq %s', state, prefix_lsn, prefix_index, confirmed_lsn, epoch, slot_epoch, batch_seq)
		from outbox_checkpoints where slot_name = $1), 'none')`, o.cfg.Slot)
}

func (o *outboxDB) slot() string {
	o.t.Helper()
	return o.text(`select coalesce((select format('%s %s %s', plugin, database, confirmed_flush_lsn) from pg_replication_slots where slot_name = $1), 'none')`, o.cfg.Slot)
}

// version returns the server's server_version_num.
func (o *outboxDB) version() int {
	o.t.Helper()
	var version int
	if err := o.conn.QueryRow(pgtest.Context(o.t), "select current_setting('server_version_num')::int").Scan(&version); err != nil {
		o.t.Fatal(err)
	}
	return version
}

func TestSetup(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	steps, err := Plan(pgtest.Context(t), o.cfg)
	want := []string{
		`create publication "outbox_cdc" for table "public"."event_outbox" with (publish = 'insert', publish_via_partition_root = true)`,
		"create logical replication slot " + o.cfg.Slot + " (pgoutput) and its checkpoint",
	}
	if diff := cmp.Diff(want, steps); diff != "" || err != nil {
		t.Errorf("plan: %v %s", err, diff)
	}
	if o.slot() != "none" || o.checkpoint() != "none" {
		t.Error("the plan was carried out")
	}
	r := o.setup()
	if !r.PublicationCreated || !r.SlotCreated || r.ConsistentPoint == 0 {
		t.Errorf("%+v", r)
	}
	point := r.ConsistentPoint.String()
	checkpoint := "ready " + point + "/-1 confirmed " + point + " epoch 0 slot_epoch 1 batch_seq 0"
	if diff := cmp.Diff(checkpoint, o.checkpoint()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("pgoutput "+o.conn.Config().Database+" "+point, o.slot()); diff != "" {
		t.Error(diff)
	}
	if id := o.text("select system_identifier || ' ' || timeline from outbox_checkpoints"); id != o.text("select system_identifier || ' 1' from pg_control_system()") {
		t.Errorf("cluster %s", id)
	}
	if diff := cmp.Diff("t f f f", o.text("select format('%s %s %s %s', pubinsert, pubupdate, pubdelete, pubtruncate) from pg_publication")); diff != "" {
		t.Error(diff)
	}
	// A second Setup makes nothing. It refuses nothing either, although the table holds rows by now.
	o.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	if diff := cmp.Diff(SetupResult{}, o.setup()); diff != "" {
		t.Error(diff)
	}
	if steps, err := Plan(pgtest.Context(t), o.cfg); len(steps) != 0 || err != nil {
		t.Errorf("plan afterwards: %v, %v", steps, err)
	}
	if o.checkpoint() != checkpoint {
		t.Errorf("the second setup changed the checkpoint: %s", o.checkpoint())
	}
	if _, err := Preflight(pgtest.Context(t), o.conn, PreflightConfig{Source: o.cfg.Source, ReplicationUser: "postgres"}); err != nil {
		t.Error(err)
	}
}

func TestSetupAtOnce(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	var made atomic.Int32
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			r, err := Setup(pgtest.Context(t), o.cfg)
			if r.SlotCreated {
				made.Add(1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil || made.Load() != 1 {
		t.Errorf("%v, %d made the slot", err, made.Load())
	}
}

func TestSetupTellsWhoBlocks(t *testing.T) {
	t.Parallel()
	// This needs a server of its own, because a transaction that writes blocks the creation of every slot.
	p := pgtest.Start(t, servers.PostgresOptions{Settings: map[string]string{"fsync": "off", "max_prepared_transactions": "2"}})
	o := ownServer(t, p)
	writer, err := pgx.Connect(pgtest.Context(t), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close(context.Background())
	tx, err := writer.Begin(pgtest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	var xid string
	if err := tx.QueryRow(pgtest.Context(t), "select pg_current_xact_id()::text").Scan(&xid); err != nil {
		t.Fatal(err)
	}
	pid := o.text("select pid::text from pg_locks where locktype = 'transactionid' and transactionid::text = $1", xid)
	var mu sync.Mutex
	var told []Blocker
	o.cfg.Timeout = 4 * time.Second
	o.cfg.Waiting = func(b []Blocker) {
		mu.Lock()
		defer mu.Unlock()
		told = b
	}
	_, err = Setup(pgtest.Context(t), o.cfg)
	for _, word := range []string{
		"create slot", "not done within 4s", "pid " + pid, "transaction " + xid, `user "postgres"`, "open since 20",
		"select pg_terminate_backend(" + pid + ")", `run "outbox-cdc init" again`,
	} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in: %v", word, err)
		}
	}
	mu.Lock()
	if len(told) != 1 || told[0].xid != xid {
		t.Errorf("told of %+v", told)
	}
	mu.Unlock()
	if o.slot() != "none" {
		t.Error("the server goes on making the slot")
	}
	if !strings.HasPrefix(o.checkpoint(), "building") {
		t.Errorf("checkpoint: %s", o.checkpoint())
	}
	// A prepared transaction has no pid.
	if _, err := tx.Exec(pgtest.Context(t), "prepare transaction 'orphan'"); err != nil {
		t.Fatal(err)
	}
	o.cfg.Timeout = time.Second
	_, err = Setup(pgtest.Context(t), o.cfg)
	if err == nil || !strings.Contains(err.Error(), `prepared transaction "orphan"`) || !strings.Contains(err.Error(), "rollback prepared 'orphan'") {
		t.Errorf("%v", err)
	}
	if _, err := writer.Exec(pgtest.Context(t), "rollback prepared 'orphan'"); err != nil {
		t.Fatal(err)
	}
	if r := o.setup(); !r.SlotCreated {
		t.Errorf("%+v", r)
	}
}

// ownServer makes a migrated outbox on a server that no other test uses.
func ownServer(t *testing.T, p *servers.Postgres) *outboxDB {
	t.Helper()
	dsn := p.DSN("postgres")
	if err := migrations.Apply(pgtest.Context(t), dsn, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(pgtest.Context(t), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return newOutboxAt(t, dsn, conn, "outbox_cdc")
}

func TestSetupBacklog(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	o.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	_, err := Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Config, "public.event_outbox holds 1 row from before the slot", `"outbox-cdc init --backlog all"`, "since:7d", "where:", "--backlog none")
	if o.slot() != "none" || o.checkpoint() != "none" || o.text("select count(*)::text from pg_publication") != "0" {
		t.Error("a refusal made something")
	}
	o.cfg.Backlog.None = true
	o.setup()
}

// A row may commit after inspect has looked and before the slot's consistent point. The stream would not carry it, so Setup
// refuses.
func TestSetupBacklogWhileWaiting(t *testing.T) {
	t.Parallel()
	p := pgtest.Start(t, servers.PostgresOptions{Settings: servers.NoSync()})
	o := ownServer(t, p)
	writer, err := pgx.Connect(pgtest.Context(t), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close(context.Background())
	const insert = "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')"
	if _, err := writer.Exec(pgtest.Context(t), "begin; "+insert); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	o.cfg.Waiting = func([]Blocker) {
		once.Do(func() {
			if _, err := writer.Exec(context.Background(), "commit"); err != nil {
				t.Error(err)
			}
		})
	}
	_, err = Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Config, "holds 1 row from before the slot")
	if o.slot() != "none" {
		t.Error("a slot was left behind: " + o.slot())
	}
	o.exec("delete from event_outbox")
	o.setup()
}

func TestSetupAfterAnAbortedOne(t *testing.T) {
	t.Parallel()
	for name, before := range map[string][]string{
		"before the slot": {"insert into outbox_checkpoints (slot_name, state) values ('SLOT', 'building')"},
		"after the slot":  {"insert into outbox_checkpoints (slot_name, state) values ('SLOT', 'building')", "select pg_create_logical_replication_slot('SLOT', 'pgoutput')"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			o.exec(before...)
			old := o.slot()
			_, err := Preflight(pgtest.Context(t), o.conn, PreflightConfig{Source: o.cfg.Source})
			exitcodetest.Want(t, err, exitcode.Config, `run "outbox-cdc init"`)
			if r := o.setup(); !r.SlotCreated || o.slot() == old {
				t.Errorf("%+v, slot %s before and %s after", r, old, o.slot())
			}
		})
	}
}

// Another slot may have left log rows beyond the start of the new one. The epochs of the new slot begin above theirs, so that these
// rows settle nothing.
func TestSetupEpoch(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	o.exec("insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) values (1, 1, 'delivered', now(), '7F/0', 0, 41)",
		"insert into outbox_checkpoints (slot_name, state, epoch, batch_seq) values ('SLOT', 'building', 12, 99)")
	o.setup()
	if got := o.text("select format('epoch %s slot_epoch %s batch_seq %s', epoch, slot_epoch, batch_seq) from outbox_checkpoints"); got != "epoch 41 slot_epoch 42 batch_seq 99" {
		t.Error(got)
	}
}

// What a session of a slot that was destroyed has written of a sink is not taken for what a session of the new slot says.
func TestEpochIsBeyondTheStatesOfSinks(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	o.exec("insert into outbox_processors (id, processor_name, processor_type, connector, state) values (1, 'a', 't', 'c', '{\"condition\": \"suspect\", \"epoch\": 5}')",
		"insert into outbox_processors (id, processor_name, processor_type, connector, state) values (2, 'b', 't', 'c', '[{\"epoch\": \"x\"}]')")
	if _, err := Setup(pgtest.Context(t), o.cfg); err != nil {
		t.Fatal(err)
	}
	if got := o.text("select format('epoch %s slot_epoch %s', epoch, slot_epoch) from outbox_checkpoints"); got != "epoch 5 slot_epoch 6" {
		t.Error(got)
	}
}

func TestSetupRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before []string
		change func(*outboxDB)
		code   exitcode.Code
		words  []string
	}{
		"a slot of somebody else": {
			before: []string{"select pg_create_logical_replication_slot('SLOT', 'test_decoding')"},
			code:   exitcode.SlotLost, words: []string{"was not made by", "select pg_drop_replication_slot('SLOT')", "source.slot"},
		},
		"half made with another plugin": {
			before: []string{"insert into outbox_checkpoints (slot_name, state) values ('SLOT', 'building')", "select pg_create_logical_replication_slot('SLOT', 'test_decoding')"},
			code:   exitcode.SlotLost, words: []string{"somebody else"},
		},
		"half made over an older one": {
			before: []string{"insert into outbox_checkpoints (slot_name, state, prefix_lsn, prefix_index) values ('SLOT', 'building', '0/1', 0)"},
			code:   exitcode.SlotLost, words: []string{"is being made anew", `"outbox-cdc resync" again`},
		},
		"a slot that is gone": {
			before: []string{"insert into outbox_checkpoints (slot_name, state, system_identifier, prefix_lsn, prefix_index) select 'SLOT', 'ready', system_identifier::text, '0/1', 0 from pg_control_system()"},
			code:   exitcode.SlotLost, words: []string{"is gone", StartAnew},
		},
		"another cluster": {
			before: []string{"insert into outbox_checkpoints (slot_name, state, system_identifier, prefix_lsn, prefix_index) values ('SLOT', 'ready', '7', '0/1', 0)"},
			code:   exitcode.SlotLost, words: []string{"cluster with system identifier 7", "source.dsn"},
		},
		"a publication of all tables": {
			before: []string{"create publication outbox_cdc for all tables"},
			code:   exitcode.Config, words: []string{"of all tables", "source.publication"},
		},
		"no such table": {
			change: func(o *outboxDB) { o.cfg.Table = "public.nothing" },
			code:   exitcode.Config, words: []string{"table public.nothing does not exist", "source.table"},
		},
		"a view": {
			change: func(o *outboxDB) { o.cfg.Table = "public.event_outbox_status" },
			code:   exitcode.Config, words: []string{"is no table"},
		},
		"columns that are not there": {
			change: func(o *outboxDB) { o.cfg.Columns.AggregateID, o.cfg.Columns.MaxRetries = "aggregateid", "event_type" },
			code:   exitcode.Config, words: []string{`"aggregateid"`, "max_retries", "source.columns"},
		},
		"an unlogged table": {
			before: []string{"alter table event_outbox set unlogged"},
			code:   exitcode.Config, words: []string{"unlogged", "set logged"},
		},
		"a slot's name": {
			change: func(o *outboxDB) { o.cfg.Slot = "x; drop" },
			code:   exitcode.Config, words: []string{"a-z, 0-9 and _"},
		},
		"a wrong dsn": {
			change: func(o *outboxDB) { o.cfg.DSN = "postgres://u:hunter2@localhost:port/db" },
			code:   exitcode.Config, words: []string{"postgres://user:password@host:5432/database"},
		},
		"a wrong password": {
			change: func(o *outboxDB) { o.cfg.DSN = o.as("postgres", "hunter2") },
			code:   exitcode.Privilege, words: []string{"password authentication failed", "pg_hba.conf"},
		},
		"no such database": {
			change: func(o *outboxDB) { o.cfg.DSN = strings.Replace(o.dsn, o.conn.Config().Database, "nothing", 1) },
			code:   exitcode.Config, words: []string{`database "nothing" does not exist`, "correct the database"},
		},
		"replication from another database": {
			change: func(o *outboxDB) {
				o.cfg.ReplicationDSN = strings.Replace(o.dsn, o.conn.Config().Database, "postgres", 1)
			},
			code: exitcode.Config, words: []string{`to "postgres" of`, "source.replication_dsn"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			o.exec(test.before...)
			if test.change != nil {
				test.change(o)
			}
			slot, checkpoint := o.slot(), o.checkpoint()
			_, err := Setup(pgtest.Context(t), o.cfg)
			for i := range test.words {
				test.words[i] = strings.ReplaceAll(test.words[i], "SLOT", o.cfg.Slot)
			}
			exitcodetest.Want(t, err, test.code, test.words...)
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the password is in: %v", err)
			}
			if o.slot() != slot || (o.checkpoint() != checkpoint && !strings.HasPrefix(o.checkpoint(), "building")) {
				t.Errorf("slot %s became %s, checkpoint %s became %s", slot, o.slot(), checkpoint, o.checkpoint())
			}
		})
	}
}

func waitUntil(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 20 s")
		}
	}
}
