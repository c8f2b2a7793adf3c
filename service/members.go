package service

import (
	"sync"
	"sync/atomic"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks/composite"
)

// memberState is what the lanes of a composite have learnt of one of its members. It outlives sessions.
type memberState struct {
	name      string
	delivered atomic.Int64

	mu      sync.Mutex
	away    bool
	byCheck bool // a check was the last to find it away
}

// note notes an answer. A check asks less of a destination than a Deliver does: a webhook that answers each message with 503 passes its checks.
// So a check that passes ends only an absence that a check has seen.
func (m *memberState) note(a composite.Answer) {
	m.delivered.Add(int64(a.Accepted))
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.Check && !a.Away && !m.byCheck {
		return
	}
	m.away, m.byCheck = a.Away, a.Away && a.Check
}

func (m *memberState) isAway() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.away
}

// memberStates are the members of a composite, in their order.
type memberStates []*memberState

// status returns the state of each member.
func (all memberStates) status() []monitoring.MemberStatus {
	out := make([]monitoring.MemberStatus, 0, len(all))
	for _, m := range all {
		out = append(out, monitoring.MemberStatus{Name: m.name, Delivered: m.delivered.Load(), Away: m.isAway()})
	}
	return out
}
