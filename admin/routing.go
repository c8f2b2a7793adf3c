package admin

import (
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

// Routing decides where an event goes. service makes it of the configuration.
type Routing struct {
	Sinks  []connector.Sink
	Routes []connector.Route
	// Members by the name of a composite sink with the strategy "any", in the order in which they are tried.
	Members map[string][]connector.Sink
}

// Target is a sink that an event goes to, with the topic and key that the event has there.
type Target struct {
	Sink  string `json:"sink"`
	Type  string `json:"type"`
	Topic string `json:"topic,omitempty"`
	Key   string `json:"key,omitempty"`
	// OneTry says that the event is discarded if the sink does not accept it at once.
	OneTry bool `json:"one_try,omitempty"`
	// Members of a composite with the strategy "any", in the order in which they are tried.
	Members []Target `json:"members,omitempty"`
}

// Targets returns where an event would go. It connects to nothing. An event without targets would be discarded.
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
