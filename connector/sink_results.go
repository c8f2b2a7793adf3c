package connector

import (
	"slices"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// Objective says how fast the events of a sink should be accepted, and which share of them. It changes nothing in how they are delivered.
type Objective struct {
	Within time.Duration // from commit to acceptance
	Ratio  float64       // the share of the events that has to be in time, from 0 to 1
}

// maxUnwritten bounds the minutes of a sink that wait to be written to outbox_metrics. It is an hour's: who locks the table for longer loses
// the rows, while the counters go on.
const maxUnwritten = 60

// sinkResults counts what became of a sink's events, for its objective: minute by minute, and over the last hours. It outlives sessions. The
// minute of an event is that in which it was settled, by PostgreSQL's clock as the last session has measured it.
//
// A lane calls add once for each Deliver, so that the mutex is taken once for many events.
type sinkResults struct {
	goal Objective

	mu           sync.Mutex
	inTime, late int64         // since the connector was made
	clock        time.Duration // PostgreSQL's clock minus ours
	since        time.Time     // when the session began, by PostgreSQL's clock
	open         openMinute
	unwritten    []ledger.MinuteResults // minutes that are over, and not known to be written; without processor
	past         pastResults
}

// openMinute is the minute that is counted now. It begins with its first event.
type openMinute struct {
	start  time.Time // zero: there is none
	counts monitoring.EventCounts
	worst  time.Duration
	took   [ledger.DurationBuckets]uint32
}

// pastResults are the counts of the last 28 days, with what is not written yet.
type pastResults struct {
	known   bool          // the ledger was read
	hours   []periodCount // in order of time
	minutes []periodCount // of the last six hours
}

// periodCount has the counts of an hour or a minute.
type periodCount struct {
	start time.Time
	monitoring.EventCounts
}

func newSinkResults(goal Objective) *sinkResults { return &sinkResults{goal: goal} }

// add counts events that were settled at this time: those that were accepted, with the time from their commit, and others that were given up.
func (o *sinkResults) add(at time.Time, took []time.Duration, givenUp int) {
	if len(took)+givenUp == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	m := &o.open
	if minute := at.Add(o.clock).Truncate(time.Minute); minute.After(m.start) { // a late answer counts in the minute that is open
		o.close(completeMinute)
		m.start = minute
	}
	inTime := 0
	for _, d := range took {
		if d <= o.goal.Within {
			inTime++
		}
		m.worst = max(m.worst, d)
		m.took[ledger.DurationBucket(d)]++
	}
	n := monitoring.EventCounts{Events: int64(len(took) + givenUp), InTime: int64(inTime)}
	m.counts = m.counts.Plus(n)
	o.inTime += n.InTime
	o.late += n.Events - n.InTime
	o.past.add(m.start, n)
}

// completeness says whether a minute was counted to its end.
type completeness bool

const (
	completeMinute completeness = true
	endedMinute    completeness = false // the session has ended before
)

// close closes the open minute, if there is one. The caller holds mu.
func (o *sinkResults) close(c completeness) {
	m := &o.open
	if m.counts.Events > 0 && len(o.unwritten) < maxUnwritten {
		o.unwritten = append(o.unwritten, m.results(o.goal))
		last := &o.unwritten[len(o.unwritten)-1]
		last.Partial = c == endedMinute || m.start.Before(o.since)
	}
	o.open = openMinute{start: m.start}
}

func (m *openMinute) results(goal Objective) ledger.MinuteResults {
	r := ledger.MinuteResults{
		Start: m.start, Within: goal.Within, Ratio: goal.Ratio,
		Results: ledger.Results{Events: m.counts.Events, InTime: m.counts.InTime, Worst: m.worst},
	}
	for bucket, n := range m.took {
		if n > 0 {
			if r.Took == nil {
				r.Took = ledger.Durations{}
			}
			r.Took[bucket] = int64(n)
		}
	}
	return r
}

// over returns the minutes that are to be written. With endedMinute the one that is open is among them.
func (o *sinkResults) over(now time.Time, c completeness) []ledger.MinuteResults {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c == endedMinute || now.Add(o.clock).Truncate(time.Minute).After(o.open.start) {
		o.close(c)
	}
	return slices.Clone(o.unwritten)
}

// written forgets the first n minutes that over has returned: they are in the ledger.
func (o *sinkResults) written(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unwritten = slices.Delete(o.unwritten, 0, n)
}

// begin notes that a session begins.
func (o *sinkResults) begin(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.since = now.Add(o.clock)
}

// remember takes what the ledger has of the sink. now is the time of this process at which history.Now was PostgreSQL's.
func (o *sinkResults) remember(processor int32, history *ledger.ResultHistory, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	clock := history.Now.Sub(now)
	o.since = o.since.Add(clock - o.clock)
	o.clock = clock
	past := pastResults{known: true}
	for i := range history.Hours {
		if h := &history.Hours[i]; h.Processor == processor {
			past.hours = append(past.hours, periodCount{h.Start, monitoring.EventCounts{Events: h.Events, InTime: h.InTime}})
		}
	}
	for i := range history.Minutes {
		if m := &history.Minutes[i]; m.Processor == processor {
			past.minutes = append(past.minutes, periodCount{m.Start, monitoring.EventCounts{Events: m.Events, InTime: m.InTime}})
		}
	}
	o.past = past
	for i := range o.unwritten {
		m := &o.unwritten[i]
		o.past.add(m.Start, monitoring.EventCounts{Events: m.Events, InTime: m.InTime})
	}
	o.past.add(o.open.start, o.open.counts)
}

// forget forgets the past: another process counts now.
func (o *sinkResults) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.past = pastResults{}
}

// add counts events of a minute.
func (p *pastResults) add(minute time.Time, n monitoring.EventCounts) {
	if !p.known || n.Events == 0 {
		return
	}
	p.hours = addTo(p.hours, minute.Truncate(time.Hour), n)
	p.minutes = addTo(p.minutes, minute, n)
}

// addTo adds counts to the last period, or to a new one if that is another one. What is older than the last period counts there.
func addTo(all []periodCount, start time.Time, n monitoring.EventCounts) []periodCount {
	if len(all) == 0 || start.After(all[len(all)-1].start) {
		return append(all, periodCount{start, n})
	}
	last := &all[len(all)-1]
	last.EventCounts = last.EventCounts.Plus(n)
	return all
}

// sumFrom returns the sum of the periods that begin at this time or later, and those periods.
func sumFrom(all []periodCount, from time.Time) (sum monitoring.EventCounts, left []periodCount) {
	i := len(all)
	for i > 0 && !all[i-1].start.Before(from) {
		i--
		sum = sum.Plus(all[i].EventCounts)
	}
	return sum, all[i:]
}

// countsAt returns the counts of the period that begins at this time.
func countsAt(all []periodCount, start time.Time) monitoring.EventCounts {
	for i := len(all) - 1; i >= 0 && !all[i].start.Before(start); i-- {
		if all[i].start.Equal(start) {
			return all[i].EventCounts
		}
	}
	return monitoring.EventCounts{}
}

// trend compares the last hour that is over at this time of PostgreSQL with the one before, and with the same one of the day before.
func (p *pastResults) trend(now time.Time) monitoring.HourTrend {
	last := now.UTC().Truncate(time.Hour).Add(-time.Hour)
	return monitoring.HourTrend{
		Start: last, Hour: countsAt(p.hours, last), HourBefore: countsAt(p.hours, last.Add(-time.Hour)), DayBefore: countsAt(p.hours, last.Add(-24*time.Hour)),
	}
}

// status returns how the objective does at this time.
func (o *sinkResults) status(now time.Time) monitoring.ObjectiveStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	st := monitoring.ObjectiveStatus{Within: o.goal.Within, Ratio: o.goal.Ratio, InTime: o.inTime, Late: o.late, Known: o.past.known}
	now = now.Add(o.clock)
	st.Month, o.past.hours = sumFrom(o.past.hours, now.Add(-ledger.ResultsKept).Truncate(time.Hour))
	st.SixHours, o.past.minutes = sumFrom(o.past.minutes, now.Add(-ledger.SingleMinutesKept).Truncate(time.Minute))
	st.Hour, _ = sumFrom(o.past.minutes, now.Add(-time.Hour).Truncate(time.Minute))
	st.Trend = o.past.trend(now)
	return st
}
