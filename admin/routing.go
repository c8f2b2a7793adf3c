package admin

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

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
	// URLs of webhooks, by the name of the sink.
	URLs map[string]config.URL
}

// Target is a sink that an event goes to, with the topic and key that the event has there.
type Target struct {
	Sink  string `json:"sink"`
	Type  string `json:"type"`
	Topic string `json:"topic,omitempty"`
	Key   string `json:"key,omitempty"`
	// URL is where a webhook would send the event. Of its path and its query only those parts are shown that are fields of the event,
	// because the others may be secrets.
	URL string `json:"url,omitempty"`
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
		t := r.target(e, s, d.Topic, d.Key)
		t.OneTry = s.OneTry
		for _, m := range r.Members[s.Name] {
			t.Members = append(t.Members, r.target(e, m, m.Topic.Expand(e), m.Key.Expand(e)))
		}
		targets = append(targets, t)
	}
	return targets
}

// target returns the Target for a sink, with those parts left out that may be secrets.
func (r Routing) target(e *outbox.Event, s connector.Sink, topic, key string) Target {
	t := Target{Sink: s.Name, Type: s.Type, Topic: config.ShownTemplate(topic), Key: config.ShownTemplate(key)}
	if to, ok := r.URLs[s.Name]; ok {
		if config.IsWebURL(topic) {
			to, t.Topic = config.URL(topic), ""
		}
		t.URL = shownURL(to, e)
	}
	return t
}

// shownURL masks the URL as config.URL does, except for those segments of its path that are a field of the event.
func shownURL(to config.URL, e *outbox.Event) string {
	const hidden = "/***" // what config.URL shows of a path
	masked := to.String()
	u, err := url.Parse(string(to))
	if err != nil {
		return masked
	}
	base := u.Scheme + "://" + u.Host
	query, ok := strings.CutPrefix(masked, base+hidden)
	if !ok { // it has no path, or it is masked as a whole
		return masked
	}
	fields := []string{e.ID, e.AggregateType, e.AggregateID, e.EventType, strconv.Itoa(e.EventVersion), e.TenantID, e.CorrelationID, e.CausationID}
	var path strings.Builder
	for segment := range strings.SplitSeq(strings.TrimPrefix(u.EscapedPath(), "/"), "/") {
		if text, err := url.PathUnescape(segment); err != nil || segment == "" || !slices.Contains(fields, text) {
			segment = "***"
		}
		path.WriteString("/" + segment)
	}
	return base + path.String() + query
}
