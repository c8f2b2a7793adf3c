package pgtest_test

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestNewIsMigrated(t *testing.T) {
	t.Parallel()
	var n int
	if err := pgtest.New(t).Conn(t).QueryRow(t.Context(), "select count(*) from event_outbox").Scan(&n); err != nil {
		t.Fatal(err)
	}
}

func TestUnmigratedIsEmpty(t *testing.T) {
	t.Parallel()
	var absent bool
	err := pgtest.Unmigrated(t).Conn(t).QueryRow(t.Context(), "select to_regclass('event_outbox') is null").Scan(&absent)
	if err != nil || !absent {
		t.Errorf("no event_outbox: %v (%v)", absent, err)
	}
}

// Nothing of a test's may be left on the server, a slot in use and its database least of all.
func TestDatabaseGoesWithItsSlots(t *testing.T) {
	t.Parallel()
	var d *pgtest.Database
	t.Run("uses a slot", func(t *testing.T) {
		d = pgtest.New(t)
		slot := d.Slot(t)
		stream, err := pgconn.Connect(t.Context(), d.DSN+"&replication=database")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stream.Close(context.Background()) })
		_, err = pglogrepl.CreateReplicationSlot(t.Context(), stream, slot, "test_decoding", pglogrepl.CreateReplicationSlotOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := pglogrepl.StartReplication(t.Context(), stream, slot, 0, pglogrepl.StartReplicationOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), d.Admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var left int
	err = conn.QueryRow(t.Context(), `
		select (select count(*) from pg_replication_slots where database = $1)
		     + (select count(*) from pg_database where datname = $1)`, d.Name).Scan(&left)
	if err != nil || left != 0 {
		t.Errorf("%d slots and databases are left (%v)", left, err)
	}
}
