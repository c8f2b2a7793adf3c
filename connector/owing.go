package connector

import (
	"slices"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

// Standing says what to think of an event of which the ledger does not say what has become of it at a sink.
type Standing int

// The standings.
const (
	NotOwed Standing = iota // by the routes, because of the sink's age, or because a job has left it out
	Expired                 // it is from before the part of the log that was dropped: nobody can know
	Pending                 // it may still come, on the stream or by a job
	Missing                 // it will not come
)

// Owing knows which events are owed to which sinks. For one goroutine at a time.
type Owing struct {
	sinks   map[int32]ledger.VerifySink // by processor
	filters []string                    // of all sinks
	until   time.Time                   // when the last of them was chosen
	router  *router.Router
	targets []router.Target // reused for each event
}

// NewOwing makes an Owing of the configuration and of what the ledger knows of its sinks.
func NewOwing(cfg *Config, sinks []ledger.VerifySink) *Owing {
	o := &Owing{sinks: map[int32]ledger.VerifySink{}}
	ids := map[string]int32{}
	for _, s := range sinks {
		ids[s.Name] = s.Processor
		if !slices.ContainsFunc(cfg.Sinks, func(c Sink) bool { return c.Name == s.Name }) {
			continue // nobody delivers to it any more
		}
		o.sinks[s.Processor] = s
		if s.Filter == "" {
			continue
		}
		if !slices.Contains(o.filters, s.Filter) {
			o.filters = append(o.filters, s.Filter)
		}
		if s.Filed.After(o.until) {
			o.until = *s.Filed
		}
	}
	o.router = router.New(cfg.RouterRoutes(ids))
	return o
}

// Sinks returns the sinks, in the order of their ids.
func (o *Owing) Sinks() []ledger.VerifySink {
	var all []ledger.VerifySink
	for _, s := range o.sinks {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b ledger.VerifySink) int { return int(a.Processor - b.Processor) })
	return all
}

// Query returns a query about all sinks.
func (o *Owing) Query(slot string) ledger.VerifyQuery {
	q := ledger.VerifyQuery{Slot: slot, Processors: []int32{}, Filters: o.filters, FilteredUntil: o.until}
	for _, s := range o.Sinks() {
		q.Processors = append(q.Processors, s.Processor)
	}
	return q
}

// Judge judges an event that a query has found. p is the point at which it was found.
func (o *Owing) Judge(p *ledger.VerifyPoint, u *ledger.Unknown) Standing {
	s := o.sinks[u.Processor]
	switch at := u.CreatedAt; {
	case at != nil && s.Since != nil && at.Before(*s.Since), o.leftOut(&s, u), !o.isRouted(u):
		return NotOwed
	case at != nil && at.Before(p.LogDroppedUntil):
		return Expired
	case !u.Seen || !p.Decides || s.Unfinished:
		return Pending
	}
	return Missing
}

// leftOut reports whether an "init --backlog" has left the event out.
func (o *Owing) leftOut(s *ledger.VerifySink, u *ledger.Unknown) bool {
	return s.Filter != "" && !u.Matches[slices.Index(o.filters, s.Filter)] && (u.CreatedAt == nil || u.CreatedAt.Before(*s.Filed))
}

// isRouted reports whether a route of today leads to the sink.
func (o *Owing) isRouted(u *ledger.Unknown) bool {
	e := outbox.Event{ID: u.ID, AggregateType: u.AggregateType, AggregateID: u.AggregateID, EventType: u.EventType, TenantID: u.TenantID}
	o.targets = o.router.Route(&e, o.targets[:0])
	return slices.ContainsFunc(o.targets, func(t router.Target) bool { return t.Processor == u.Processor })
}
