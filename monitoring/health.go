package monitoring

import (
	"maps"
	"sync"
	"time"
)

// Role says whether this process reads the slot.
type Role string

const (
	// RoleStandby waits for a slot that another process reads: as healthy and as ready as the leader.
	RoleStandby Role = "standby"
	// RoleLeader reads the slot.
	RoleLeader Role = "leader"
)

// Level says how well a component, or the whole process, works.
type Level string

const (
	// LevelOK works.
	LevelOK Level = "ok"
	// LevelDegraded means that something needs to be mended, but it does not keep this process from its job: a sink is away, for
	// example, and what it is owed is parked. To restart the process, or to send it no requests, would mend nothing.
	LevelDegraded Level = "degraded"
	// LevelFailed means that this process cannot do its job, or not yet: it does not stream and does not stand by, or cannot
	// record outcomes.
	LevelFailed Level = "failed"
)

// badness orders the levels. A level that does not exist is as bad as LevelFailed, so that a mistake is seen.
func (l Level) badness() int {
	switch l {
	case LevelOK:
		return 0
	case LevelDegraded:
		return 1
	case LevelFailed:
	}
	return 2
}

// Component is one part of the process as /readyz shows it.
type Component struct {
	Status Level `json:"status"`
	// Detail is one sentence for a person: the state, or the cause with its remedy.
	Detail string `json:"detail,omitempty"`
	// Since is when Status last changed.
	Since time.Time `json:"since"`
}

// OK returns a component that works.
func OK(detail string) Component { return Component{Status: LevelOK, Detail: detail} }

// Degraded returns a component that does not work, and does not keep this process from its job.
func Degraded(why string) Component { return Component{Status: LevelDegraded, Detail: why} }

// Failed returns a component that keeps this process from its job.
func Failed(why string) Component { return Component{Status: LevelFailed, Detail: why} }

// Health is the state of each component, by name ("session", "replication", "recorder", "sink:events"). Safe for use
// by all goroutines. The zero value stands for a process that is starting and is not ready.
type Health struct {
	mu         sync.Mutex
	role       Role
	components map[string]Component
	changed    chan struct{} // nil if nobody waits for a change
}

// Set sets the state of a component. It sets Since itself, whatever now has there.
func (h *Health) Set(name string, now Component) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.replace(name, now)
}

// SetOnly sets the state of a component, and forgets all other components, because the parts of the process that they were about
// have ended.
func (h *Health) SetOnly(name string, now Component) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.components, func(other string, _ Component) bool { return other != name })
	h.replace(name, now)
}

// replace sets a component, and wakes those who wait for a change. The caller holds mu.
func (h *Health) replace(name string, now Component) {
	was, known := h.components[name]
	now.Since = was.Since
	if !known || was.Status != now.Status {
		now.Since = time.Now().UTC()
	}
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
	if h.components == nil {
		h.components = make(map[string]Component)
	}
	h.components[name] = now
}

// Changed returns a channel that is closed when a component is set next.
func (h *Health) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.changed
}

// SetRole sets whether this process reads the slot or stands by.
func (h *Health) SetRole(role Role) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.role = role
}

// Report is a copy of the state of all components.
type Report struct {
	// Status is the worst status of a component. It is LevelFailed while there are no components, because then the process is
	// still starting.
	Status Level `json:"status"`
	// Ready is true unless Status is LevelFailed: this process does its job, streaming or standing by.
	Ready      bool                 `json:"ready"`
	Role       Role                 `json:"role,omitempty"`
	Components map[string]Component `json:"components"`
}

// Report returns the present state.
func (h *Health) Report() Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := Report{Role: h.role, Components: make(map[string]Component, len(h.components))}
	maps.Copy(r.Components, h.components)
	r.judge()
	return r
}

// judge sets Status and Ready by the components.
func (r *Report) judge() {
	r.Status = LevelOK
	if len(r.Components) == 0 {
		r.Status = LevelFailed
	}
	for _, c := range r.Components {
		if c.Status.badness() > r.Status.badness() {
			r.Status = c.Status
		}
	}
	r.Ready = r.Status != LevelFailed
}

// ReportOf returns the present state, where the components of the sinks are made of this snapshot. Health itself has their numbers a moment
// later, because these may change with each event.
func (h *Health) ReportOf(st *Status) Report {
	r := h.Report()
	for i := range st.Sinks {
		sink := &st.Sinks[i]
		was, shown := r.Components["sink:"+sink.Name]
		if !shown || !sink.InSession {
			continue
		}
		now := sink.Component()
		if now.Since = was.Since; now.Status != was.Status {
			now.Since = st.At.UTC()
		}
		r.Components["sink:"+sink.Name] = now
	}
	r.judge()
	return r
}
