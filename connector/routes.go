package connector

import "github.com/pyairtable-compose/outbox-cdc/router"

// RouterRoutes are the routes as the router takes them. processors are the ids of the sinks, by name.
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
