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

// Component is one part of the process as /readyz shows it.
type Component struct {
	OK bool `json:"ok"`
	// Detail is one sentence for a person: the state, or the cause with its remedy.
	Detail string `json:"detail,omitempty"`
	// Since is when OK last changed.
	Since time.Time `json:"since"`
}

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
	if !known || was.OK != now.OK {
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
	// Ready is true if every component is ok, and there is at least one.
	Ready      bool                 `json:"ready"`
	Role       Role                 `json:"role,omitempty"`
	Components map[string]Component `json:"components"`
}

// Report returns the present state.
func (h *Health) Report() Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := Report{Ready: len(h.components) > 0, Role: h.role, Components: make(map[string]Component, len(h.components))}
	maps.Copy(r.Components, h.components)
	for _, c := range r.Components {
		r.Ready = r.Ready && c.OK
	}
	return r
}
