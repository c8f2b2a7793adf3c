package monitoring

import "time"

// ProcessorMetrics is what outbox_processors.metrics has of a sink: numbers of the same Status of which the metrics are made. It has none that
// change by themselves, so that those of an idle sink stay the same.
type ProcessorMetrics struct {
	// CountReport is since CountedSince, when the process began.
	CountReport
	CountedSince time.Time `json:"counted_since"`
	// Parked and DeadLetters are absent while nobody knows them.
	Parked      *int64 `json:"parked,omitempty"`
	DeadLetters *int64 `json:"dead_letters,omitempty"`
	Held        int    `json:"held_aggregates"`
	Lanes       int    `json:"lanes"`
	// Epoch is that of the session that has written this.
	Epoch int32 `json:"epoch"`
}

// NewProcessorMetrics returns the numbers of a sink of this status.
func NewProcessorMetrics(st *Status, s *SinkStatus) ProcessorMetrics {
	m := ProcessorMetrics{CountReport: newCountReport(s.Counts), CountedSince: processStarted.UTC(), Held: s.Held(), Lanes: len(s.Lanes), Epoch: st.Epoch}
	if !s.CountedAt.IsZero() {
		m.Parked, m.DeadLetters = &s.Parked, &s.DeadLetters
	}
	return m
}
