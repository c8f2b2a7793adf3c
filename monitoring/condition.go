package monitoring

import "time"

// Condition is what a sink is at one moment, in one word. /readyz, the log, the ledger and what people ask are made from it.
type Condition string

// The conditions of a sink. If several hold, the first in this order is the sink's.
const (
	// ConditionPaused: a person has paused the sink.
	ConditionPaused Condition = "paused"
	// ConditionAway: the breaker is open or half-open. The destination is asked at AsksAt, or now.
	ConditionAway Condition = "away"
	// ConditionFailing: the sink has not accepted the last batch of some lane, and the breaker is closed.
	ConditionFailing Condition = "failing"
	// ConditionUnreachable: a check has found that the destination cannot be used, and nothing was accepted since.
	ConditionUnreachable Condition = "unreachable"
	// ConditionSuspect: the death budget is used up.
	ConditionSuspect Condition = "suspect"
	// ConditionRefusing: the sink answers, and has refused every message for some time.
	ConditionRefusing Condition = "refusing"
	// ConditionOK: none of the others.
	ConditionOK Condition = "ok"
)

// Condition returns the condition of the sink, and since when it is so. The time is zero if the sink is well.
func (s *SinkStatus) Condition() (Condition, time.Time) {
	if s.Paused {
		return ConditionPaused, s.PausedSince
	}
	if c, since := s.Outage(); c != ConditionOK {
		return c, since
	}
	if s.Check.Unreachable != "" {
		return ConditionUnreachable, s.Check.Since
	}
	if !s.SuspectSince.IsZero() {
		return ConditionSuspect, s.SuspectSince
	}
	if !s.RefusingSince.IsZero() {
		return ConditionRefusing, s.RefusingSince
	}
	return ConditionOK, time.Time{}
}

// Outage returns why the sink accepts nothing, as far as that is the destination's doing, and since when. It returns ConditionOK
// and no time if there is no such reason. A sink that is paused or suspect may have an outage as well.
func (s *SinkStatus) Outage() (Condition, time.Time) {
	switch {
	case !s.BreakerSince.IsZero() && s.Failing && s.FailingSince.Before(s.BreakerSince):
		return ConditionAway, s.FailingSince // the breaker opens after several failures
	case !s.BreakerSince.IsZero():
		return ConditionAway, s.BreakerSince
	case s.Failing:
		return ConditionFailing, s.FailingSince
	}
	return ConditionOK, time.Time{}
}
