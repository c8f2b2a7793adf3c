package connector

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func counted(events, inTime int64) monitoring.EventCounts {
	return monitoring.EventCounts{Events: events, InTime: inTime}
}

// An event is in time up to the objective's time exactly. What is given up is late, and has no duration.
func TestObjectiveCounts(t *testing.T) {
	t.Parallel()
	o := newSinkResults(Objective{Within: time.Second, Ratio: .99})
	o.begin(noon.Add(-time.Minute))
	o.add(noon.Add(time.Second), []time.Duration{0, time.Second, time.Second + 1}, 2)
	o.add(noon.Add(59*time.Second), nil, 0)
	if got := o.over(noon.Add(59*time.Second), completeMinute); len(got) != 0 {
		t.Errorf("a minute that goes on is over: %+v", got)
	}
	want := []ledger.MinuteResults{{
		Start: noon, Within: time.Second, Ratio: .99,
		Results: ledger.Results{
			Events: 5, InTime: 2, Worst: time.Second + 1,
			Took: ledger.Durations{0: 1, ledger.DurationBucket(time.Second): 2},
		},
	}}
	for range 2 { // until it is written
		if diff := cmp.Diff(want, o.over(noon.Add(time.Minute), completeMinute)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	o.written(1)
	if got := o.over(noon.Add(time.Hour), completeMinute); len(got) != 0 {
		t.Errorf("a minute without events, or one that is written, is to be written: %+v", got)
	}
	st := o.status(noon.Add(time.Minute))
	if st.InTime != 2 || st.Late != 3 || st.Known || st.Within != time.Second || st.Ratio != .99 {
		t.Errorf("%+v", st)
	}
}

// A minute is partial for the session that begins or ends in it. What is counted after its end, or late, is counted once.
func TestObjectivePartialMinutes(t *testing.T) {
	t.Parallel()
	o := newSinkResults(Objective{Within: time.Second})
	took := []time.Duration{time.Millisecond}
	o.begin(noon.Add(10 * time.Second))
	o.add(noon.Add(20*time.Second), took, 0)
	o.add(noon.Add(61*time.Second), took, 0)
	o.add(noon.Add(59*time.Second), took, 0) // an answer of the minute before, which is closed
	type row struct {
		Start   time.Time
		Partial bool
		Events  int64
	}
	rows := func(now time.Time, c completeness) (all []row) {
		minutes := o.over(now, c)
		for i := range minutes {
			all = append(all, row{minutes[i].Start, minutes[i].Partial, minutes[i].Events})
		}
		o.written(len(minutes))
		return all
	}
	if diff := cmp.Diff([]row{{noon, true, 1}}, rows(noon.Add(61*time.Second), completeMinute)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]row{{noon.Add(time.Minute), true, 2}}, rows(noon.Add(70*time.Second), endedMinute)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	o.begin(noon.Add(80 * time.Second)) // the next session, in the same minute
	o.add(noon.Add(90*time.Second), took, 0)
	o.add(noon.Add(120*time.Second), took, 1)
	if diff := cmp.Diff([]row{{noon.Add(time.Minute), true, 1}, {noon.Add(2 * time.Minute), false, 2}}, rows(noon.Add(180*time.Second), completeMinute)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What waits to be written is bounded; the counters go on.
func TestObjectiveUnwritten(t *testing.T) {
	t.Parallel()
	o := newSinkResults(Objective{Within: time.Second})
	for i := range 2 * maxUnwritten {
		o.add(noon.Add(time.Duration(i)*time.Minute), []time.Duration{0}, 0)
	}
	if got := o.over(noon.Add(24*time.Hour), completeMinute); len(got) != maxUnwritten || !got[0].Start.Equal(noon) {
		t.Errorf("%d minutes wait", len(got))
	}
	if st := o.status(noon); st.InTime != 2*maxUnwritten {
		t.Errorf("%d in time", st.InTime)
	}
}

// The periods are those of the ledger with what is not written yet, by PostgreSQL's clock. They end with the events that have become too old.
func TestObjectivePast(t *testing.T) {
	t.Parallel()
	o := newSinkResults(Objective{Within: time.Second, Ratio: .9})
	ours := noon.Add(-7 * time.Second) // PostgreSQL's clock is 7 s ahead
	o.add(ours.Add(-2*time.Minute), []time.Duration{0}, 0)
	o.over(ours, completeMinute)
	o.add(ours, []time.Duration{0}, 1)
	history := ledger.ResultHistory{
		Now: noon,
		Hours: []ledger.HourResults{
			{Processor: 1, Start: noon.Add(-28 * 24 * time.Hour), Results: ledger.Results{Events: 100, InTime: 80}},
			{Processor: 1, Start: noon.Add(-25 * time.Hour), Results: ledger.Results{Events: 7, InTime: 6}},
			{Processor: 1, Start: noon.Add(-3 * time.Hour), Results: ledger.Results{Events: 10, InTime: 10}},
			{Processor: 2, Start: noon.Add(-time.Hour), Results: ledger.Results{Events: 1000}},
		},
		Minutes: []ledger.MinuteResults{
			{Processor: 1, Start: noon.Add(-2*time.Hour - time.Minute), Results: ledger.Results{Events: 10, InTime: 10}},
			{Processor: 2, Start: noon.Add(-time.Minute), Results: ledger.Results{Events: 1000}},
		},
	}
	o.remember(1, &history, ours)
	want := monitoring.ObjectiveStatus{
		Within: time.Second, Ratio: .9, InTime: 2, Late: 1, Known: true, Month: counted(120, 98), SixHours: counted(13, 12), Hour: counted(3, 2),
		Trend: monitoring.HourTrend{Start: noon.Add(-time.Hour), Hour: counted(3, 2), DayBefore: counted(7, 6)},
	}
	if diff := cmp.Diff(want, o.status(ours)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	o.add(ours.Add(time.Hour), []time.Duration{0}, 0) // by its own clock it is a minute before one
	want.InTime, want.Month, want.SixHours, want.Hour = 3, counted(21, 19), counted(14, 13), counted(1, 1)
	want.Trend = monitoring.HourTrend{Start: noon, HourBefore: counted(3, 2)}
	if diff := cmp.Diff(want, o.status(ours.Add(time.Hour+59*time.Second))); diff != "" {
		t.Errorf("an hour later: -want +got:\n%s", diff)
	}
	if minutes := o.over(ours.Add(time.Hour), endedMinute); !minutes[len(minutes)-1].Start.Equal(noon.Add(time.Hour)) {
		t.Errorf("the minute is %s by PostgreSQL's clock", minutes[len(minutes)-1].Start)
	}
	o.forget()
	if st := o.status(ours); st.Known || st.Month.Events != 0 || st.InTime != 3 {
		t.Errorf("after another process has taken over: %+v", st)
	}
}

// A session writes its last minute when it ends, and the next one knows it: budget and compliance are about all sessions.
func TestResultsOutliveSessions(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.cfg.Sinks[0].Objective = Objective{Within: time.Hour, Ratio: .99}
	b.setSink(func(_ context.Context, batch []sinks.Message) []error {
		errs := make([]error, len(batch))
		for i, m := range batch {
			if m.Event.EventType == "bad" {
				errs[i] = sinks.ErrPermanent
			}
		}
		return errs
	})
	for session := range int64(2) {
		r := b.run()
		objective := func() monitoring.ObjectiveStatus { return r.connector.Status().Sinks[0].Objective }
		b.waitFor("the past is known", func() bool { return objective().Known })
		if st := objective(); st.Month != counted(3*session, 2*session) || st.Hour != st.Month || st.InTime != 0 {
			t.Errorf("session %d begins with %+v", session, st)
		}
		b.event("a", "good")
		b.event("a", "good")
		b.event("b", "bad")
		b.waitFor("all are counted", func() bool { return objective().Month == counted(3*(session+1), 2*(session+1)) })
		r.stop()
	}
	var rows string
	err := b.conn.QueryRow(context.Background(), `select string_agg(metric_type || ' ' || total, ', ' order by metric_type) from (
		select metric_type, sum(value) as total from outbox_metrics where metric_type in ('count', 'within', 'hour') group by 1) m`).Scan(&rows)
	if want := "count 6, hour 6, within 4"; err != nil || rows != want {
		t.Errorf("the ledger has %q, %v, want %q", rows, err, want)
	}
}
