package service

import (
	"slices"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// topicsOf says whether the messages of a sink have different topics. The sink needs to know that, because a sink with one
// topic is as good as away when that topic is.
func topicsOf(cfg config.Config, sc config.Sink) sinks.Topics {
	isMember := false // of a composite that is one sink: routes lead to the composite, and its members keep their own topics
	names := []string{sc.Name}
	for _, s := range cfg.Sinks {
		if s.Composite == nil || !slices.Contains(s.Composite.Members, sc.Name) {
			continue
		}
		names = append(names, s.Name)
		isMember = isMember || s.Composite.Strategy == config.StrategyAny
	}
	var all []string
	add := func(topic string) {
		if sc.Type == config.SinkWebhook && !config.IsWebURL(topic) {
			topic = "" // the sink's own URL
		}
		if !slices.Contains(all, topic) {
			all = append(all, topic)
		}
	}
	if isMember || len(cfg.Routes) == 0 {
		add(sc.Topic)
	} else {
		for _, r := range cfg.Routes {
			switch {
			case !slices.ContainsFunc(r.Sinks, func(name string) bool { return slices.Contains(names, name) }):
			case r.Topic != "":
				add(r.Topic)
			default:
				add(sc.Topic)
			}
		}
	}
	if len(all) > 1 || slices.ContainsFunc(all, func(topic string) bool { return strings.Contains(topic, "{") }) {
		return sinks.SeveralTopics
	}
	return sinks.OneTopic
}
