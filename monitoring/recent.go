package monitoring

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

const (
	sampleEvery = time.Second
	// minute is how far Recent looks back.
	minute = time.Minute
	// presently is the time of what is called now: long enough that single batches do not show.
	presently = 5 * time.Second
	// turning is how long something has to rise or fall against the trend of the minute before it counts as a new trend.
	turning = 10 * time.Second
	// leastHistory is how long something has to be known before there is a forecast.
	leastHistory = 5 * time.Second
	// behindAfter is from when on the stream counts as behind. Below it, what waits is on its way.
	behindAfter = 3 * time.Second
	// farthest is the longest forecast.
	farthest = 30 * 24 * time.Hour
	// leastRise is how long the WAL that is kept for a slot has to be known before it is said to grow. Under load it goes up and down: the
	// server moves restart_lsn about every 15 s.
	leastRise = 30 * time.Second
	// mostMarks bounds how many marks are remembered.
	mostMarks = 1000
)

// Trend says which way it goes with what waits.
type Trend string

const (
	// TrendNothingWaits: there is nothing to catch up with.
	TrendNothingWaits Trend = "nothing_waits"
	// TrendCatchingUp: what waits becomes less.
	TrendCatchingUp Trend = "catching_up"
	// TrendNotAtThisRate: what waits neither grows nor becomes less, or so slowly that it would take more than 30 days.
	TrendNotAtThisRate Trend = "not_at_this_rate"
	// TrendGrowing: what waits becomes more.
	TrendGrowing Trend = "growing"
	// TrendUnknown: what waits has not been watched for long enough, or nobody knows how much it is.
	TrendUnknown Trend = "unknown"
)

// Forecast says when what waits will have been caught up with, if it goes on as over the last minute. If it has risen over the minute and
// falls since ten seconds, or the other way round, the ten seconds count.
type Forecast struct {
	Trend Trend `json:"trend"`
	// CaughtUpAt is when nothing waits any more. It is absent unless Trend is TrendCatchingUp.
	CaughtUpAt time.Time `json:"caught_up_at,omitzero"`
}

// Recent remembers the last minute of a connector, by a sample of its Status every second. A sample asks nobody and takes microseconds.
type Recent struct {
	status func() Status
	health *Health

	mu      sync.Mutex
	samples []sample // the oldest first
	marks   []mark   // of the time since the server wrote what is confirmed now, the oldest first
}

// mark says how much WAL the connector had itself written when the server had written up to an LSN. Both never become less.
type mark struct{ written, own float64 }

// sample is what is remembered of a Status.
type sample struct {
	at     time.Time
	before bool // there was no connector yet, so nothing was delivered
	// written and behind are bytes of WAL: how far the server has written, and what is not confirmed of that, without what the connector has
	// itself written there. Both are meaningless unless streams is true.
	written, behind float64
	own             float64 // Status.OwnWAL
	streams         bool
	slot            *SlotStatus // nil if it is not known
	sinks           []sinkSample
	busy            []StageBusy
}

type sinkSample struct {
	name                string
	delivered, unparked float64
	parked              float64
	counted             bool // parked is known
}

// NewRecent makes a Recent that has seen nothing yet. status may not wait for anything.
func NewRecent(status func() Status, health *Health) *Recent {
	return &Recent{status: status, health: health}
}

// Run takes a sample every second until ctx ends.
func (r *Recent) Run(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		r.keep(sampleOf(r.status()))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Status returns the present Status, with forecasts.
func (r *Recent) Status() Status {
	st := r.status()
	if st.Streaming {
		t := r.trends(st)
		st.Forecast = &t.forecast
	}
	return st
}

// Instance returns what the process says of itself now.
func (r *Recent) Instance() Instance {
	st := r.status()
	if st.At.IsZero() { // there is no connector yet
		st.At = time.Now()
	}
	return newInstance(st, r.health.ReportOf(&st), r.trends(st))
}

func sampleOf(st Status) sample {
	if st.At.IsZero() {
		return sample{at: time.Now(), before: true}
	}
	s := sample{
		at: st.At, written: float64(st.Confirmed) + float64(st.LagBytes), behind: float64(st.LagBytes), streams: st.Streaming && st.Confirmed > 0,
		own: float64(st.OwnWAL), busy: st.Stages.Busy,
		sinks: make([]sinkSample, len(st.Sinks)),
	}
	if st.Database != nil {
		s.slot = st.Database.Slot
	}
	for i := range st.Sinks {
		sink := &st.Sinks[i]
		s.sinks[i] = sinkSample{
			name: sink.Name, delivered: float64(sink.Counts.Delivered), unparked: float64(sink.Counts.Unparked),
			parked: float64(sink.Parked), counted: !sink.CountedAt.IsZero(),
		}
	}
	return s
}

// keep adds a sample, and drops those that are older than a minute but one.
func (r *Recent) keep(s sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.streams {
		r.mark(&s)
		s.behind = r.withoutOwn(&s)
	}
	r.samples = append(r.samples, s)
	old := 0
	for old+1 < len(r.samples) && s.at.Sub(r.samples[old+1].at) >= minute {
		old++
	}
	r.samples = slices.Delete(r.samples, 0, old)
}

// mark remembers how much WAL was our own when the server had written so far. Where there are too many marks, every second one goes.
func (r *Recent) mark(s *sample) {
	if n := len(r.marks); n > 0 && (s.written < r.marks[n-1].written || s.own < r.marks[n-1].own) {
		r.marks = nil // another server
	}
	r.marks = append(r.marks, mark{s.written, s.own})
	passed := 0
	for passed+1 < len(r.marks) && r.marks[passed+1].written <= s.written-s.behind {
		passed++
	}
	r.marks = slices.Delete(r.marks, 0, passed)
	if len(r.marks) > mostMarks {
		n := 0
		for i := 0; i < len(r.marks); i += 2 {
			r.marks[n] = r.marks[i]
			n++
		}
		r.marks = r.marks[:n]
	}
}

// withoutOwn returns what is behind without the WAL that the connector has itself written there, to record outcomes. The server passes that at once,
// but it is as much as the WAL of small events, and grows the faster they are delivered.
func (r *Recent) withoutOwn(s *sample) float64 {
	if len(r.marks) == 0 {
		return s.behind
	}
	return max(0, s.behind-max(0, s.own-r.marks[0].own))
}

// trends is what the last minute says.
type trends struct {
	walRate  *float64
	stream   Forecast
	sinks    []sinkTrend // as those of the Status
	stages   []StageReport
	forecast ForecastStatus
}

type sinkTrend struct {
	rate     *DeliveryRate
	forecast Forecast
}

// trends returns what the samples and the present Status say together.
func (r *Recent) trends(st Status) trends {
	r.mu.Lock()
	samples := slices.Clone(r.samples)
	now := sampleOf(st)
	now.behind = r.withoutOwn(&now)
	r.mu.Unlock()
	samples = append(samples, now)

	ofStream := func(value func(*sample) float64) series {
		return collect(samples, func(s *sample) (float64, bool) { return value(s), s.streams })
	}
	var t trends
	if rate, known := ofStream(func(s *sample) float64 { return s.written }).slope(minute); known {
		t.walRate = &rate
	}
	t.stream = streamForecast(st, ofStream(func(s *sample) float64 { return s.behind }))
	for i := range st.Sinks {
		t.sinks = append(t.sinks, sinkTrendOf(&st.Sinks[i], samples, t.stream))
	}
	for _, b := range st.Stages.Busy {
		t.stages = append(t.stages, newStageReport(b, samples))
	}
	t.forecast = ForecastStatus{CaughtUp: t.stream, SlotLostAt: slotLostAt(samples)}
	for i := range t.sinks {
		t.forecast.CaughtUp = later(t.forecast.CaughtUp, t.sinks[i].forecast)
	}
	return t
}

// newStageReport says for which share of the last minute a stage was at work.
func newStageReport(b StageBusy, samples []sample) StageReport {
	r := StageReport{Stage: b.Stage, Sink: b.Sink, BusySeconds: b.Busy.Seconds()}
	share, known := collect(samples, func(s *sample) (float64, bool) {
		i := slices.IndexFunc(s.busy, func(other StageBusy) bool { return other.Stage == b.Stage && other.Sink == b.Sink })
		if i < 0 {
			return 0, s.before
		}
		return s.busy[i].Busy.Seconds(), true
	}).slope(minute)
	if known {
		r.BusyMinute = &share
	}
	return r
}

// slotLostAt returns when a slot has used up the WAL that it may keep: what is left of it, by the rate at which what is kept has grown over the
// last minute. It returns the zero time if that is not limited, does not grow, or takes too long.
func slotLostAt(samples []sample) time.Time {
	now := samples[len(samples)-1].slot
	if now == nil || now.SafeWAL == nil {
		return time.Time{}
	}
	if *now.SafeWAL <= 0 {
		return now.AskedAt.UTC() // the server's next checkpoint takes it
	}
	var kept series
	for i := range samples {
		switch slot := samples[i].slot; {
		case slot == nil || slot.RestartLag == nil:
			kept = nil
		case len(kept) == 0 || slot.AskedAt.After(kept[len(kept)-1].at): // it is asked less often than samples are taken
			kept = append(kept, point{slot.AskedAt, float64(*slot.RestartLag)})
		}
	}
	left := float64(*now.SafeWAL) / kept.growth() // seconds
	if left > farthest.Seconds() {                // or it does not grow
		return time.Time{}
	}
	return now.AskedAt.Add(time.Duration(left * float64(time.Second))).UTC()
}

func streamForecast(st Status, behind series) Forecast {
	switch {
	case st.Role == RoleStandby || st.Lag < behindAfter:
		return Forecast{Trend: TrendNothingWaits}
	case !st.Streaming:
		return Forecast{Trend: TrendNotAtThisRate} // nobody reads
	}
	return behind.forecast()
}

func sinkTrendOf(sink *SinkStatus, samples []sample, stream Forecast) (t sinkTrend) {
	of := func(value func(sinkSample) (float64, bool)) series {
		return collect(samples, func(s *sample) (float64, bool) {
			if s.before {
				return value(sinkSample{})
			}
			if i := slices.IndexFunc(s.sinks, func(other sinkSample) bool { return other.name == sink.Name }); i >= 0 {
				return value(s.sinks[i])
			}
			return 0, false // it was not configured
		})
	}
	delivered := of(func(s sinkSample) (float64, bool) { return s.delivered, true })
	unparked := of(func(s sinkSample) (float64, bool) { return s.unparked, true })
	if now, known := delivered.slope(presently); known {
		t.rate = &DeliveryRate{DeliveredNow: now}
		t.rate.DeliveredMinute, _ = delivered.slope(minute)
		t.rate.UnparkedNow, _ = unparked.slope(presently)
		t.rate.UnparkedMinute, _ = unparked.slope(minute)
	}
	parked := Forecast{Trend: TrendNothingWaits}
	switch {
	case sink.CountedAt.IsZero():
		parked.Trend = TrendUnknown
	case sink.Parked > 0:
		parked = of(func(s sinkSample) (float64, bool) { return s.parked, s.counted }).forecast()
	}
	t.forecast = later(parked, stream)
	return t
}

// later returns the forecast of two things that both have to be caught up with.
func later(a, b Forecast) Forecast {
	order := []Trend{TrendNothingWaits, TrendCatchingUp, TrendUnknown, TrendNotAtThisRate, TrendGrowing}
	x, y := slices.Index(order, a.Trend), slices.Index(order, b.Trend)
	if x > y || x == y && a.CaughtUpAt.After(b.CaughtUpAt) {
		return a
	}
	return b
}

// series are values of the last minute, the oldest first. The last one is the present value.
type series []point

type point struct {
	at    time.Time
	value float64
}

// collect returns the values of the samples since the last one that has none.
func collect(samples []sample, value func(*sample) (float64, bool)) (all series) {
	for i := range samples {
		v, known := value(&samples[i])
		if !known {
			all = nil
			continue
		}
		all = append(all, point{samples[i].at, v})
	}
	return all
}

// slope returns by how much the value has changed per second, over a time, or over what is known of it. known is false if that is less
// than half a second.
func (s series) slope(over time.Duration) (perSecond float64, known bool) {
	if len(s) == 0 {
		return 0, false
	}
	last := s[len(s)-1]
	from := 0
	for from+1 < len(s) && last.at.Sub(s[from+1].at) >= over {
		from++
	}
	took := last.at.Sub(s[from].at)
	if took < sampleEvery/2 {
		return 0, false
	}
	return (last.value - s[from].value) / took.Seconds(), true
}

// growth returns by how much a value that goes up and down has grown per second over the last minute. It is 0 unless the value was always larger
// in the newest third of the time than it ever was in the oldest third, and before leastRise. It is measured between the lowest values of both.
func (s series) growth() (perSecond float64) {
	for len(s) > 1 && s[len(s)-1].at.Sub(s[1].at) >= minute {
		s = s[1:]
	}
	if len(s) == 0 || s[len(s)-1].at.Sub(s[0].at) < leastRise {
		return 0
	}
	third := s[len(s)-1].at.Sub(s[0].at) / 3
	oldest := s[:slices.IndexFunc(s, func(p point) bool { return p.at.Sub(s[0].at) > third })]
	newest := s[slices.IndexFunc(s, func(p point) bool { return s[len(s)-1].at.Sub(p.at) <= third }):]
	byValue := func(a, b point) int { return cmp.Compare(a.value, b.value) }
	from, to := slices.MinFunc(oldest, byValue), slices.MinFunc(newest, byValue)
	if to.value <= slices.MaxFunc(oldest, byValue).value {
		return 0
	}
	return (to.value - from.value) / to.at.Sub(from.at).Seconds()
}

// forecast says when a value that is more than 0 will be 0.
func (s series) forecast() Forecast {
	if len(s) == 0 || s[len(s)-1].at.Sub(s[0].at) < leastHistory {
		return Forecast{Trend: TrendUnknown}
	}
	last := s[len(s)-1]
	slope, _ := s.slope(minute)
	if turn, _ := s.slope(turning); turn < 0 && slope >= 0 || turn > 0 && slope <= 0 {
		slope = turn
	}
	left := last.value / -slope // seconds
	switch {
	case slope > 0:
		return Forecast{Trend: TrendGrowing}
	case slope == 0 || left > farthest.Seconds():
		return Forecast{Trend: TrendNotAtThisRate}
	}
	return Forecast{Trend: TrendCatchingUp, CaughtUpAt: last.at.Add(time.Duration(left * float64(time.Second))).UTC()}
}
