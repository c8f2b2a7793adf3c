package monitoring

import "time"

// ObjectiveStatus says how many events of a sink were accepted as fast as the configuration wants. Periods end now, and are by
// PostgreSQL's clock. docs/objectives.md has the formulas.
type ObjectiveStatus struct {
	// Within is the longest time from the commit of an event to its acceptance with which the event is in time. Ratio is the share of the
	// events that has to be in time, from 0 to 1.
	Within time.Duration
	Ratio  float64
	// InTime counts the events that were accepted in time since the connector was made. Late counts the others: those that were
	// accepted later, that died, and that were discarded because the sink did not accept them.
	InTime, Late int64
	// Known is true if the ledger was read for what earlier sessions have counted. If it is false, as in a process that stands by, the
	// counts below are of no use.
	Known bool
	// Month has the counts of 28 days, in steps of whole hours. Hour and SixHours are in steps of whole minutes.
	Month, SixHours, Hour EventCounts
	// Trend has whole hours of UTC.
	Trend HourTrend
}

// HourTrend has the counts of the last hour of UTC that is over, of the one before, and of the same one of the day before.
type HourTrend struct {
	Start                       time.Time // of the last hour
	Hour, HourBefore, DayBefore EventCounts
}

// EventCounts count events of a sink in a period.
type EventCounts struct {
	Events int64
	InTime int64 // of Events
}

// Plus returns the sum of two counts.
func (c EventCounts) Plus(d EventCounts) EventCounts {
	return EventCounts{Events: c.Events + d.Events, InTime: c.InTime + d.InTime}
}

// LateShare returns the share of the events that were not in time, from 0 to 1; 0 without events.
func (c EventCounts) LateShare() float64 {
	if c.Events == 0 {
		return 0
	}
	return float64(c.Events-c.InTime) / float64(c.Events)
}

// Percent returns a share in per cent, without the digits that binary fractions add.
func Percent(share float64) float64 { return float64(int64(share*1e8+.5)) / 1e6 }

// BurnRate says how fast these events use up the error budget of an objective: with 1 the budget lasts exactly as long as its period.
func (c EventCounts) BurnRate(ratio float64) float64 { return c.LateShare() / (1 - ratio) }

// BudgetLeft returns the share of the error budget of an objective that these events have left: 1 if none was late, 0 if the objective is
// kept exactly, and less if it is missed.
func (c EventCounts) BudgetLeft(ratio float64) float64 { return 1 - c.BurnRate(ratio) }
