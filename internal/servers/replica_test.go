//go:build !containers

package servers

import (
	"errors"
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

func execute(t *testing.T, p *Postgres, statements ...string) {
	t.Helper()
	if err := p.exec(t.Context(), statements...); err != nil {
		t.Fatal(err)
	}
}

func closed(t *testing.T, p *Postgres, err error) *Postgres {
	t.Helper()
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

// A standby that no longer receives lacks what comes after, is promoted without it, and its former primary follows it after a rewind.
func TestStandbyIsPromoted(t *testing.T) {
	t.Parallel()
	primary := postgresFor(t, PostgresOptions{Settings: map[string]string{"wal_keep_size": "64MB", "wal_log_hints": "on"}})
	execute(t, primary, "create table numbers (n int)", "insert into numbers values (1)")
	standby, err := StartReplica(t.Context(), primary, nil)
	closed(t, standby, err)
	if err := standby.wait(t.Context(), "select exists (select from pg_stat_wal_receiver where status = 'streaming')", "it does not stream"); err != nil {
		t.Fatal(err)
	}
	if err := standby.Unfollow(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, primary, "insert into numbers values (2)")
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, standby, "insert into numbers values (3)")
	const numbers = "select string_agg(n::text, ' ' order by n) from numbers"
	if got := queryString(t, standby.DSN("postgres"), numbers); got != "1 3" {
		t.Errorf("the promoted standby has %s, want 1 3", got)
	}
	if got := queryString(t, standby.DSN("postgres"), "select timeline_id::text from pg_control_checkpoint()"); got != "2" {
		t.Errorf("the promoted standby is on timeline %s, want 2", got)
	}
	if err := primary.Stop(t.Context(), Fast); err != nil {
		t.Fatal(err)
	}
	switch err := primary.Rewind(t.Context(), standby); {
	case errors.Is(err, ErrNoRewind):
		return // the programs that were downloaded lack it
	case err != nil:
		t.Fatal(err)
	}
	if err := primary.Rejoin(t.Context(), standby, nil); err != nil {
		t.Fatal(err)
	}
	execute(t, standby, "insert into numbers values (4)")
	if err := primary.wait(t.Context(), "select exists (select from numbers where n = 4)", "the row does not arrive"); err != nil {
		t.Fatal(err)
	}
	if got := queryString(t, primary.DSN("postgres"), numbers); got != "1 3 4" {
		t.Errorf("the former primary has %s, want 1 3 4", got)
	}
}

func TestCopies(t *testing.T) {
	t.Parallel()
	original := postgresFor(t, PostgresOptions{})
	execute(t, original, "create table numbers as select 1 as n", "alter system set work_mem = '5MB'",
		"select pg_create_logical_replication_slot('own', 'pgoutput')")
	const what = `select concat_ws(' ', (select count(*) from numbers), (select count(*) from pg_replication_slots), timeline_id,
		(select setting from pg_file_settings where name = 'work_mem')) from pg_control_checkpoint()`

	backup, err := RestoreBackup(t.Context(), original, nil)
	closed(t, backup, err)
	if got := queryString(t, backup.DSN("postgres"), what); got != "1 0 2 5MB" {
		t.Errorf("rows, slots, timeline and a setting of a restored backup are %s, want 1 0 2 5MB", got)
	}
	if err := original.Stop(t.Context(), Fast); err != nil {
		t.Fatal(err)
	}
	files, err := CopyFiles(t.Context(), original)
	closed(t, files, err)
	if got := queryString(t, files.DSN("postgres"), what); got != "1 1 1 5MB" {
		t.Errorf("rows, slots, timeline and a setting of copied files are %s, want 1 1 1 5MB", got)
	}
	if err := original.Start(t.Context()); err != nil { // the copy has taken nothing from it
		t.Fatal(err)
	}
}
