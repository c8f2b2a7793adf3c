package monitoring

import "time"

// BacklogStatus is the unfinished backlog job of a sink: it compares rows of the outbox with the ledger, and parks what the sink was not given.
type BacklogStatus struct {
	ID int64
	// Reason says what has filed the job, as outbox_backlog has it.
	Reason  string
	FiledAt time.Time
	// Walked counts the rows that the job has compared, and Parked those of them that were missing.
	Walked, Parked int64
	// Left is about how many rows it has still to compare; nil if nobody knows.
	Left *int64
	// Rate is how many rows a second it compares; nil if that is not known yet. See Pace.
	Rate *float64
	// Waits says what the job waits for before it reads its first row; empty if it does not.
	Waits string
}

// RowsLeft returns about how many rows a job has still to compare: estimate is about how many it compares in all, 0 if nobody knows. It returns
// nil if nobody knows: also if more rows are compared than were estimated.
func RowsLeft(estimate, walked int64) *int64 {
	if estimate <= 0 || estimate < walked {
		return nil
	}
	return new(estimate - walked)
}

// SecondsLeft returns how long the rest takes at this rate, or nil if nobody knows.
func SecondsLeft(left *int64, rate *float64) *float64 {
	if left == nil || rate == nil || *rate <= 0 {
		return nil
	}
	return new(float64(*left) / *rate)
}

const (
	// paceOver is over how long the rate of a job is measured, if it takes several steps in that time.
	paceOver = 3 * time.Second
	// paceEvery is how close together two points are kept at most.
	paceEvery = 100 * time.Millisecond
	// paceStands is how long a job at least has to take no step before it stands still.
	paceStands = time.Minute
	// paceRests is how long a job that has not taken a step may be at rest before its rate is 0: its first chunk takes so long.
	paceRests = 8 * time.Second
)

// Pace makes a rate of how many rows a job has compared. A job moves by chunks. Behind a slow sink a chunk may take a minute, because the
// lanes have to find all rows of one before the next is parked: then the rate is that of the last chunk. While no chunk comes for longer than
// the last one took, the rate falls as if one came now, and to 0 when it takes ten times as long. The zero Pace has seen nothing. Not safe for several goroutines.
type Pace struct{ points []point }

// Add adds how many rows were compared at a time. It may be called as often as one likes.
func (p *Pace) Add(at time.Time, walked int64) {
	value := float64(walked)
	n := len(p.points)
	if n > 0 && value == p.points[n-1].value {
		return // the job has not moved
	}
	if n > 1 && at.Sub(p.points[n-2].at) < paceEvery {
		p.points[n-1] = point{at, value}
		return
	}
	p.points = append(p.points, point{at, value})
	old := 0
	for old+2 < len(p.points) && at.Sub(p.points[old+1].at) >= paceOver {
		old++
	}
	p.points = p.points[old:]
}

// Last returns when the job has last moved, as Add has heard it; zero if never.
func (p *Pace) Last() time.Time {
	if len(p.points) == 0 {
		return time.Time{}
	}
	return p.points[len(p.points)-1].at
}

// Rate returns how many rows a second are compared, or nil if that is not known yet.
func (p *Pace) Rate(now time.Time) *float64 {
	n := len(p.points)
	if n == 0 {
		return nil
	}
	last := p.points[n-1]
	silent := now.Sub(last.at)
	if n == 1 {
		if silent < paceRests {
			return nil
		}
		return new(0.0) // it has not taken a step for so long
	}
	from := p.points[0]
	for _, next := range p.points[1 : n-1] {
		if now.Sub(next.at) < paceOver {
			break
		}
		from = next
	}
	took := last.at.Sub(from.at)
	switch {
	case took <= 0 && silent <= 0:
		return nil
	case silent >= max(paceStands, 10*took):
		return new(0.0)
	}
	took = max(took, silent)
	return new((last.value - from.value) / took.Seconds())
}

// BacklogReport says how far the unfinished backlog job of a sink is.
type BacklogReport struct {
	ID     int64     `json:"id"`
	Reason string    `json:"reason"`
	Filed  time.Time `json:"filed"`
	// Walked, Parked, Left, Rate and WaitsFor are those of BacklogStatus, and SecondsLeft is how long the rest takes at this rate.
	Walked      int64    `json:"walked"`
	Parked      int64    `json:"parked"`
	Left        *int64   `json:"rows_left,omitempty"`
	Rate        *float64 `json:"rows_per_second,omitempty"`
	SecondsLeft *float64 `json:"seconds_left,omitempty"`
	WaitsFor    string   `json:"waits_for,omitempty"`
}

// NewBacklogReport makes the report of a job; nil of none.
func NewBacklogReport(b *BacklogStatus) *BacklogReport {
	if b == nil {
		return nil
	}
	return &BacklogReport{
		ID: b.ID, Reason: b.Reason, Filed: utc(b.FiledAt), Walked: b.Walked, Parked: b.Parked,
		Left: b.Left, Rate: b.Rate, SecondsLeft: SecondsLeft(b.Left, b.Rate), WaitsFor: b.Waits,
	}
}
