package connector

import "github.com/pyairtable-compose/outbox-cdc/router"

// RouterRoutes returns the routes in the form that the router takes. processors has the processor id of each sink by the sink's
// name. A configuration without routes gives one route that sends every event to every sink.
func (c *Config) RouterRoutes(processors map[string]int32) []router.Route {
	byName := map[string]router.Sink{}
	var all router.Route
	for _, s := range c.Sinks {
		byName[s.Name] = router.Sink{Processor: processors[s.Name], Topic: s.Topic, Key: s.Key}
		all.Sinks = append(all.Sinks, byName[s.Name])
	}
	if len(c.Routes) == 0 {
		return []router.Route{all}
	}
	routes := make([]router.Route, len(c.Routes))
	for i, r := range c.Routes {
		routes[i].Match = r.Match
		for _, name := range r.Sinks {
			s := byName[name]
			if r.Topic != nil {
				s.Topic = *r.Topic
			}
			if r.Key != nil {
				s.Key = *r.Key
			}
			routes[i].Sinks = append(routes[i].Sinks, s)
		}
	}
	return routes
}
