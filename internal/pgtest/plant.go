package pgtest

import (
	"context"
	_ "embed"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed plant.sql
var plantSQL string

// Planted is what a role that may create things in a schema, and nothing else, has put there: functions, aggregates, operators,
// views and domains of the names that our SQL uses, with every near type of arguments. Whoever executes one of them gets an
// error that begins with CAUGHT, and is counted.
type Planted struct {
	Role   string
	db     *Database
	conn   *pgx.Conn
	probes int64
}

//go:embed trap.sql
var trapSQL string

// Plant plants in a schema that exists, which takes some seconds. Sessions that were opened before it count nothing.
func (d *Database) Plant(t testing.TB, schema string) *Planted {
	t.Helper()
	p := d.Stranger(t, schema)
	p.exec(t, p.conn, "set search_path = pg_catalog")
	p.exec(t, p.conn, "select set_config('plant.schema', $1, false), set_config('plant.functions', $2, false)", schema, strings.Join(calledNames(t), ","))
	p.exec(t, p.conn, plantSQL)
	p.exec(t, p.conn, "set search_path = "+pgx.Identifier{schema}.Sanitize())
	return p
}

// Stranger makes the role, which has planted nothing yet: Exec does.
func (d *Database) Stranger(t testing.TB, schema string) *Planted {
	t.Helper()
	p := &Planted{Role: uniqueName("mallory"), db: d}
	admin := d.Conn(t)
	p.exec(t, admin, "create role "+p.Role)
	d.roles = append(d.roles, p.Role)
	p.exec(t, admin, "alter database "+d.Name+" set track_functions = 'pl'")
	p.exec(t, admin, "create schema trap authorization "+p.Role)
	p.exec(t, admin, "grant usage, create on schema "+pgx.Identifier{schema}.Sanitize()+" to "+p.Role)
	p.conn = d.Conn(t)
	p.exec(t, p.conn, "set role "+p.Role)
	p.exec(t, p.conn, trapSQL)
	p.exec(t, p.conn, "set search_path = "+pgx.Identifier{schema}.Sanitize())
	return p
}

// Exec runs SQL as the role, in its schema: to plant more, which calls trap.spring('what it is').
func (p *Planted) Exec(t testing.TB, sql string) {
	t.Helper()
	p.exec(t, p.conn, sql)
}

func (p *Planted) exec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("plant: %.200s: %v", sql, err)
	}
}

// CheckNothingCaught fails the test if anybody has executed something that was planted. Sessions that still run are
// counted a second after their last statement, so end them before.
func (p *Planted) CheckNothingCaught(t testing.TB) {
	t.Helper()
	marker := connect(t, p.db.DSN) // counts of sessions that ended before it are there when its own is
	p.exec(t, marker, "set search_path = pg_catalog")
	p.exec(t, marker, "select trap.probe()")
	if err := marker.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	conn := p.db.Conn(t)
	p.exec(t, conn, "set search_path = pg_catalog")
	count := func(name string) (n int64) {
		t.Helper()
		const ask = "select coalesce(sum(calls), 0)::bigint from pg_stat_user_functions where schemaname = 'trap' and funcname = $1"
		if err := conn.QueryRow(context.Background(), ask, name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := p.probes
	p.probes++
	for deadline := time.Now().Add(20 * time.Second); count("probe") <= before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no statistics of functions: was track_functions set?")
		}
	}
	var what []string
	if err := conn.QueryRow(context.Background(), "select coalesce(array_agg(what), '{}') from trap.caught").Scan(&what); err != nil {
		t.Fatal(err)
	}
	if n := count("touched"); n > 0 || len(what) > 0 {
		t.Errorf("%d calls of what somebody else has planted (the errors say which: CAUGHT) %q", n, what)
	}
}

// calledNames are all words before a "(" in the Go and SQL files of this module: those of functions of PostgreSQL among them
// could be ours.
func calledNames(t testing.TB) []string {
	t.Helper()
	root, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatal("no go.mod above the test")
		}
		root = filepath.Dir(root)
	}
	call := regexp.MustCompile(`\b[a-z][a-z0-9_]+\(`)
	names := map[string]bool{}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".sql") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, name := range call.FindAllString(string(text), -1) {
			names[strings.TrimSuffix(name, "(")] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for name := range names {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
