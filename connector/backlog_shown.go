package connector

import (
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// shownJob is what Status shows of the unfinished job of a sink. The job's goroutine tells it each step. Safe for all goroutines.
type shownJob struct {
	mu    sync.Mutex
	row   *ledger.Job // nil: there is none, or no session works on it
	pace  monitoring.Pace
	waits string
}

// begin notes that a session works on a job. The row says how far the job has come in sessions before.
func (s *shownJob) begin(row ledger.Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.row, s.waits, s.pace = &row, "", monitoring.Pace{}
	s.pace.Add(time.Now(), row.Walked)
}

// step notes how far the job has come.
func (s *shownJob) step(row ledger.Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.row, s.waits = &row, ""
	s.pace.Add(time.Now(), row.Walked)
}

// wait notes what the job waits for.
func (s *shownJob) wait(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits = what
}

// end notes that the job is done, or that the session has ended.
func (s *shownJob) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.row = nil
}

// status returns what Status shows, or nil if there is no job. A job stands still while its sink takes nothing.
func (s *shownJob) status(now time.Time, sink *monitoring.SinkStatus) *monitoring.BacklogStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.row == nil {
		return nil
	}
	st := &monitoring.BacklogStatus{
		ID: s.row.ID, Reason: string(s.row.Reason), FiledAt: s.row.Filed, Walked: s.row.Walked, Parked: s.row.Ordinal,
		Left: monitoring.RowsLeft(s.row.Estimate, s.row.Walked), Rate: s.pace.Rate(now), Waits: s.waits,
	}
	if st.Rate != nil && now.Sub(s.pace.Last()) >= standsAfter && (sink.Paused || !sink.BreakerSince.IsZero()) {
		st.Rate = new(0.0)
	}
	return st
}

// standsAfter is how long after its last step a job counts as standing still, while its sink is away or paused.
const standsAfter = 2 * time.Second
