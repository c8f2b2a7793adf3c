package admin

import (
	"context"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// BacklogJob is a job that compares the outbox with the ledger and parks what its sink was not given.
type BacklogJob struct {
	ID     int64            `json:"id"`
	Sink   string           `json:"sink"`
	Reason ledger.JobReason `json:"reason"`
	// Where and Since are the filter of the job; it has none if both are empty.
	Where string    `json:"where,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Walked is how many rows the job has compared, and Estimate about how many it compares in all; 0 if nobody knows.
	Walked   int64 `json:"walked"`
	Estimate int64 `json:"estimate,omitempty"`
	// Parked is how many rows were missing, and were parked to be delivered.
	Parked int64     `json:"parked"`
	Filed  time.Time `json:"filed"`
	// Finished is when the job has finished, or a later one has replaced it. It is zero until then.
	Finished time.Time `json:"finished,omitzero"`
	// Replaced says that the job was not finished when a later one has taken over what it had still to do.
	Replaced bool `json:"replaced,omitempty"`
	// Rate is how many rows a second were compared lately. It is nil if that is not known yet.
	Rate *float64 `json:"rows_per_second,omitempty"`
	// Left is how many seconds the rest takes at that rate. It is nil if that is not known.
	Left *float64 `json:"seconds_left,omitempty"`
}

// finishedLately is how long a job is shown after its end.
const finishedLately = 24 * time.Hour

// Backlog reads the jobs of all sinks of a connector: those that are not finished, and those that have finished within a day.
func Backlog(ctx context.Context, c Config) ([]BacklogJob, error) {
	jobs := []BacklogJob{}
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		var ids []int32
		for _, s := range l.Sinks {
			ids = append(ids, s.Processor)
		}
		found, err := l.schema().ReadJobs(ctx, l.conn, ids, finishedLately)
		for _, j := range found {
			jobs = append(jobs, BacklogJob{
				ID: j.ID, Sink: l.sinkName(j.Processor), Reason: j.Reason, Where: j.Filter.Where, Since: j.Filter.Since,
				Walked: j.Walked, Estimate: j.Estimate, Parked: j.Ordinal, Filed: j.Filed.UTC(), Finished: j.Finished, Replaced: j.Replaced,
			})
		}
		return err
	})
	return jobs, err
}

// BacklogWatch turns looks at the jobs into rates.
type BacklogWatch struct {
	paces map[int64]*monitoring.Pace // by job
}

// Add adds what was read at a time, and sets rates and the time left.
func (w *BacklogWatch) Add(at time.Time, jobs []BacklogJob) {
	if w.paces == nil {
		w.paces = map[int64]*monitoring.Pace{}
	}
	for i := range jobs {
		j := &jobs[i]
		if !j.Finished.IsZero() {
			continue
		}
		pace := w.paces[j.ID]
		if pace == nil {
			pace = &monitoring.Pace{}
			w.paces[j.ID] = pace
		}
		pace.Add(at, j.Walked)
		j.Rate = pace.Rate(at)
		j.Left = monitoring.SecondsLeft(monitoring.RowsLeft(j.Estimate, j.Walked), j.Rate)
	}
}
