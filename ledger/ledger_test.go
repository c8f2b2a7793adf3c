package ledger_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

func TestStatement(t *testing.T) {
	t.Parallel()
	const text = "select ledger.outbox_make_partitions(now(), 7) from ledger.outbox_parked join ledger.event_outbox_status using (id)"
	got := ledger.Schema(`My "cdc"`).TextFor(text)
	want := `select "My ""cdc""".outbox_make_partitions(now(), 7) from "My ""cdc""".outbox_parked join "My ""cdc""".event_outbox_status using (id)`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := ledger.Schema("cdc").QuotedName("outbox_parked"), `"cdc"."outbox_parked"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The session gets our settings, whatever the DSN says, in upper or lower case.
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

// A statement of a running connector that waits for a lock gives up after two seconds, and one that holds a lock and hangs, too.
func TestPinRun(t *testing.T) {
	t.Parallel()
	c, err := pgx.ParseConfig("postgres://h/d?lock_timeout=0")
	if err != nil {
		t.Fatal(err)
	}
	ledger.PinRun(&c.Config, "this one")
	for name, want := range map[string]string{
		"lock_timeout": "2s", "idle_in_transaction_session_timeout": "2s", "application_name": "this one",
	} {
		if got := c.RuntimeParams[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// production lists the directories of the packages that are in the product.
var production = []string{
	"admin", "checkpoint", "cleanup", "cmd", "config", "connector", "decoder", "internal/advisory", "internal/dsn", "ledger", "migrations", "monitoring",
	"provision", "replication", "router", "service", "sinks",
}

// eachFile calls f with the Go files of the product that are no tests.
func eachFile(t *testing.T, f func(name string, text []byte)) {
	t.Helper()
	for _, dir := range production {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			f(filepath.ToSlash(strings.TrimPrefix(path, ".."+string(filepath.Separator))), text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// All places that open sessions are listed here, so that a new one is not forgotten: each has to call ledger.Pin.
func TestSessionsAreOpenedInFewPlaces(t *testing.T) {
	t.Parallel()
	opens := regexp.MustCompile(`(pgx|pgconn)\.Connect(Config)?\(|pgxpool\.New|sql\.Open\(|stdlib\.Open`)
	known := map[string]bool{
		"connector/postgres.go":    true, // by replication.SQLConfig
		"provision/connect.go":     true, // by replication.SQLConfig, and one of the replication protocol
		"replication/open.go":      true, // of the replication protocol
		"migrations/migrations.go": true, // sets what the migrations need by itself
	}
	eachFile(t, func(name string, text []byte) {
		if opens.Match(text) && !known[name] {
			t.Errorf("%s opens a session: let ledger.Pin set it up, and name it here", name)
		}
	})
}

// No other package has SQL on the ledger's tables, except the migrations, which make them. Package provision grants rights on them, and
// asks the catalogs for them by their names, in quotes.
func TestOnlyThisPackageHasSQLOnTheLedger(t *testing.T) {
	t.Parallel()
	statement := regexp.MustCompile("(?is)[\"`]\\s*(select|insert|update|delete|with|copy|lock|truncate|alter|from|into|join|using|table)\\s[^\"`]*[^'\"`a-z_]" +
		`(outbox_(backlog|checkpoints|delivery_log|metrics|parked|processors)|event_outbox_status)\b`)
	found := 0
	eachFile(t, func(name string, text []byte) {
		switch m := statement.Find(text); {
		case m == nil:
		case strings.HasPrefix(name, "ledger/"):
			found++
		case strings.HasPrefix(name, "migrations/"): // they make and drop the tables
		default:
			t.Errorf("%s has SQL on the ledger: %s", name, m)
		}
	})
	if found < 5 {
		t.Errorf("%d files of this package have SQL: the pattern finds too little", found)
	}
}
