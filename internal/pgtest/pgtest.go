// Package pgtest gives a test a PostgreSQL database of its own.
//
// All tests of a binary share one server, which is started on first use and ends with the binary; or they use the
// one that $TEST_DATABASE_URL names, as a superuser. A test that stops or crashes its server asks for one with Start.
// Where no server can be had, tests fail and say what to install or set.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// Database is one of a test's own. When the test ends it is dropped together with its replication slots, whoever is
// still connected.
type Database struct {
	Name  string
	DSN   string // of a superuser
	Admin string // the same server's database postgres

	roles []string // dropped with it
}

// New makes a migrated database.
func New(t testing.TB) *Database {
	t.Helper()
	s := shared(t)
	d := s.create(t, s.template)
	if s.template == "" {
		if err := migrations.Apply(context.Background(), d.DSN, migrations.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// CopyOf makes a copy of the database that a connection leads to, on the same server. Nobody else may be connected to it. The connection is
// closed and made anew.
func CopyOf(t testing.TB, of **pgx.Conn) *Database {
	t.Helper()
	config := (*of).Config()
	if err := (*of).Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	d := shared(t).create(t, config.Database)
	*of = connect(t, config.ConnString())
	return d
}

// Unmigrated makes an empty database.
func Unmigrated(t testing.TB) *Database {
	t.Helper()
	return shared(t).create(t, "")
}

// Conn opens a connection that is closed when the test ends.
func (d *Database) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	return connect(t, d.DSN)
}

// Pool opens a pool that is closed when the test ends. configure sets up its sessions: ledger.Pin, as in the product.
func (d *Database) Pool(t testing.TB, configure func(*pgconn.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(d.DSN)
	if err != nil {
		t.Fatal(err)
	}
	configure(&config.ConnConfig.Config)
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Slot makes up the name of a replication slot. Slots belong to the server, so the same name cannot be used in two
// tests. Whoever makes the slot need not drop it.
func (d *Database) Slot(t testing.TB) string {
	t.Helper()
	return uniqueName("slot")
}

// Start starts a server for this test alone, which it may stop, crash and start again.
func Start(t testing.TB, o servers.PostgresOptions) *servers.Postgres {
	t.Helper()
	p, err := servers.StartPostgres(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.Log())
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Main runs the tests of a package and then stops the server:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
// Without it the server ends with the test binary all the same, but its data stays until a server is started again.
func Main(m *testing.M) int {
	code := m.Run()
	if binary.own == nil {
		return code
	}
	if err := binary.own.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// server is what the tests of this binary share.
type server struct {
	start    sync.Once
	err      error
	admin    string
	template string            // a migrated database to copy; "" on a server of somebody else, where it would be left behind
	own      *servers.Postgres // nil if it is somebody else's
}

var binary server

func shared(t testing.TB) *server {
	t.Helper()
	binary.start.Do(func() { binary.err = binary.init(context.Background()) })
	if binary.err != nil {
		t.Fatalf("no PostgreSQL to test with: %v\nor set TEST_DATABASE_URL to a superuser's postgres://… of a server with wal_level=logical", binary.err)
	}
	return &binary
}

func (s *server) init(ctx context.Context) error {
	if s.admin = os.Getenv("TEST_DATABASE_URL"); s.admin != "" {
		return nil
	}
	own, err := servers.StartPostgres(ctx, servers.PostgresOptions{Settings: servers.NoSync()})
	if err != nil {
		return err
	}
	s.own, s.admin = own, own.DSN("postgres")
	conn, err := pgx.Connect(ctx, s.admin)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "create database outbox_template"); err != nil {
		return err
	}
	s.template = "outbox_template"
	return migrations.Apply(ctx, own.DSN(s.template), migrations.Options{})
}

func (s *server) create(t testing.TB, template string) *Database {
	t.Helper()
	name := uniqueName("test")
	dsn, err := withDatabase(s.admin, name)
	if err != nil {
		t.Fatal(err)
	}
	sql := "create database " + name
	if template != "" {
		sql += " template " + template
	}
	if _, err := connect(t, s.admin).Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	d := &Database{Name: name, DSN: dsn, Admin: s.admin}
	t.Cleanup(func() { d.drop(t) })
	return d
}

// drop first shuts the door, so that nobody reconnects while the slots go, and the slots before the database.
func (d *Database) drop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn := connect(t, d.Admin)
	statements := []string{
		"alter database " + d.Name + " allow_connections false",
		"select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '" + d.Name + "'",
		"select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '" + d.Name + "'",
		"drop database " + d.Name + " with (force)",
	}
	for _, role := range d.roles {
		statements = append(statements, "drop role "+role)
	}
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
			return
		}
	}
}

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// uniqueName is a name for a slot or a database that no other test makes.
func uniqueName(kind string) string {
	return kind + "_" + strings.ToLower(rand.Text())
}

func withDatabase(dsn, name string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" {
		return "", errors.New("TEST_DATABASE_URL must be a URL, postgres://…") // err would show the password
	}
	u.Path = "/" + name
	return u.String(), nil
}
