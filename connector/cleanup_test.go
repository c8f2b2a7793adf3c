package connector

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// keepsAll is the retention of connectors that delete nothing.
var keepsAll = cleanup.Retention{Outbox: cleanup.Forever, Ledger: cleanup.Forever}

// cleaned is a database that is cleaned up, with ten rows to delete in each pass. Only cleanup may be called.
type cleaned struct {
	database
	cleanup.Database
	cleanup.Outbox
	granted time.Time // from then on the login may delete
	passes  atomic.Int64
	reports atomic.Int64
}

func (d *cleaned) cleanup() cleanup.Database { return d }

func (d *cleaned) Lacking(context.Context) ([]string, error) {
	if time.Now().Before(d.granted) {
		return []string{"grant delete on table public.event_outbox to app"}, nil
	}
	return nil, nil
}

func (d *cleaned) OpenOutbox(context.Context) (cleanup.Outbox, bool, error) {
	return d, !time.Now().Before(d.granted), nil
}

func (d *cleaned) Zoneless() bool { return false }
func (d *cleaned) ByDay() bool    { return false }

func (d *cleaned) OldestRow(context.Context, ledger.ChunkQuery) (ledger.OutboxKey, bool, error) {
	return ledger.OutboxKey{}, true, nil
}

func (d *cleaned) DeleteChunk(context.Context, ledger.ChunkQuery) (ledger.Chunk, error) {
	d.passes.Add(1)
	return ledger.Chunk{Deleted: 10}, nil
}

func (d *cleaned) DropLogPartition(context.Context, ledger.LogCutoff) ([]ledger.LogPartition, error) {
	return nil, nil
}

func (d *cleaned) DeleteMetrics(context.Context, time.Duration, int) (int64, error) { return 0, nil }

func (d *cleaned) DeadRows(context.Context) ([]ledger.DeadRows, error) { return nil, nil }

func (d *cleaned) WriteReport(context.Context, []byte) error {
	d.reports.Add(1)
	return nil
}

// Without the right to delete, the log has one WARN with the grant, and health is degraded; within a minute after the grant the cleanup
// works and says so once. It ends at once with its session.
func TestCleanupWithoutTheRight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log lockedLog
		health := &monitoring.Health{}
		db := &cleaned{granted: time.Now().Add(30 * time.Minute)}
		c := newConnector(Config{
			Retention: cleanup.Retention{Outbox: 7 * 24 * time.Hour, Ledger: 7 * 24 * time.Hour}, Health: health, Metrics: monitoring.NewMetrics("", nil),
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		}, nil)
		c.db = db
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.keepClean(ctx, &session{c: c})
		}()
		component := func() monitoring.Component { return health.Report().Components["keeper:cleanup"] }
		time.Sleep(29 * time.Minute)
		synctest.Wait()
		if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "grant delete on table public.event_outbox to app") {
			t.Errorf("%d warnings: %s", n, log.String())
		}
		if now := component(); now.Status != monitoring.LevelDegraded || !strings.Contains(now.Detail, "grant delete") || !strings.Contains(now.Detail, "the log") {
			t.Errorf("without the right: %+v", now)
		}
		if db.passes.Load() != 0 || testutil.ToFloat64(c.cfg.Metrics.CleanupLastSuccess.WithLabelValues()) != 0 {
			t.Errorf("%d chunks without the right", db.passes.Load())
		}
		if db.reports.Load() != 1 {
			t.Errorf("%d reports were written while nothing changed", db.reports.Load())
		}
		time.Sleep(2*time.Minute + time.Second)
		synctest.Wait()
		if strings.Count(log.String(), "old rows are deleted again") != 1 || component().Status != monitoring.LevelOK || db.passes.Load() == 0 {
			t.Errorf("with the right: %+v, %d chunks, %s", component(), db.passes.Load(), log.String())
		}
		deleted := testutil.ToFloat64(c.cfg.Metrics.CleanupDeleted.WithLabelValues("event_outbox"))
		if deleted != float64(10*db.passes.Load()) || testutil.ToFloat64(c.cfg.Metrics.CleanupLastSuccess.WithLabelValues()) != float64(time.Now().Truncate(time.Minute).Unix()) {
			t.Errorf("metrics: %v rows of %d chunks, last success %v", deleted, db.passes.Load(), testutil.ToFloat64(c.cfg.Metrics.CleanupLastSuccess.WithLabelValues()))
		}
		lines := strings.Count(log.String(), "\n")
		time.Sleep(25 * time.Hour)
		if n := strings.Count(log.String(), "\n") - lines; n != 1 {
			t.Errorf("%d lines in a day: %s", n, log.String())
		}
		began := time.Now()
		cancel()
		<-ended
		if time.Since(began) != 0 {
			t.Errorf("it ended after %s", time.Since(began))
		}
	})
}

// The cleanup looks often enough.
func TestPaceOfTheCleanup(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for retention, want := range map[cleanup.Retention]time.Duration{
		{Outbox: 0, Ledger: 7 * day}:                           time.Second,
		{Outbox: time.Minute, Ledger: time.Minute}:             3 * time.Second,
		{Outbox: 7 * day, Ledger: 7 * day}:                     time.Minute,
		{Outbox: cleanup.Forever, Ledger: 7 * day}:             time.Minute,
		{Outbox: 10 * time.Minute, Ledger: cleanup.Forever}:    30 * time.Second,
		{Outbox: cleanup.Forever, Ledger: cleanup.Forever - 1}: time.Minute,
	} {
		if got := cleanEvery(retention); got != want {
			t.Errorf("%+v: every %s, want %s", retention, got, want)
		}
	}
}

// The cleanup deletes 2,500 rows a second, or twice as many as events come if lanes and recorder have time. It never takes more than half
// of the time.
func TestRestsOfTheCleanup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var arrived uint64
		var busy bool
		p := cleanupPace{arrived: func() uint64 { return arrived }, busy: func() bool { return busy }, at: time.Now()}
		for name, test := range map[string]struct {
			took time.Duration
			rate uint64 // events a second
			busy bool
			want float64 // chunks of 100 rows a second
		}{
			"nothing comes":               {2 * time.Millisecond, 0, false, 25},
			"1,000 a second":              {2 * time.Millisecond, 1000, false, 25},
			"5,000 a second":              {2 * time.Millisecond, 5000, false, 100},
			"5,000 a second, much to do":  {2 * time.Millisecond, 5000, true, 25},
			"50,000 a second":             {2 * time.Millisecond, 50_000, false, 250},
			"slow chunks":                 {80 * time.Millisecond, 0, false, 1 / 0.16},
			"slow chunks, 5,000 a second": {80 * time.Millisecond, 5000, false, 1 / 0.16},
			"waiting for another session": {0, 0, false, 25},
		} {
			busy = test.busy
			p.rest(test.took) // forget the rate of the case before
			time.Sleep(time.Second)
			arrived += test.rate
			rest := p.rest(test.took)
			if got := 1 / (test.took + rest).Seconds(); got < test.want*.99 || got > test.want*1.01 {
				t.Errorf("%s: %.2f chunks a second, want %.2f", name, got, test.want)
			}
		}
	})
}
