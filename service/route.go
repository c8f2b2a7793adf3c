package service

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

// RouteOf says where an event would go. Nothing is connected to; no target means that it would be discarded.
func RouteOf(cfg config.Config, e *outbox.Event) ([]Target, error) {
	sinks, err := buildSinks(cfg, Parts{})
	if err != nil {
		return nil, err
	}
	routes, err := buildRoutes(cfg)
	if err != nil {
		return nil, err
	}
	c := connector.Config{Sinks: sinks, Routes: routes}
	processors := map[string]int32{}
	for i, s := range sinks {
		processors[s.Name] = int32(i)
	}
	targets := []Target{}
	for _, t := range router.New(c.RouterRoutes(processors)).Route(e, nil) {
		s := sinks[t.Processor]
		target := Target{Sink: s.Name, Type: s.Type, Topic: config.ShownTemplate(t.Topic), Key: config.ShownTemplate(t.Key), OneTry: s.OneTry}
		if s.Type == config.SinkComposite {
			if target.Members, err = membersOf(cfg, s.Name, e); err != nil {
				return nil, err
			}
		}
		targets = append(targets, target)
	}
	return targets, nil
}

func membersOf(cfg config.Config, name string, e *outbox.Event) (out []Target, err error) {
	byName := map[string]config.Sink{}
	for _, s := range cfg.Sinks {
		byName[s.Name] = s
	}
	for _, member := range byName[name].Composite.Members {
		sc := byName[member]
		t := Target{Sink: sc.Name, Type: sc.Type}
		for _, x := range []struct {
			text  string
			parse func(string) (router.Template, error)
			into  *string
		}{{sc.Topic, router.ParseTopic, &t.Topic}, {sc.Key, router.ParseTemplate, &t.Key}} {
			template, err := x.parse(x.text)
			if err != nil {
				return nil, err
			}
			*x.into = config.ShownTemplate(template.Expand(e))
		}
		out = append(out, t)
	}
	return out, nil
}
