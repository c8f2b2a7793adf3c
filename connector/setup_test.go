package connector

import (
	"context"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// versioned is a publication that is changed.
type versioned struct {
	database
	version string
}

func (v *versioned) publicationVersion(context.Context, uint32) (string, error) {
	return v.version, nil
}

// Each change of the publication counts once. The first look has nothing to compare with.
func TestPublicationChangesAreCounted(t *testing.T) {
	t.Parallel()
	db := &versioned{}
	c := &Connector{db: db}
	c.cfg.Logger = slog.New(slog.DiscardHandler)
	for i, step := range []struct {
		version string
		changes int64
	}{{"1", 0}, {"1", 0}, {"2", 1}, {"2", 1}, {"3", 2}} {
		db.version = step.version
		if err := c.comparePublication(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := c.outbox.publicationChanges.Load(); n != step.changes {
			t.Errorf("look %d: %d changes, want %d", i, n, step.changes)
		}
	}
}

// Where nothing is to be deleted, no metric says that the cleanup has not succeeded yet.
func TestNoCleanupNoLastSuccess(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	c := &Connector{}
	c.cfg.Metrics = monitoring.NewMetrics("p_", reg)
	series := func() int {
		n, err := testutil.GatherAndCount(reg, "p_cleanup_last_success_timestamp_seconds")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := series(); n != 1 {
		t.Errorf("%d series before a session", n)
	}
	c.cfg.Retention = keepsAll
	c.keepClean(t.Context(), &session{c: c})
	if n := series(); n != 0 {
		t.Errorf("%d series although nothing is deleted", n)
	}
}
