package ledger_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

func TestSQL(t *testing.T) {
	t.Parallel()
	const text = "select ledger.outbox_make_partitions(now(), 7) from ledger.outbox_parked join ledger.event_outbox_status using (id)"
	got := ledger.Schema(`My "cdc"`).SQL(text)
	want := `select "My ""cdc""".outbox_make_partitions(now(), 7) from "My ""cdc""".outbox_parked join "My ""cdc""".event_outbox_status using (id)`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := ledger.Schema("cdc").Name("outbox_parked"), `"cdc"."outbox_parked"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Whatever the DSN says, in whatever case, ours is what the session gets.
func TestPin(t *testing.T) {
	t.Parallel()
	c, err := pgx.ParseConfig("postgres://h/d?search_path=public&Search_Path=public&STATEMENT_TIMEOUT=1&work_mem=64MB")
	if err != nil {
		t.Fatal(err)
	}
	ledger.Pin(&c.Config)
	for name, want := range map[string]string{
		"search_path": "pg_catalog, pg_temp", "Search_Path": "", "STATEMENT_TIMEOUT": "", "statement_timeout": "0",
		"work_mem": "64MB", "application_name": "outbox-cdc",
	} {
		if got := c.RuntimeParams[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// Sessions are opened in few places, all of which pin them; whoever adds one has to come here.
func TestSessionsAreOpenedInFewPlaces(t *testing.T) {
	t.Parallel()
	opens := regexp.MustCompile(`(pgx|pgconn)\.Connect(Config)?\(|pgxpool\.New|sql\.Open\(|stdlib\.Open`)
	known := map[string]bool{
		"connector/sql.go":         true, // by replication.SQLConfig
		"provision/connect.go":     true, // by replication.SQLConfig, and one of the replication protocol
		"replication/open.go":      true, // of the replication protocol
		"migrations/migrations.go": true, // sets what the migrations need by itself
	}
	for _, dir := range []string{"checkpoint", "cmd", "config", "connector", "internal/advisory", "internal/dsn", "ledger", "migrations", "monitoring", "provision", "replication", "router", "service", "sinks"} {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if name := filepath.ToSlash(strings.TrimPrefix(path, ".."+string(filepath.Separator))); opens.Match(text) && !known[name] {
				t.Errorf("%s opens a session: let ledger.Pin set it up, and name it here", name)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
