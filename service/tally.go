package service

import (
	"sync"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// tally is the state of the connector that runs, with the counters of those before it in the same process: counters never go back
// when a connector takes the place of another one.
type tally struct {
	mu      sync.Mutex
	current interface{ Status() monitoring.Status } // nil before the first connector
	earlier monitoring.Status                       // counters only; it has all sinks there ever were
}

// follow makes the state that of another connector. The one before has ended.
func (t *tally) follow(next interface{ Status() monitoring.Status }) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current != nil {
		t.earlier = sum(t.current.Status(), t.earlier)
	}
	t.current = next
}

// status returns the state of the connector. If there was none yet, none is true.
func (t *tally) status() (st monitoring.Status, none bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current == nil {
		return st, true
	}
	st = t.current.Status()
	sinks, stages := len(st.Sinks), len(st.Stages.Busy)
	st = sum(st, t.earlier)
	// Those of sinks that are no longer configured have no state.
	st.Sinks, st.Stages.Busy = st.Sinks[:sinks], st.Stages.Busy[:stages]
	return st, false
}

// sum adds what earlier has counted to the counters of st. Sinks and members are told apart by their names. Sinks that only earlier has
// come last in the result.
func sum(st, earlier monitoring.Status) monitoring.Status {
	st.Sessions += earlier.Sessions
	st.Invalid += earlier.Invalid
	st.OwnWAL += earlier.OwnWAL
	st.Unrouted += earlier.Unrouted
	st.Mended.Publications += earlier.Mended.Publications
	st.Mended.Slots += earlier.Mended.Slots
	st.Stages = st.Stages.Plus(earlier.Stages)
	for _, before := range earlier.Sinks {
		now := find(st.Sinks, func(s *monitoring.SinkStatus) bool { return s.Name == before.Name })
		if now == nil {
			st.Sinks = append(st.Sinks, before)
			continue
		}
		now.Counts = now.Counts.Plus(before.Counts)
		now.Objective.InTime += before.Objective.InTime
		now.Objective.Late += before.Objective.Late
		if before.Events.DeliveredAt.After(now.Events.DeliveredAt) {
			now.Events.DeliveredAt = before.Events.DeliveredAt
		}
		for _, m := range before.Members {
			if member := find(now.Members, func(s *monitoring.MemberStatus) bool { return s.Name == m.Name }); member != nil {
				member.Delivered += m.Delivered
			}
		}
	}
	return st
}

// find returns the element that is the one, or nil.
func find[T any](all []T, is func(*T) bool) *T {
	for i := range all {
		if is(&all[i]) {
			return &all[i]
		}
	}
	return nil
}
