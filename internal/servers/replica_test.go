//go:build !containers

package servers

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestReplicaFollows(t *testing.T) {
	t.Parallel()
	primary := postgresFor(t, PostgresOptions{Settings: map[string]string{"wal_keep_size": "64MB"}})
	conn, err := pgx.Connect(t.Context(), primary.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "create table numbers (n int); select pg_create_physical_replication_slot('own', true)"); err != nil {
		t.Fatal(err)
	}
	replica, err := StartReplica(t.Context(), primary, map[string]string{"hot_standby_feedback": "on"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := replica.Close(); err != nil {
			t.Error(err)
		}
	})
	queryString(t, primary.DSN("postgres"), "with new as (insert into numbers values (1) returning n) select n::text from new")
	if got := queryString(t, replica.DSN("postgres"), "select pg_is_in_recovery()::text || current_setting('hot_standby_feedback')"); got != "trueon" {
		t.Errorf("the replica says %s", got)
	}
	for deadline := time.Now().Add(20 * time.Second); queryString(t, replica.DSN("postgres"), "select count(*)::text from numbers") != "1"; {
		if time.Now().After(deadline) {
			t.Fatalf("the row does not arrive; the replica's log:\n%s", replica.Log())
		}
	}
}
