package servers

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestPgBouncer(t *testing.T) {
	t.Parallel()
	p, err := StartPostgres(t.Context(), PostgresOptions{Settings: NoSync()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := StartPgBouncer(t.Context(), p, PgBouncerOptions{Settings: map[string]string{"pool_mode": "session"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), b.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var pid uint32
	if err := conn.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid); err != nil || pid == conn.PgConn().PID() {
		t.Errorf("the backend's pid is %d, the connection's %d (%v): there is no pooler in between", pid, conn.PgConn().PID(), err)
	}
}
