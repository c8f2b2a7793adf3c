package admin

import (
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

// Target is a sink that an event goes to, and how it is addressed there.
type Target struct {
	Sink  string `json:"sink"`
	Type  string `json:"type"`
	Topic string `json:"topic,omitempty"`
	Key   string `json:"key,omitempty"`
	// OneTry: what is not accepted at once is discarded.
	OneTry bool `json:"one_try,omitempty"`
	// Members of a composite of which any may accept, in the order in which they are tried.
	Members []Target `json:"members,omitempty"`
}

// Routing is what decides where an event goes.
type Routing struct {
	Sinks  []connector.Sink
	Routes []connector.Route
	// Members of the sinks that are composites of which any member may accept, by the composite's name.
	Members map[string][]connector.Sink
}

// Targets says where an event would go. Nothing is connected to; no target means that it would be discarded.
func (r Routing) Targets(e *outbox.Event) []Target {
	c := connector.Config{Sinks: r.Sinks, Routes: r.Routes}
	processors := map[string]int32{}
	for i, s := range r.Sinks {
		processors[s.Name] = int32(i)
	}
	targets := []Target{}
	for _, d := range router.New(c.RouterRoutes(processors)).Route(e, nil) {
		s := r.Sinks[d.Processor]
		t := Target{Sink: s.Name, Type: s.Type, Topic: config.ShownTemplate(d.Topic), Key: config.ShownTemplate(d.Key), OneTry: s.OneTry}
		for _, m := range r.Members[s.Name] {
			t.Members = append(t.Members, Target{
				Sink: m.Name, Type: m.Type, Topic: config.ShownTemplate(m.Topic.Expand(e)), Key: config.ShownTemplate(m.Key.Expand(e)),
			})
		}
		targets = append(targets, t)
	}
	return targets
}
