package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// measuredFake is a database that can only be measured.
type measuredFake struct {
	database
	answer func(provision.MeasureQuery) (provision.Measurement, error)
}

func (f measuredFake) measure(_ context.Context, q provision.MeasureQuery) (provision.Measurement, error) {
	return f.answer(q)
}

func (measuredFake) whyServerWaits(context.Context) string { return "" }
func (measuredFake) lockHolder(context.Context) string     { return "" }

// watchDatabase repeats the duty for a time, over a database that answers so. asked says what it was asked at which second: sizes and the oldest
// row (o), only sizes (s), or neither (-).
func watchDatabase(t *testing.T, takes time.Duration, answer func(second int, q provision.MeasureQuery) (provision.Measurement, error)) (asked string, c *Connector) {
	cfg := Config{Health: &monitoring.Health{}, Logger: slog.New(slog.DiscardHandler), Metrics: monitoring.NewMetrics("", nil)}
	cfg.Source.MaxConnections = 6
	c = New(cfg)
	began := time.Now()
	c.db = measuredFake{answer: func(q provision.MeasureQuery) (provision.Measurement, error) {
		second := int(time.Since(began).Seconds())
		asked += fmt.Sprintf("%d%s ", second, map[[2]bool]string{{true, true}: "o", {true, false}: "s", {}: "-"}[[2]bool{q.Storage, q.Oldest}])
		return answer(second, q)
	}}
	ctx, stop := context.WithTimeout(t.Context(), takes)
	defer stop()
	w := databaseWatch{c: c}
	if err := c.repeatDuty(ctx, duty{name: "database", every: measureEvery, do: w.measure}); err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(asked), c
}

// PostgreSQL is asked every 15 s: for sizes less often if they take long, and for the oldest row less often if it is not found.
func TestHowOftenTheDatabaseIsMeasured(t *testing.T) {
	t.Parallel()
	sizes := func(took time.Duration) provision.Measurement {
		return provision.Measurement{TimeIndexed: new(true), Storage: &provision.Storage{}, StorageTook: took}
	}
	for name, test := range map[string]struct {
		answer func(second int, q provision.MeasureQuery) (provision.Measurement, error)
		want   string
	}{
		"sizes take 50 ms": {
			func(int, provision.MeasureQuery) (provision.Measurement, error) {
				return sizes(50 * time.Millisecond), nil
			},
			"0o 15o 30o 45o 60o",
		},
		"sizes take 90 ms": {
			func(int, provision.MeasureQuery) (provision.Measurement, error) {
				return sizes(90 * time.Millisecond), nil
			},
			"0o 15- 30o 45- 60o",
		},
		"the oldest row is not found": {
			func(_ int, q provision.MeasureQuery) (provision.Measurement, error) {
				m := sizes(0)
				m.OldestRefused = q.Oldest
				return m, nil
			}, "0o 15s 30s 45s 60s",
		},
		"it fails once": {
			func(second int, _ provision.MeasureQuery) (provision.Measurement, error) {
				if second == 15 {
					return provision.Measurement{}, errors.New("closed")
				}
				return sizes(0), nil
			}, "0o 15o 25o 40o 55o",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				if asked, _ := watchDatabase(t, 69*time.Second, test.answer); asked != test.want {
					t.Errorf("asked %s, want %s", asked, test.want)
				}
			})
		})
	}
}

// Status has what was measured last. What was not told is absent, and so is all of it after a failure.
func TestMeasuredStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		_, c := watchDatabase(t, 20*time.Second, func(second int, q provision.MeasureQuery) (provision.Measurement, error) {
			if second == 0 {
				return provision.Measurement{
					Spilled: new(int64(1)), Plugin: new("pgoutput"), Failover: new(true), Synced: new(false), SyncStandbys: new(int64(1)), XminAge: new(int64(2)),
					Connections:          map[string]int{"active": 1, "idle": 2, "idle in transaction": 3, "idle in transaction (aborted)": 4, "disabled": 5, "fastpath function call": 6},
					ParkedAutovacuumedAt: &now, TimeIndexed: new(true), StorageTook: time.Second,
					Storage: &provision.Storage{Outbox: new(int64(7)), Ledger: map[string]int64{"b": 8, "a": 9}, Oldest: &now},
				}, nil
			}
			if q.Storage || !*q.TimeIndexed {
				t.Errorf("asked for %+v", q)
			}
			return provision.Measurement{TimeIndexed: new(true)}, nil
		})
		storage := &monitoring.StorageStatus{
			AskedAt: now, Outbox: new(int64(7)), Ledger: []monitoring.TableSize{{Table: "a", Bytes: 9}, {Table: "b", Bytes: 8}}, OldestRow: now,
		}
		want := &monitoring.DatabaseStatus{AskedAt: now.Add(15 * time.Second), ConnectionLimit: 6, Storage: storage}
		if diff := cmp.Diff(want, c.Status().Database); diff != "" {
			t.Errorf("after the second time (-want +got):\n%s", diff)
		}
		c.measured.forget()
		if got := c.Status().Database; got != nil {
			t.Errorf("after the session: %+v", got)
		}
		_, c = watchDatabase(t, 20*time.Second, func(second int, _ provision.MeasureQuery) (provision.Measurement, error) {
			if second == 0 {
				return provision.Measurement{XminAge: new(int64(2))}, nil
			}
			return provision.Measurement{}, errors.New("closed")
		})
		if got := c.Status().Database; got != nil {
			t.Errorf("after a failure: %+v", got)
		}
	})
}

func TestConnectionCounts(t *testing.T) {
	t.Parallel()
	got := connectionCounts(map[string]int{
		"active": 1, "idle": 2, "idle in transaction": 3, "idle in transaction (aborted)": 4, "disabled": 5, "fastpath function call": 6,
	})
	if want := (monitoring.ConnectionCounts{Active: 7, Idle: 2, InTransaction: 7, Other: 5}); *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	if got := connectionCounts(map[string]int{}); got != nil {
		t.Errorf("nobody is seen: %+v", got)
	}
}

// The process that streams shows what the server says, and the one that stands by, or has ended, nothing.
func TestDatabaseStatus(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	first := b.run()
	b.waitFor("a measurement", func() bool {
		d := first.connector.Status().Database
		return d != nil && d.Slot != nil && !d.AskedAt.IsZero()
	})
	d := first.connector.Status().Database
	if d.Slot.WALStatus != "reserved" || d.Slot.RestartLag == nil || *d.Slot.RestartLag > 1<<30 || d.Slot.SafeWAL != nil {
		t.Errorf("the slot: %+v", d.Slot)
	}
	// The pool of one connection asks; recorder, lease and listener have a connection each, which may not be open yet.
	if c := d.Connections; c == nil || c.Active < 1 || c.Active+c.Idle+c.InTransaction > 4 || c.Other != 0 || d.ConnectionLimit != 4 {
		t.Errorf("connections: %+v of %d", c, d.ConnectionLimit)
	}
	if d.Plugin != "pgoutput" || d.XminAge == nil || d.Spilled == nil || d.Storage == nil || *d.Storage.Outbox == 0 || len(d.Storage.Ledger) == 0 {
		t.Errorf("got %+v", d)
	}
	second := b.run()
	b.waitFor("standing by", func() bool { return second.connector.Status().Role == monitoring.RoleStandby })
	if d := second.connector.Status().Database; d != nil {
		t.Errorf("the standby has %+v", d)
	}
	first.stop()
	if d := first.connector.Status().Database; d != nil {
		t.Errorf("after its end it has %+v", d)
	}
	b.waitFor("a takeover", func() bool { d := second.connector.Status().Database; return d != nil && !d.AskedAt.IsZero() })
	second.stop()
}

// watched follows a connector with a Recent, as the command run does.
func (r *running) watched(t *testing.T) *monitoring.Recent {
	recent := monitoring.NewRecent(r.connector.Status, r.health)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { recent.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	return recent
}

// firstForecast takes a forecast a second after another until there is one, and then until over says what has come. It compares both. A forecast is
// zero if there is none.
func firstForecast(t *testing.T, forecast func() time.Time, over func() bool) {
	t.Helper()
	deadline, tick := time.Now().Add(2*time.Minute), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	var made, comes time.Time
	for !over() {
		<-tick.C
		if comes.IsZero() {
			made, comes = time.Now(), forecast()
		}
		if time.Now().After(deadline) {
			t.Fatal("it has not come in two minutes")
		}
	}
	if comes.IsZero() {
		t.Fatal("there was no forecast")
	}
	said, was := comes.Sub(made), time.Since(made)
	t.Logf("forecast %.1f s, was %.1f s", said.Seconds(), was.Seconds())
	if math.Abs(said.Seconds()-was.Seconds()) > 0.2*was.Seconds() {
		t.Errorf("the forecast was %s, and it took %s", said, was)
	}
}

// newConnectorBenchApart makes a bench on a server of its own.
func newConnectorBenchApart(t *testing.T, settings map[string]string) *connectorBench {
	t.Helper()
	dsn := pgtest.Start(t, servers.PostgresOptions{Settings: settings}).DSN("postgres")
	if err := migrations.Apply(t.Context(), dsn, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	return newConnectorBenchIn(t, &pgtest.Database{Name: "postgres", DSN: dsn, Admin: dsn})
}

// The forecast of when the slot is lost is right within 20 %: a sink that keeps everything in order accepts nothing, and WAL is written at a
// steady rate, by which the slot is lost after 52 s.
func TestSlotLostForecast(t *testing.T) {
	t.Parallel()
	settings := servers.NoSync()
	settings["max_slot_wal_keep_size"], settings["max_wal_size"], settings["checkpoint_timeout"], settings["autovacuum"] = "64MB", "2GB", "1h", "off"
	b := newConnectorBenchApart(t, settings)
	held, _ := b.holdBack("held")
	r := b.run()
	b.event("a", "held")
	<-held
	recent := r.watched(t)
	var left int
	if _, err := fmt.Sscan(b.query("select safe_wal_size from pg_replication_slots"), &left); err != nil {
		t.Fatal(err)
	}
	n := 0
	firstForecast(t,
		func() (at time.Time) {
			if f := recent.Status().Forecast; f != nil {
				at = f.SlotLostAt
			}
			return at
		},
		func() bool {
			b.exec("select pg_logical_emit_message(false, 'load', repeat('x', $1))", left/520)
			if n++; n%10 != 0 {
				return false
			}
			b.exec("checkpoint") // a slot is lost at checkpoints only
			return b.query("select wal_status from pg_replication_slots") == "lost"
		})
	r.cancel()
	t.Log("the connector has ended:", <-r.ended) // the slot is lost, or it was asked to stop
}

// The forecast of when a backlog is delivered is right within 20 %, at a steady rate of 100 a second.
func TestCaughtUpForecast(t *testing.T) {
	t.Parallel()
	b := newConnectorBenchApart(t, servers.NoSync()) // what other tests write on a server would lie before the slot, too
	b.setSink(func(ctx context.Context, batch []sinks.Message) []error {
		select {
		case <-time.After(time.Duration(len(batch)) * 10 * time.Millisecond):
		case <-ctx.Done():
		}
		return nil
	})
	b.exec(`do $$ begin for n in 1..2000 loop
		insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'one', n::text, '{}'); commit; end loop; end $$`)
	r := b.run()
	recent := r.watched(t)
	firstForecast(t,
		func() (at time.Time) {
			// What lies in the WAL before the first event is passed at once, and counts less after some seconds.
			if f := recent.Status().Forecast; f != nil && r.connector.Status().Sinks[0].Counts.Delivered > 700 {
				at = f.CaughtUp.CaughtUpAt
			}
			return at
		},
		func() bool {
			f := recent.Status().Forecast
			return f != nil && f.CaughtUp.Trend == monitoring.TrendNothingWaits && strings.HasSuffix(b.received(), " 2000")
		})
	r.stop()
}
