package monitoring

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
)

// watched returns a connector that streams to one sink, and what lets seconds pass. Each second, step changes its state, and a sample is
// taken.
func watched(step func(second int, st *Status, sink *SinkStatus)) (g *rigged, pass func(seconds int)) {
	g = newRigged()
	g.status = Status{
		Role: RoleLeader, Streaming: true, Confirmed: 1 << 30,
		Sinks: []SinkStatus{{Name: "events", InSession: true, CountedAt: time.Now()}},
	}
	second := -1
	pass = func(seconds int) {
		for range seconds {
			time.Sleep(time.Second)
			second++
			step(second, &g.status, &g.status.Sinks[0])
			g.recent.keep(sampleOf(g.recent.status()))
		}
	}
	pass(1) // to second 0
	return g, pass
}

// Run takes a sample at once, and one each second from then on, until its context ends.
func TestRecentRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newRigged()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); g.recent.Run(ctx) }()
		time.Sleep(10*time.Second + time.Millisecond)
		stop()
		<-ended
		if n := len(g.recent.samples); n != 11 {
			t.Errorf("%d samples in ten seconds", n)
		}
	})
}

// Rates are those of the last five seconds and of the last minute, also while there is less than a minute, and after a gap.
func TestRates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, pass := watched(func(second int, st *Status, sink *SinkStatus) {
			st.Confirmed += 1000
			st.LagBytes += 24
			st.Stages.Busy = []StageBusy{{Stage: StageDecode, Busy: time.Duration(min(second, 60)) * time.Second / 2}}
			if second <= 60 {
				sink.Counts.Delivered += 100
				sink.Counts.Unparked += 10
			}
		})
		if i := g.ask(t); i.Sinks[0].Rate != nil || i.Stream.WALRate != nil {
			t.Errorf("in the first moment: %+v, %v", i.Sinks[0].Rate, i.Stream.WALRate)
		}
		expect := func(when string, want DeliveryRate) {
			t.Helper()
			i := g.ask(t)
			if share := i.Stages[0].BusyMinute; share == nil || *share != want.DeliveredMinute/200 { // it is busy for half of the time, while 100 are delivered
				t.Errorf("%s: busy for %v of the minute", when, share)
			}
			if i.Sinks[0].Rate == nil || *i.Sinks[0].Rate != want {
				t.Errorf("%s: %+v, want %+v", when, i.Sinks[0].Rate, want)
			}
			if i.Stream.WALRate == nil || *i.Stream.WALRate != 1024 {
				t.Errorf("%s: WAL at %v", when, i.Stream.WALRate)
			}
		}
		pass(10)
		expect("after ten seconds", DeliveryRate{DeliveredNow: 100, DeliveredMinute: 100, UnparkedNow: 10, UnparkedMinute: 10})
		pass(50)
		expect("after a minute", DeliveryRate{DeliveredNow: 100, DeliveredMinute: 100, UnparkedNow: 10, UnparkedMinute: 10})
		pass(30)
		expect("half a minute after the last one", DeliveryRate{DeliveredMinute: 50, UnparkedMinute: 5})
		pass(30)
		expect("a minute after the last one", DeliveryRate{})
		pass(600)
		if n := len(g.recent.samples); n > 61 {
			t.Errorf("%d samples are kept", n)
		}
	})
}

// The forecast follows what waits: parked rows, and the stream.
func TestForecast(t *testing.T) {
	t.Parallel()
	type at map[int]Forecast // by second; CaughtUpAt is replaced by when it will be, in seconds
	in := func(seconds float64) Forecast {
		return Forecast{Trend: TrendCatchingUp, CaughtUpAt: time.Unix(0, 0).Add(time.Duration(seconds * float64(time.Second)))}
	}
	is := func(t Trend) Forecast { return Forecast{Trend: t} }
	for name, test := range map[string]struct {
		step func(second int, st *Status, sink *SinkStatus)
		want at
	}{
		"nothing waits": {
			func(int, *Status, *SinkStatus) {}, at{1: is(TrendNothingWaits), 70: is(TrendNothingWaits)},
		},
		"rows are delivered": {
			func(second int, _ *Status, sink *SinkStatus) { sink.Parked = 1000 - int64(10*second) },
			at{2: is(TrendUnknown), 10: in(90), 70: in(30), 99: in(1), 100: is(TrendNothingWaits)},
		},
		"rows become more": {
			func(second int, _ *Status, sink *SinkStatus) { sink.Parked = int64(10 * second) }, at{2: is(TrendUnknown), 10: is(TrendGrowing), 70: is(TrendGrowing)},
		},
		"rows stay": {
			func(second int, _ *Status, sink *SinkStatus) { sink.Parked = 5 }, at{10: is(TrendNotAtThisRate), 70: is(TrendNotAtThisRate)},
		},
		"one row in a minute, of many": {
			func(second int, _ *Status, sink *SinkStatus) { sink.Parked = 10_000_000 - int64(second/60) }, at{61: is(TrendNotAtThisRate), 130: is(TrendNotAtThisRate)},
		},
		"an outage of a minute, then rows are delivered": {
			func(second int, _ *Status, sink *SinkStatus) {
				sink.Parked = int64(100*min(second, 60) - 100*max(0, second-60))
			},
			at{60: is(TrendGrowing), 64: is(TrendGrowing), 70: in(50), 90: in(30), 119: in(1), 120: is(TrendNothingWaits)},
		},
		"rows are delivered, then an outage": {
			func(second int, _ *Status, sink *SinkStatus) {
				sink.Parked = 10000 - int64(100*min(second, 60)) + int64(10*max(0, second-60))
			},
			at{60: in(40), 70: is(TrendGrowing), 100: is(TrendGrowing)},
		},
		"nobody has counted": {
			func(_ int, _ *Status, sink *SinkStatus) { sink.CountedAt = time.Time{} }, at{1: is(TrendUnknown), 70: is(TrendUnknown)},
		},
		"counted only for two seconds": {
			func(second int, _ *Status, sink *SinkStatus) {
				sink.CountedAt, sink.Parked = time.Time{}, int64(1000-second)
				if second > 30 {
					sink.CountedAt = time.Now()
				}
			}, at{33: is(TrendUnknown), 40: in(960)},
		},
		"the stream is behind": {
			func(second int, st *Status, _ *SinkStatus) {
				st.Lag = time.Minute
				st.LagBytes = 1 << 20 * int64(100-second)
			}, at{2: is(TrendUnknown), 10: in(90), 70: in(30)},
		},
		"the stream is behind for longer than the rows": {
			func(second int, st *Status, sink *SinkStatus) {
				st.Lag = time.Minute
				st.LagBytes = 1 << 20 * int64(200-second)
				sink.Parked = int64(100 - second)
			}, at{10: in(190), 70: in(130)},
		},
		"the stream is behind, and falls back while the rows become fewer": {
			func(second int, st *Status, sink *SinkStatus) {
				st.Lag = time.Minute
				st.LagBytes = 1 << 20 * int64(200+second)
				sink.Parked = int64(100 - second)
			}, at{10: is(TrendGrowing), 70: is(TrendGrowing)},
		},
		"nobody reads the stream": {
			func(second int, st *Status, _ *SinkStatus) {
				st.Lag, st.Streaming = time.Duration(second)*time.Second, false
			}, at{2: is(TrendNothingWaits), 10: is(TrendNotAtThisRate)},
		},
		"much WAL, and no events": {
			func(second int, st *Status, _ *SinkStatus) { st.LagBytes = 1 << 20 * int64(second) }, at{70: is(TrendNothingWaits)},
		},
		"a process that stands by": {
			func(second int, st *Status, sink *SinkStatus) {
				st.Role, st.Streaming, st.Lag, st.Confirmed = RoleStandby, false, time.Hour, pglogrepl.LSN(0)
				sink.CountedAt = time.Time{}
			}, at{70: is(TrendUnknown)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g, pass := watched(test.step)
				for second := 1; second <= 130; second++ {
					pass(1)
					want, checked := test.want[second]
					if !checked {
						continue
					}
					got := g.ask(t).Sinks[0].Forecast
					if !want.CaughtUpAt.IsZero() {
						seconds := want.CaughtUpAt.Sub(time.Unix(0, 0))
						want.CaughtUpAt = time.Now().Add(seconds).UTC()
						if d := want.CaughtUpAt.Sub(got.CaughtUpAt).Abs(); d < 2*time.Second { // a sample a second
							got.CaughtUpAt = want.CaughtUpAt
						}
					}
					if got != want {
						t.Errorf("after %d s: %+v, want %+v", second, got, want)
					}
				}
			})
		})
	}
}

// A sink that comes with a reload has rates from then on.
func TestRatesOfANewSink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, pass := watched(func(second int, st *Status, _ *SinkStatus) {
			if second == 20 {
				st.Sinks = append([]SinkStatus{{Name: "new", InSession: true, Counts: Counts{Delivered: 1_000_000}}}, st.Sinks...)
			}
			if second >= 20 {
				st.Sinks[0].Counts.Delivered += 7
			}
		})
		pass(30)
		i := g.ask(t)
		if r := i.Sinks[0].Rate; r == nil || r.DeliveredNow != 7 || r.DeliveredMinute != 7 {
			t.Errorf("the new one: %+v", r)
		}
		if r := i.Sinks[1].Rate; r == nil || *r != (DeliveryRate{}) {
			t.Errorf("the old one: %+v", r)
		}
	})
}

// What a process delivers in its first second counts: before there was a connector, nothing was delivered.
func TestRatesSinceTheStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := NewRecent(func() Status { return Status{} }, &Health{})
		r.keep(sampleOf(r.status()))
		time.Sleep(time.Second)
		st := Status{At: time.Now(), Sinks: []SinkStatus{{Name: "events", CountedAt: time.Now(), Parked: 1, Counts: Counts{Delivered: 100}}}}
		r.keep(sampleOf(st))
		time.Sleep(9 * time.Second)
		st.At = time.Now()
		got := r.trends(st).sinks[0]
		if got.rate == nil || got.rate.DeliveredNow != 0 || got.rate.DeliveredMinute != 10 {
			t.Errorf("got %+v, want 10 a second over the minute", got.rate)
		}
		if got.forecast.Trend != TrendNotAtThisRate { // the row was not parked since the start
			t.Errorf("the parked row: %+v", got.forecast)
		}
	})
}

// What a sample costs; there is one each second.
func BenchmarkSample(b *testing.B) {
	g := newRigged()
	g.status.Sinks = make([]SinkStatus, 10)
	b.ReportAllocs()
	for b.Loop() {
		g.recent.keep(sampleOf(g.recent.status()))
	}
}
