package connector

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
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

// What a pass says is true of the right that is missing, and of a log that stays.
func TestWhatTheCleanupSays(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		report  cleanup.Report
		problem cleanupProblem
		detail  string
	}{
		"nothing": {},
		"no delete": {
			cleanup.Report{Grants: []string{"grant delete on table o to app", "grant execute on function f() to app"}},
			cleanupNoRight,
			"the login may not delete from the outbox, so its rows stay, and so does the log, which says what may be deleted; as the owner of the tables: " +
				"grant delete on table o to app; grant execute on function f() to app; or retention.outbox: off keeps the rows",
		},
		"no drop": {
			cleanup.Report{Grants: []string{"grant execute on function f() to app"}},
			cleanupNoRight,
			"the login may not drop days of the log, so they stay; as the owner of the tables: grant execute on function f() to app; or retention.ledger: off keeps the log",
		},
		"no report": {
			cleanup.Report{Grants: []string{"grant insert, update on table r to app"}},
			cleanupNoRight,
			"the login may not write what the cleanup has done, so status does not say it; as the owner of the tables: grant insert, update on table r to app; " +
				"or retention.outbox and retention.ledger: off keep all",
		},
		"a day refused": {
			cleanup.Report{Log: cleanup.PartitionReport{Stays: "day: refused: a view needs it", Refused: true}},
			cleanupNoDrop,
			"old days of the log stay: day: refused: a view needs it",
		},
		"a slot that nobody streams": {
			cleanup.Report{
				Outbox: cleanup.OutboxReport{Kept: ledger.KeptRows{Unaccounted: 2}}, Log: cleanup.PartitionReport{Stays: "day: unsettled: slot old has not settled all of it"},
			},
			cleanupWorks,
			"the ledger does not know 2 rows of the outbox that the stream is past, so they stay; see docs/retention.md#unaccounted; " +
				"old days of the log stay: day: unsettled: slot old has not settled all of it",
		},
	} {
		if problem, detail := judgeCleanup(&test.report, nil); problem != test.problem || detail != test.detail {
			t.Errorf("%s: %q, %q", name, problem, detail)
		}
	}
}

// silentConfig is that of a connector that never connects, and logs nothing.
func silentConfig() Config {
	return Config{
		Source: Source{DSN: "postgres://u:p@h/d", ReplicationDSN: "postgres://u:p@h/d"}, Health: &monitoring.Health{}, Metrics: monitoring.NewMetrics("", nil),
		Logger: slog.New(slog.DiscardHandler),
	}
}

// Deleted rows that are not vacuumed away stand in the detail of a cleanup that works; after an hour it is degraded, with one WARN.
func TestHealthTellsOfBloat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		cfg := silentConfig()
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c := newConnector(cfg, nil)
		tells := cleanupReport{c: c, sumAt: time.Now().Add(24 * time.Hour)}
		tell := func(bloat ...cleanup.Bloat) monitoring.Component {
			tells.report(&cleanup.Report{Complete: true, Bloat: bloat}, nil)
			return c.cfg.Health.Report().Components["keeper:cleanup"]
		}
		since := time.Now()
		bloat := func() cleanup.Bloat {
			return cleanup.Bloat{Since: since, DeadRows: ledger.DeadRows{Table: "public.event_outbox", Dead: 1_200_000, At: time.Now(), Holder: &ledger.VacuumHolder{
				Kind: ledger.HoldsTransaction, PID: 4711, Since: &since,
			}}}
		}
		tell()
		const want = "1,200,000 deleted rows of public.event_outbox cannot be vacuumed away: pid 4711 has had a transaction open since 2000-01-01 00:00:00Z; see docs/retention.md#space"
		if now := tell(bloat()); now.Status != monitoring.LevelOK || now.Detail != want || c.Status().Cleanup.Detail != want || log.Len() > 0 {
			t.Errorf("at first: %+v, %s", now, log.String())
		}
		time.Sleep(time.Hour)
		for range 2 {
			if now := tell(bloat()); now.Status != monitoring.LevelDegraded || now.Detail != want {
				t.Errorf("after an hour: %+v", now)
			}
		}
		if now := tell(); now.Status != monitoring.LevelOK || now.Detail != "" {
			t.Errorf("when it is over: %+v", now)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "deleted rows are vacuumed away again") {
			t.Errorf("%d warnings: %s", n, log.String())
		}
	})
}
