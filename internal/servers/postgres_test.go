package servers

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func postgresFor(t *testing.T, o PostgresOptions) *Postgres {
	t.Helper()
	p, err := StartPostgres(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func queryString(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var value string
	if err := conn.QueryRow(t.Context(), sql).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

func TestPostgresRestartsWithItsSlot(t *testing.T) {
	t.Parallel()
	p := postgresFor(t, PostgresOptions{Settings: map[string]string{"max_slot_wal_keep_size": "64MB"}})
	dsn := p.DSN("postgres")
	t.Logf("PostgreSQL %s of %s at %s", p.Version(), p.BinDir(), p.Addr())

	if got := queryString(t, dsn, "show max_slot_wal_keep_size"); got != "64MB" {
		t.Errorf("max_slot_wal_keep_size = %s, want 64MB", got)
	}
	queryString(t, dsn, "select slot_name from pg_create_logical_replication_slot('survivor', 'pgoutput')")
	for _, mode := range []StopMode{Fast, Immediate, Smart} {
		if err := p.Stop(t.Context(), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := pgx.Connect(t.Context(), dsn); err == nil {
			t.Fatal("a stopped server accepts connections")
		}
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p.DSN("postgres") != dsn {
			t.Fatalf("its address changed from %s to %s", dsn, p.DSN("postgres"))
		}
		if got := queryString(t, dsn, "select string_agg(slot_name, ',') from pg_replication_slots"); got != "survivor" {
			t.Errorf("slots after mode %v = %q, want survivor", mode, got)
		}
	}
}

func TestStopSaysThatTheServerStillRuns(t *testing.T) {
	t.Parallel()
	p := postgresFor(t, PostgresOptions{Settings: NoSync()})
	conn, err := pgx.Connect(t.Context(), p.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx, Smart); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("smart stop with a client connected = %v, want its deadline", err)
	}
	if err := p.Stop(t.Context(), Fast); err != nil {
		t.Fatal(err)
	}
}

func TestStartTellsWhyTheServerDidNotStart(t *testing.T) {
	t.Parallel()
	dir := reachableDir(t)
	_, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir, Settings: map[string]string{"wal_level": "illogical"}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "wal_level"`) {
		t.Errorf("error = %v, want the server's own", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it left %v (%v)", left, err)
	}
}

func TestNoPostgresToBeHadNamesTheRemedy(t *testing.T) {
	t.Parallel()
	_, err := findInstallation(t.Context(), PostgresOptions{Version: "9"})
	if err == nil || !strings.Contains(err.Error(), "install it") {
		t.Errorf("error = %v, want a remedy", err)
	}
}

// reachableDir is a directory that the server's user can enter.
func reachableDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not seen: %s", what)
		}
	}
}
