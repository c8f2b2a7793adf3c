package service

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// world is a database and a configuration that names it.
type world struct {
	t     *testing.T
	admin string // DSN of a superuser
	conn  *pgx.Conn
	cfg   config.Config
	owner string // of what a test has made by another role than a superuser
}

func (w *world) database() string { return w.conn.Config().Database }

// newWorld makes a world with an empty database. The configuration comes from environ and from variables that name the
// database.
func newWorld(t *testing.T, environ ...string) *world {
	t.Helper()
	d := pgtest.Unmigrated(t)
	w := &world{t: t, admin: d.DSN, conn: d.Conn(t)}
	w.configure("", append(environ, "DATABASE_URL="+d.DSN, "OUTBOX_PUBLISHER_TYPE=stdout", "OUTBOX_SLOT="+d.Slot(t), "OUTBOX_LISTEN=127.0.0.1:0")...)
	return w
}

func (w *world) configure(path string, environ ...string) {
	w.t.Helper()
	var err error
	if w.cfg, _, err = config.Load(path, environ); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exec(sqls ...string) {
	w.t.Helper()
	pgtest.Exec(w.t, w.conn, sqls...)
}

func (w *world) text(sql string) string {
	w.t.Helper()
	return pgtest.Text(w.t, w.conn, sql)
}

// newRole makes a login, which is dropped when the test ends, and returns its name and its DSN.
func (w *world) newRole() (name, dsn string) {
	w.t.Helper()
	name, password := pgtest.NewLogin(w.t, w.conn)
	return name, pgtest.WithLogin(w.t, w.admin, name, password)
}

func TestInitAndDestroy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec("revoke create on schema public from public") // PostgreSQL 14 grants it, and Init warns
	plan, err := InitPlan(pgtest.Context(t), w.cfg, InitOptions{})
	if err != nil || len(plan) != 9 || plan[0] != "apply 004_create_outbox_tables.sql in schema public" {
		t.Errorf("plan %q, %v", plan, err)
	}
	if n := w.text("select count(*)::text from pg_class where relname ~ 'outbox'"); n != "0" {
		t.Errorf("the plan made %s relations", n)
	}
	result, err := Init(pgtest.Context(t), w.cfg, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if result.ConsistentPoint == "" {
		t.Error("no consistent point")
	}
	result.ConsistentPoint = ""
	want := InitResult{Migrations: []string{"004_create_outbox_tables.sql", "005_log_member.sql", "006_processor_state.sql", "007_retention.sql", "008_partitioned_outbox.sql", "009_metrics_hours.sql", "010_slot_life.sql"}, PublicationCreated: true, SlotCreated: true}
	want.Deletes = Deletes(w.cfg)
	if diff := cmp.Diff(want, result); diff != "" {
		t.Error(diff)
	}
	if got := w.text("select concat_ws(' ', connector, processor_name, processor_type, since) from outbox_processors"); got != w.cfg.Name+" stdout stdout -infinity" {
		t.Errorf("processor %s", got)
	}
	result, err = Init(pgtest.Context(t), w.cfg, InitOptions{})
	if diff := cmp.Diff(InitResult{Migrations: []string{}, Deletes: want.Deletes}, result); diff != "" || err != nil {
		t.Errorf("again: %v %s", err, diff)
	}
	if plan, err := InitPlan(pgtest.Context(t), w.cfg, InitOptions{}); len(plan) != 0 || err != nil {
		t.Errorf("plan afterwards: %q, %v", plan, err)
	}
	gone, err := Destroy(pgtest.Context(t), w.cfg, DestroyOptions{Ledger: true})
	if diff := cmp.Diff(DestroyResult{true, true, true, true}, gone); diff != "" || err != nil {
		t.Errorf("destroy: %v %s", err, diff)
	}
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	_, err = Init(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Config, "holds 1 row", "--backlog none")
	if w.text("select count(*)::text from pg_class where relname = 'outbox_parked'") != "0" {
		t.Error("a refusal made tables")
	}
	if _, err = Init(pgtest.Context(t), w.cfg, InitOptions{Backlog: provision.Backlog{None: true}}); err != nil {
		t.Error(err)
	}
	if got := w.text("select (since > now() - interval '1 minute')::text from outbox_processors"); got != "true" {
		t.Error("the sink is owed what was to be left")
	}
}

// Where Destroy fails in the middle, it says what is gone and what is left, and can be run again.
func TestDestroyInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	name, dsn := w.newRole()
	w.exec("alter role "+name+" replication", "grant select on all tables in schema public to "+name)
	gone, err := Destroy(pgtest.Context(t), w.cfg, DestroyOptions{AdminDSN: dsn, Ledger: true})
	exitcodetest.Want(t, err, exitcode.Privilege, "must be owner of publication", "OUTBOX_ADMIN_URL",
		"dropped before that: the replication slot; left: the publication, the checkpoint, the ledger; when the cause is mended, run outbox-cdc destroy again")
	if diff := cmp.Diff(DestroyResult{SlotDropped: true}, gone); diff != "" {
		t.Error(diff)
	}

	w.exec("create view mine as select event_id from outbox_parked")
	gone, err = Destroy(pgtest.Context(t), w.cfg, DestroyOptions{Ledger: true})
	if err == nil || !strings.Contains(err.Error(), "outbox_parked because other objects depend on it") ||
		!strings.HasSuffix(err.Error(), "\ndropped before that: the publication, the checkpoint; left: the ledger; when the cause is mended, run outbox-cdc destroy again: it goes on from there") {
		t.Errorf("with a view that needs the ledger: %v", err)
	}
	if diff := cmp.Diff(DestroyResult{PublicationDropped: true, CheckpointDeleted: true}, gone); diff != "" {
		t.Error(diff)
	}
	if n := w.text("select count(*)::text from pg_class where relname ~ '^outbox_' and relkind in ('r', 'p') and not relispartition"); n != "8" {
		t.Errorf("%s tables of the ledger are left, want all 8", n)
	}

	w.exec("drop view mine")
	gone, err = Destroy(pgtest.Context(t), w.cfg, DestroyOptions{Ledger: true})
	if diff := cmp.Diff(DestroyResult{LedgerDropped: true}, gone); diff != "" || err != nil {
		t.Errorf("the last time: %v %s", err, diff)
	}
}

func TestInitMapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := t.TempDir() + "/outbox.yaml"
	text := `source:
  dsn: ` + w.admin + `
  slot: ` + w.cfg.Source.Slot + `
  table: shop.event_outbox
  ledger_schema: cdc
  columns: {id: key, aggregate_id: aggregateid, event_version: "", metadata: "", max_retries: "", tenant_id: "", correlation_id: "", causation_id: ""}
sinks: [{type: stdout}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.configure(file)
	_, err := Init(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Config, "table shop.event_outbox does not exist", "source.table")
	if w.text("select count(*)::text from pg_class where relname ~ 'outbox'") != "0" {
		t.Error("a refusal made tables")
	}
	const mine = `create schema shop
		create table event_outbox (key bigint generated always as identity, aggregate_type text, aggregateid text, event_type text, payload jsonb, created_at timestamptz, status text)`
	w.exec(mine)
	if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	got := w.text("select string_agg(relname || ' ' || format_type(atttypid, null), ', ' order by relname) from pg_class join pg_attribute on attrelid = pg_class.oid where relnamespace = 'cdc'::regnamespace and attname = 'event_id' and relkind in ('r', 'p') and not relispartition")
	if got != "outbox_delivery_log text, outbox_parked text" {
		t.Errorf("ids are %s", got)
	}
	if n := w.text("select count(*)::text from pg_class where relname = 'event_outbox'"); n != "1" {
		t.Errorf("%s tables event_outbox", n)
	}
	if n := w.text("select count(*)::text from pg_index where indrelid = 'shop.event_outbox'::regclass"); n != "0" {
		t.Error("the user's table was altered")
	}
	if text, err := InitSQL(pgtest.Context(t), w.cfg, InitOptions{}); err != nil || !strings.Contains(text, "set local outbox.event_id_type = text") {
		t.Errorf("printed SQL: %v", err)
	}
}

func TestInitRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec("create table outbox_metrics (mine int)")
	_, err := Init(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Config, "table outbox_metrics is not ours", "columns unknown: mine", "source.ledger_schema")

	w = newWorld(t)
	w.cfg.Source.DSN = "postgres://u:hunter2@127.0.0.1:1/d?sslmode=disable"
	_, err = Init(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Unavailable, "cannot be reached", "connection refused")
	_, err = Destroy(pgtest.Context(t), w.cfg, DestroyOptions{})
	exitcodetest.Want(t, err, exitcode.Unavailable, "cannot be reached")

	w = newWorld(t)
	name, dsn := w.newRole()
	w.exec("revoke create on schema public from public") // as it is from PostgreSQL 15 on
	w.cfg.Source.DSN, w.cfg.Source.ReplicationDSN = config.DSN(dsn), config.DSN(dsn)
	_, err = Init(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Privilege, "may not replicate", "alter role \""+name)
	w.exec("alter role " + name + " replication")
	_, err = Init(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Privilege, "lacks privileges for init", "OUTBOX_ADMIN_URL", "--print-sql", "grant usage, create on schema")
	_, err = Resync(pgtest.Context(t), w.cfg, ResyncOptions{})
	exitcodetest.Want(t, err, exitcode.Privilege, "lacks privileges for resync", "OUTBOX_ADMIN_URL", "outbox-cdc init --print-sql")
}

// Init warns if another role may create things in the ledger's schema. What it has created there is refused before
// anything is read.
func TestInitAmongOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	role, dsn := w.newRole()
	w.exec("revoke create on schema public from public", "grant create, usage on schema public to "+role)
	thief, err := pgx.Connect(pgtest.Context(t), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close(pgtest.Context(t))
	// The other role plants a view in the ledger's schema, in a session of its own.
	for _, sql := range []string{
		"create function public.ran() returns text language plpgsql as 'begin raise ''ran as %'', current_user; end'",
		"create view public.outbox_checkpoints as select public.ran() as slot_name, 'ready' as state, '1' as system_identifier",
		"grant select on public.outbox_checkpoints to public",
	} {
		if _, err := thief.Exec(pgtest.Context(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	want := "public.outbox_checkpoints belongs to role " + role + ", who could run code with your rights through it"
	_, err = Init(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Config, want, "source.ledger_schema")
	_, err = InitPlan(pgtest.Context(t), w.cfg, InitOptions{})
	exitcodetest.Want(t, err, exitcode.Config, want)
	_, err = Destroy(pgtest.Context(t), w.cfg, DestroyOptions{Ledger: true})
	exitcodetest.Want(t, err, exitcode.Config, want)

	w.exec("drop view public.outbox_checkpoints")
	result, err := Init(pgtest.Context(t), w.cfg, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	warning := "role " + role + ` may create tables and functions in schema "public", where the ledger is; the connector uses none of them, but your own ` +
		`statements might: revoke create on schema "public" from ` + role + "; or put the ledger into a schema of its own by source.ledger_schema"
	if diff := cmp.Diff([]string{warning}, result.Warnings); diff != "" {
		t.Error(diff)
	}
	for _, test := range []struct{ grant, want string }{
		{"grant create on schema public to public", "the roles public, " + role + " may create"},
		{"revoke create on schema public from " + role, "every role (public) may create"},
		{"revoke create on schema public from public", ""},
	} {
		w.exec(test.grant)
		result, err := Init(pgtest.Context(t), w.cfg, InitOptions{})
		if got := strings.Join(result.Warnings, "; "); err != nil || !strings.HasPrefix(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: %q, %v; want %q", test.grant, got, err, test.want)
		}
	}
}

// If another process makes or drops the same things, Init says so, and waits for it only for a limited time.
func TestInitWaitsForALock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	key := w.text("select hashtextextended('outbox-cdc slot ' || '" + w.cfg.Source.Slot + "', 0)::text")
	for _, lock := range []struct{ key, what string }{{key, "slot " + strconv.Quote(w.cfg.Source.Slot)}, {"122550254464888", "the schema of outbox-cdc"}} {
		w.exec("set application_name = 'the other one'", "select pg_advisory_lock("+lock.key+")")
		told := ""
		_, err := Init(pgtest.Context(t), w.cfg, InitOptions{Timeout: 1200 * time.Millisecond, WaitingForLock: func(holder string) { told = holder }})
		if err == nil || !strings.Contains(err.Error(), lock.what+" is locked by another session, and still was after 1.2s: pid ") || !strings.Contains(err.Error(), `"the other one"`) {
			t.Errorf("%s: %v", lock.what, err)
		}
		if !strings.Contains(told, `application "the other one"`) {
			t.Errorf("%s: told %q", lock.what, told)
		}
		// Destroy waits as well, until the other one is done.
		ended := make(chan error, 1)
		holders := make(chan string, 10)
		go func() {
			_, err := Destroy(pgtest.Context(t), w.cfg, DestroyOptions{Ledger: true, WaitingForLock: func(holder string) { holders <- holder }})
			ended <- err
		}()
		select {
		case holder := <-holders:
			if !strings.Contains(holder, `application "the other one"`) {
				t.Errorf("%s: destroy told %q", lock.what, holder)
			}
		case err := <-ended:
			t.Fatalf("%s: destroy ended: %v", lock.what, err)
		}
		w.exec("select pg_advisory_unlock(" + lock.key + ")")
		if err := <-ended; err != nil {
			t.Errorf("%s: destroy: %v", lock.what, err)
		}
		if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// With an administrator's DSN, Init grants the connector's login what it needs. A connector with this login works.
func TestInitByAdministrator(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	app, appDSN := w.newRole()
	stream, streamDSN := w.newRole()
	w.exec("alter role " + stream + " replication")
	w.cfg.Source.DSN, w.cfg.Source.ReplicationDSN = config.DSN(appDSN), config.DSN(streamDSN)
	o := InitOptions{AdminDSN: w.admin}
	plan, err := InitPlan(pgtest.Context(t), w.cfg, o)
	if err != nil || len(plan) != 10 || plan[7] != "grant role "+app+" what it needs" {
		t.Errorf("plan %q, %v", plan, err)
	}
	if _, err := Init(pgtest.Context(t), w.cfg, o); err != nil {
		t.Fatal(err)
	}
	runAndDeliver(t, w)
}

// The SQL of --print-sql is enough for init and run under the two logins that it names.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, appDSN := w.newRole()
	_, streamDSN := w.newRole()
	w.cfg.Source.DSN, w.cfg.Source.ReplicationDSN = config.DSN(appDSN), config.DSN(streamDSN)
	text, err := InitSQL(pgtest.Context(t), w.cfg, InitOptions{AdminDSN: w.admin})
	if err != nil {
		t.Fatal(err)
	}
	w.exec("revoke create on schema public from public", text)
	result, err := Init(pgtest.Context(t), w.cfg, InitOptions{})
	if err != nil || result.PublicationCreated || !result.SlotCreated || len(result.Migrations) != 0 {
		t.Fatalf("%+v, %v", result, err)
	}
	runAndDeliver(t, w)
}

// runAndDeliver runs the connector until an event has been delivered and recorded, and drains it.
func runAndDeliver(t *testing.T, w *world) {
	t.Helper()
	var stdout lockedBuffer
	options := BuildOptions{
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Health: &monitoring.Health{}, Stdout: &stdout,
		Metrics: monitoring.NewMetrics(w.cfg.Metrics.Prefix, monitoring.NewRegistry()),
	}
	c, err := Build(w.cfg, options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(pgtest.Context(t))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('Order', '1', 'created', '{}')")
	deadline := time.After(20 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); w.text("select count(*)::text from outbox_delivery_log where status = 'delivered'") != "1"; {
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		case <-deadline:
			t.Fatalf("nothing was delivered within 20 s; stdout %q", stdout.String())
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !strings.Contains(stdout.String(), `"created"`) {
		t.Errorf("stdout: %s", stdout.String())
	}
	if got := w.text("select status from event_outbox_status"); got != "delivered" {
		t.Errorf("the view says %s", got)
	}
	if got := w.text("select (confirmed_lsn > prefix_lsn)::text from outbox_checkpoints"); got == "" {
		t.Error("no checkpoint")
	}
}

// lockedBuffer is a buffer that a sink may write while the test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
