// Package router decides which sinks an event goes to, and under which topic and key, and which lane owns the order of
// its aggregate. It is pure: no clock, no I/O, no goroutines.
package router

import (
	"encoding/binary"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Sink is a destination as the router knows it.
type Sink struct {
	Processor int32
	Topic     Template
	Key       Template
}

// Target is one delivery of an event: to whom, and how it is addressed there.
type Target struct {
	Processor int32
	Topic     string
	Key       string
}

// Router sends an event along the first route that it fits. It is for one goroutine.
type Router struct {
	routes []compiledRoute
}

type compiledRoute struct {
	match Match
	sinks []compiledSink
}

type compiledSink struct {
	processor  int32
	topic, key expansion
}

// New makes a router. The targets of a route come in the order of its sinks.
func New(routes []Route) *Router {
	r := &Router{routes: make([]compiledRoute, len(routes))}
	for i, from := range routes {
		to := &r.routes[i]
		to.match = from.Match
		for _, s := range from.Sinks {
			to.sinks = append(to.sinks, compiledSink{processor: s.Processor, topic: newExpansion(s.Topic), key: newExpansion(s.Key)})
		}
	}
	return r
}

// Route appends the targets of e to into, which is returned. What fits no route has none.
func (r *Router) Route(e *outbox.Event, into []Target) []Target {
	for i := range r.routes {
		if !r.routes[i].match.fits(e) {
			continue
		}
		sinks := r.routes[i].sinks
		for j := range sinks {
			s := &sinks[j]
			into = append(into, Target{Processor: s.processor, Topic: s.topic.expand(e), Key: s.key.expand(e)})
		}
		break
	}
	return into
}

const (
	maxExpansions    = 1024
	maxExpansionSize = 256
)

// expansion is a template with the texts that it gave before. They are kept only where they depend on nothing but the
// aggregate type or the event type: there are few of those, and each comes again and again.
type expansion struct {
	template Template
	field    field
	known    map[string]string // by the field's value; nil where nothing is kept
}

func newExpansion(t Template) expansion {
	x := expansion{template: t}
	f, ok := t.onlyField()
	if ok && (f == aggregateType || f == eventType) {
		x.field, x.known = f, make(map[string]string)
	}
	return x
}

func (x *expansion) expand(e *outbox.Event) string {
	if x.known == nil {
		return x.template.Expand(e)
	}
	value := x.field.of(e)
	if s, ok := x.known[value]; ok {
		return s
	}
	s := x.template.Expand(e)
	if len(s) <= maxExpansionSize {
		if len(x.known) == maxExpansions {
			clear(x.known)
		}
		x.known[strings.Clone(value)] = s // a clone, as the event's own text keeps its neighbours in memory
	}
	return s
}

// AggregateHash is what lanes are chosen by: xxhash64 of type and id, each behind its length (4 bytes, big endian), so
// that ("ab", "c") and ("a", "bc") differ. It is stored in the ledger and must never change.
func AggregateHash(aggregateType, aggregateID string) int64 {
	var d xxhash.Digest
	d.Reset()
	var size [4]byte
	for _, s := range [...]string{aggregateType, aggregateID} {
		binary.BigEndian.PutUint32(size[:], uint32(len(s))) // PostgreSQL's texts are shorter than 1 GB
		// A hash takes everything.
		_, _ = d.Write(size[:])
		_, _ = d.WriteString(s)
	}
	return int64(d.Sum64())
}

// Lane is abs(hash % lanes), as SQL computes it: the remainder has the sign of hash, so that not even the smallest
// hash, which has no positive counterpart, overflows.
func Lane(hash int64, lanes int) int {
	return int(max(hash%int64(lanes), -(hash % int64(lanes))))
}
