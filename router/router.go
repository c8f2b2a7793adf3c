// Package router decides which sinks an event goes to, with which topic and key, and which lane of a sink keeps the order of
// the event's aggregate. It is pure: no clock, no I/O, no goroutines.
package router

import (
	"encoding/binary"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Sink is what the router has to know of a sink.
type Sink struct {
	Processor int32
	Topic     Template
	Key       Template
}

// Target is one delivery of an event: the sink that gets it, and the topic and key that it has there.
type Target struct {
	Processor int32
	Topic     string
	Key       string
}

// Router finds the first route that matches an event. Only one goroutine may use it.
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

// New makes a router. It tries the routes in their order.
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

// Route appends the targets of e to into, in the order of the route's sinks, and returns the result. An event that no route
// matches has no targets.
func (r *Router) Route(e *outbox.Event, into []Target) []Target {
	for i := range r.routes {
		if !r.routes[i].match.fits(e) {
			continue
		}
		sinks := r.routes[i].sinks
		for j := range sinks {
			s := &sinks[j]
			into = append(into, Target{Processor: s.processor, Topic: s.topic.of(e), Key: s.key.of(e)})
		}
		break
	}
	return into
}

const (
	maxExpansions    = 1024
	maxExpansionSize = 256
)

// expansion is a template that remembers its results. It does so only if the results depend on nothing but the
// aggregate type or nothing but the event type: there are few different ones, and each comes again and again.
type expansion struct {
	template Template
	field    field
	known    map[string]string // results by the field's value; nil if this template remembers none
}

func newExpansion(t Template) expansion {
	x := expansion{template: t}
	f, ok := t.onlyField()
	if ok && (f == aggregateType || f == eventType) {
		x.field, x.known = f, make(map[string]string)
	}
	return x
}

func (x *expansion) of(e *outbox.Event) string {
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
		x.known[strings.Clone(value)] = s // cloned, because the event's own string keeps all of its neighbours in memory
	}
	return s
}

// AggregateHash returns the hash that decides the lane of an aggregate. It is the xxhash64 of type and id, each
// preceded by its length (4 bytes, big endian), so that ("ab", "c") and ("a", "bc") differ. Hashes are stored in the
// ledger, so the function must never change.
func AggregateHash(aggregateType, aggregateID string) int64 {
	var d xxhash.Digest
	d.Reset()
	var size [4]byte
	for _, s := range [...]string{aggregateType, aggregateID} {
		binary.BigEndian.PutUint32(size[:], uint32(len(s))) // PostgreSQL's texts are shorter than 1 GB
		// Writing into a hash never fails.
		_, _ = d.Write(size[:])
		_, _ = d.WriteString(s)
	}
	return int64(d.Sum64())
}

// Lane returns abs(hash % lanes), which is what the SQL statements compute as well. It takes the remainder first: the absolute
// value of the smallest hash would overflow, that of a remainder does not.
func Lane(hash int64, lanes int) int {
	return int(max(hash%int64(lanes), -(hash % int64(lanes))))
}
