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
		return ConditionPaused, s.Since.Paused
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
	if !s.Since.Refusing.IsZero() {
		return ConditionRefusing, s.Since.Refusing
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

// State is what a sink is at one moment, in one of six words: what the metric sink_state shows. A Condition is finer.
type State string

// The states of a sink.
const (
	// StateOK: the condition is ok, and the sink has nothing to catch up with.
	StateOK State = "ok"
	// StateCatchingUp: the condition is ok, and a lane delivers what was parked.
	StateCatchingUp State = "catching_up"
	// StateDegraded: the condition is failing, unreachable or refusing.
	StateDegraded State = "degraded"
	// StateAway, StateSuspect and StatePaused are the conditions of these names.
	StateAway    State = "away"
	StateSuspect State = "suspect"
	StatePaused  State = "paused"
)

// States returns all states.
func States() []State {
	return []State{StateOK, StateCatchingUp, StateDegraded, StateAway, StateSuspect, StatePaused}
}

// State returns the state of the sink. It is empty while no session uses the sink, because then nobody knows.
func (s *SinkStatus) State() State {
	if !s.InSession {
		return ""
	}
	switch condition, _ := s.Condition(); condition {
	case ConditionOK:
		if s.Parked > 0 && s.CatchingUp() > 0 {
			return StateCatchingUp
		}
		return StateOK
	case ConditionPaused:
		return StatePaused
	case ConditionAway:
		return StateAway
	case ConditionSuspect:
		return StateSuspect
	case ConditionFailing, ConditionUnreachable, ConditionRefusing:
	}
	return StateDegraded
}
