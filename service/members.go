package service

import (
	"sync/atomic"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks/composite"
)

// memberState is what the lanes of a composite have learnt of one of its members. It outlives sessions.
type memberState struct {
	name      string
	delivered atomic.Int64
	away      atomic.Bool
}

// note notes an answer.
func (m *memberState) note(a composite.Answer) {
	m.delivered.Add(int64(a.Accepted))
	m.away.Store(a.Away)
}

// memberStates are the members of a composite, in their order.
type memberStates []*memberState

// status returns the state of each member.
func (all memberStates) status() []monitoring.MemberStatus {
	out := make([]monitoring.MemberStatus, 0, len(all))
	for _, m := range all {
		out = append(out, monitoring.MemberStatus{Name: m.name, Delivered: m.delivered.Load(), Away: m.away.Load()})
	}
	return out
}
