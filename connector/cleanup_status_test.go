package connector

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// Status tells of the last pass of the cleanup.
func TestStatusOfTheCleanup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConnector(silentConfig(), nil)
		if st := c.Status(); st.Cleanup != nil {
			t.Errorf("before the first pass: %+v", st.Cleanup)
		}
		tells := cleanupReport{c: c, sumAt: time.Now().Add(time.Hour)}
		pass := cleanup.Report{Seconds: 1.5, Complete: true}
		pass.Outbox.Deleted, pass.Log.Dropped, pass.Outbox.Partitions.Dropped = 7, []string{"a", "b"}, []string{"c"}
		tells.report(&pass, nil)
		time.Sleep(time.Minute)
		want := monitoring.CleanupStatus{EndedAt: time.Now().Add(-time.Minute), Took: 1500 * time.Millisecond, Rows: 7, Partitions: 3, Complete: true}
		if diff := cmp.Diff(&want, c.Status().Cleanup); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		tells.report(&cleanup.Report{}, errors.New("the disk is full"))
		want = monitoring.CleanupStatus{EndedAt: time.Now(), Detail: "the disk is full"}
		if diff := cmp.Diff(&want, c.Status().Cleanup); diff != "" {
			t.Errorf("one that failed (-want +got):\n%s", diff)
		}
	})
}

// silentConfig is that of a connector that never connects, and logs nothing.
func silentConfig() Config {
	return Config{
		Source: Source{DSN: "postgres://u:p@h/d", ReplicationDSN: "postgres://u:p@h/d"}, Health: &monitoring.Health{}, Metrics: monitoring.NewMetrics("", nil),
		Logger: slog.New(slog.DiscardHandler),
	}
}
