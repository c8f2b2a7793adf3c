//go:build !containers

package pgtest

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// StartStandby starts a standby of primary that streams from it through a physical slot, as PostgreSQL's documentation advises for a
// failover: with hot_standby_feedback, and from PostgreSQL 17 on with sync_replication_slots. settings are over these.
func StartStandby(t testing.TB, primary *servers.Postgres, settings map[string]string) *servers.Postgres {
	t.Helper()
	if _, err := connect(t, primary.DSN("postgres")).Exec(context.Background(), "select pg_create_physical_replication_slot($1, true)", standbySlot); err != nil {
		t.Fatal(err)
	}
	all := StandbySettings(primary)
	maps.Copy(all, settings)
	standby, err := servers.StartReplica(context.Background(), primary, all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(standby.Log())
		}
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	return standby
}

// standbySlot is the physical slot of the only standby that a test has.
const standbySlot = "standby"

// StandbySettings are those of a standby of primary that StartStandby starts; for a former primary that rejoins as one.
func StandbySettings(primary *servers.Postgres) map[string]string {
	settings := map[string]string{"hot_standby_feedback": "on", "primary_slot_name": standbySlot, "wal_receiver_status_interval": "1s"}
	if major, _, _ := strings.Cut(primary.Version(), "."); major >= "17" {
		settings["sync_replication_slots"] = "on"
	}
	return settings
}

// WaitCaughtUp waits until standby has replayed what primary has written so far.
func WaitCaughtUp(t testing.TB, primary, standby *servers.Postgres) {
	t.Helper()
	var written string
	if err := connect(t, primary.DSN("postgres")).QueryRow(context.Background(), "select pg_current_wal_flush_lsn()::text").Scan(&written); err != nil {
		t.Fatal(err)
	}
	WaitTrue(t, standby.DSN("postgres"), fmt.Sprintf("select coalesce(pg_last_wal_replay_lsn() >= '%s', false)", written))
}
