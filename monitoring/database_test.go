package monitoring

import (
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// When the slot is lost follows the WAL that is kept for it, which goes up and down under load.
func TestSlotLostForecast(t *testing.T) {
	t.Parallel()
	const never = -1
	const rate, left = 10 << 20, 10 << 30 // bytes a second, bytes
	type at map[int]float64               // seconds until then, by second
	for name, test := range map[string]struct {
		kept func(second int) int // in seconds of WAL
		safe func(second int) int64
		want at
	}{
		"it stands still": {
			kept: func(second int) int { return 3 + second },
			want: at{0: never, 29: never, 30: left/rate - 30, 60: left/rate - 60, 300: left/rate - 300},
		},
		"nothing is written": {
			kept: func(int) int { return 3 }, want: at{30: never, 60: never, 300: never},
		},
		"it moves every 15 s, as under load": {
			kept: func(second int) int { return 3 + second%15 },
			want: at{29: never, 30: never, 31: never, 40: never, 45: never, 59: never, 60: never, 63: never, 74: never, 89: never, 290: never, 299: never, 300: never},
		},
		"it moves every 17 s": {
			kept: func(second int) int { return second % 17 },
			want: at{30: never, 33: never, 34: never, 50: never, 60: never, 67: never, 84: never, 101: never},
		},
		"it moves every 15 s, by half of what is written": {
			kept: func(second int) int { return second - second/15*15/2 },
			want: at{60: 2 * (left/rate - 60), 135: 2 * (left/rate - 135), 300: 2 * (left/rate - 300)}, // within 20 %
		},
		"it stands still, and then moves again": {
			kept: func(second int) int { return max(0, second-10*max(0, second-100)) },
			want: at{100: left/rate - 100, 105: never, 300: never},
		},
		"it is not limited": {
			kept: func(second int) int { return second }, safe: nil, want: at{60: never},
		},
		"it has used up all": {
			kept: func(int) int { return 3 }, safe: func(int) int64 { return -5 }, want: at{0: 0, 60: 0},
		},
		"it would take more than 30 days": {
			kept: func(second int) int { return second }, safe: func(int) int64 { return rate * 31 * 86400 }, want: at{60: never},
		},
	} {
		if test.safe == nil && name != "it is not limited" {
			test.safe = func(second int) int64 { return left - int64(second)*rate }
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var asked *SlotStatus
				g, pass := watched(func(second int, st *Status, _ *SinkStatus) {
					if second%2 == 0 { // as the connector asks
						asked = &SlotStatus{AskedAt: time.Now(), WALStatus: "extended", RestartLag: new(int64(test.kept(second) * rate))}
						if test.safe != nil {
							asked.SafeWAL = new(test.safe(second))
						}
					}
					st.Database = &DatabaseStatus{Slot: asked}
				})
				for second := 0; second <= 300; second++ {
					if second > 0 {
						pass(1)
					}
					want, look := test.want[second]
					if !look {
						continue
					}
					got := float64(never)
					if lostAt := g.recent.Status().Forecast.SlotLostAt; !lostAt.IsZero() {
						got = time.Until(lostAt).Seconds()
					}
					if tolerance := 0.2 * want; want == never && got != never || math.Abs(got-want) > max(tolerance, 2) {
						t.Errorf("after %d s: lost in %g s, want %g", second, got, want)
					}
					if kept := g.ask(t).Stream.Kept; kept.LostAt.IsZero() != (got == never) || !kept.LostAt.IsZero() && time.Until(kept.LostAt).Seconds() != got {
						t.Errorf("after %d s: /status says %s, the metric %g", second, kept.LostAt, got)
					}
				}
			})
		})
	}
}

// All has been caught up with when nothing waits for any sink.
func TestCaughtUpForecast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, pass := watched(func(second int, st *Status, sink *SinkStatus) {
			sink.Parked = max(0, 1000-int64(10*second))
			st.Lag = time.Minute
			st.LagBytes = max(0, 1<<20*int64(20-second))
			if st.LagBytes == 0 {
				st.Lag = 0
			}
			if second == 120 { // it is away
				st.Sinks = append(st.Sinks, SinkStatus{Name: "other", CountedAt: time.Now(), Parked: 5})
			}
		})
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(NewCollector("p_", g.recent.Status))
		for _, step := range []struct {
			pass int
			want string
		}{{2, ""}, {8, "90"}, {20, "70"}, {69, "1"}, {1, "0"}, {30, ""}} {
			pass(step.pass)
			const head = "# HELP p_forecast_caught_up_seconds When nothing waits any more, neither in the WAL nor parked for any sink, if it goes on as over the last minute; " +
				"0 if nothing waits. There is none if that does not come at this rate.\n# TYPE p_forecast_caught_up_seconds gauge\np_forecast_caught_up_seconds "
			want := ""
			if step.want != "" {
				want = head + step.want + "\n"
			}
			if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "p_forecast_caught_up_seconds"); err != nil {
				t.Error(err)
			}
		}
	})
}

// What the connector writes itself while it catches up does not count: the server passes it at once. The backlog is 100 kB, of which 1 kB is
// delivered a second; 0.6 kB a second are written for that.
func TestCaughtUpForecastWithoutOwnWAL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, pass := watched(func(second int, st *Status, _ *SinkStatus) {
			st.Confirmed = 1<<30 + pglogrepl.LSN(1000*second)
			st.OwnWAL = 5_000 + int64(600*second)
			st.LagBytes = 100_000 - int64(1000*second) + int64(600*second)
			st.Lag = time.Minute
		})
		for second := 10; second <= 90; second += 10 {
			pass(10)
			if left := time.Until(g.recent.Status().Forecast.CaughtUp.CaughtUpAt).Seconds(); math.Abs(left-float64(100-second)) > 1 {
				t.Errorf("after %d s: caught up in %g s", second, left)
			}
		}
	})
}

// Marks are few, however long the stream is behind.
func TestMarksAreBounded(t *testing.T) {
	t.Parallel()
	r := NewRecent(nil, nil)
	for i := range 10 * mostMarks {
		r.keep(sample{at: time.Unix(int64(i), 0), streams: true, written: float64(1000 + i), behind: float64(1000 + i), own: float64(i)})
	}
	if n := len(r.marks); n > mostMarks || r.marks[0].own != 0 {
		t.Errorf("%d marks, the first of %+v", n, r.marks[0])
	}
	last := sample{written: 20_000, behind: 10, own: 20_000, streams: true}
	r.keep(last)
	if len(r.marks) > 2 {
		t.Errorf("%d marks once it has caught up", len(r.marks))
	}
}

// A process without a session shows nothing of what it knew.
func TestMetricsOfTheDatabase(t *testing.T) {
	t.Parallel()
	names := func(st Status) (all []string) {
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(NewCollector("", func() Status { return st }))
		got, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		mine := map[string]bool{}
		for _, f := range slices.Concat(slotFamilies, databaseFamilies) {
			mine[f.Name] = true
		}
		for _, f := range got {
			if mine[f.GetName()] {
				all = append(all, f.GetName())
			}
		}
		return all
	}
	asked := time.Unix(1_700_000_000, 0)
	whole := &DatabaseStatus{
		AskedAt: asked, Slot: &SlotStatus{AskedAt: asked, RestartLag: new(int64(1)), WALStatus: "reserved", SafeWAL: new(int64(2))},
		Plugin: "pgoutput", Spilled: new(int64(3)), SyncStandbys: new(int64(2)), XminAge: new(int64(4)), Connections: &ConnectionCounts{Active: 5}, ConnectionLimit: 6,
		ParkedAutovacuumedAt: asked, Storage: &StorageStatus{AskedAt: asked, Outbox: new(int64(7)), Ledger: []TableSize{{"outbox_parked", 8}}, OldestRow: asked},
	}
	forecast := &ForecastStatus{CaughtUp: Forecast{Trend: TrendNothingWaits}, SlotLostAt: asked}
	for name, test := range map[string]struct {
		status Status
		want   string
	}{
		"no session": {},
		"nothing asked yet but the slot": {
			Status{Database: &DatabaseStatus{Slot: whole.Slot}}, "slot_restart_lag_bytes slot_safe_wal_bytes slot_wal_status",
		},
		"nothing is known": {
			Status{Database: &DatabaseStatus{AskedAt: asked, Slot: &SlotStatus{AskedAt: asked, WALStatus: "lost"}, Storage: &StorageStatus{}}, Forecast: &ForecastStatus{}},
			"pg_connections_limit slot_wal_status",
		},
		"all": {
			Status{At: asked, Database: whole, Forecast: forecast},
			"forecast_caught_up_seconds forecast_slot_lost_seconds ledger_bytes outbox_bytes outbox_oldest_row_timestamp_seconds " +
				"parked_last_autovacuum_timestamp_seconds pg_connections pg_connections_limit slot_info slot_restart_lag_bytes slot_safe_wal_bytes " +
				"slot_spilled_bytes_total slot_sync_standbys slot_wal_status xmin_age_transactions",
		},
	} {
		if got := strings.Join(names(test.status), " "); got != test.want {
			t.Errorf("%s: %s\nwant %s", name, got, test.want)
		}
	}
}

// Each state of the slot's WAL has a series, of which one is 1.
func TestWALStatusMetric(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector("p_", func() Status {
		return Status{Database: &DatabaseStatus{Slot: &SlotStatus{WALStatus: "unreserved"}}}
	}))
	got, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range got {
		if f.GetName() != "p_slot_wal_status" {
			continue
		}
		text := ""
		for _, m := range f.GetMetric() {
			text += m.GetLabel()[0].GetValue() + map[float64]string{0: " ", 1: "! "}[m.GetGauge().GetValue()]
		}
		if text != "extended lost reserved unreserved! " {
			t.Errorf("got %s", text)
		}
		return
	}
	t.Error("there is no p_slot_wal_status")
}
