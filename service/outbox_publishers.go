package service

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/eventbus"
)

// assembly is a configuration while it is made out of an OutboxServiceConfig.
type assembly struct {
	*config.Program
	loadedConfig
	environ []string
}

func (a *assembly) wrong(path, format string, args ...any) {
	a.Wrong(config.Mistake{Path: path, Text: fmt.Sprintf(format, args...)})
}

var (
	publisherTypes = []string{config.SinkKafka, config.SinkRedis, config.SinkWebhook, config.SinkEventBus, config.SinkComposite, config.SinkStdout}
	memberTypes    = slices.DeleteFunc(slices.Clone(publisherTypes), func(t string) bool { return t == config.SinkComposite })
	strategies     = []string{config.StrategyAll, config.StrategyAny, config.StrategyPrimary}
)

// publisherConfig is the name of that field.
const publisherConfig = "PublisherConfig"

// Texts of mistakes: a value is none of publisherTypes or memberTypes, or none of strategies.
const (
	noType     = "%q is no type of sink; write one of %s"
	noStrategy = "is unknown; write %s"
)

// platformKeys maps, for a type of sink, the platform's names of keys to ours.
var platformKeys = map[string]map[string]string{config.SinkRedis: {"redis_url": "url", "stream": "topic"}}

// addSink adds the sink that settings describe, and returns its name. at is the path of settings.
func (a *assembly) addSink(typ string, settings map[string]any, at string) (name string) {
	sink := map[string]any{"name": typ, "type": typ}
	names := config.Names{"name": at + ".name", "type": at + ".type"} // what is written in place of our keys
	if at == publisherConfig {
		names["type"] = "PublisherType"
	}
	for platform, ours := range platformKeys[typ] {
		names[ours] = at + "." + platform
	}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		ours := cmp.Or(platformKeys[typ][key], key)
		if _, twice := sink[ours]; twice && ours != "name" {
			a.wrong(at+"."+key, "is said already")
			continue
		}
		sink[ours], names[ours] = settings[key], at+"."+key
	}
	delete(sink, "type")
	name, isText := textOf(sink["name"])
	if !isText {
		a.wrong(at+".name", "must be a string")
		name = typ
	}
	sink["name"] = name
	if typ == config.SinkEventBus && sink["url"] == nil && !slices.ContainsFunc(a.environ, func(e string) bool {
		return strings.HasPrefix(e, "OUTBOX_EVENT_BUS_URL=") && !strings.HasSuffix(e, "=")
	}) {
		typ = config.SinkInProcess
		a.bus = eventbus.NewBus(0)
		a.openers[name] = func() (sinks.Sink, error) { return a.bus, nil }
	}
	path := a.AddSink(typ, sink, at)
	for key, name := range names {
		a.Names[path+"."+key] = name
	}
	return name
}

// goSink is a sink that is made in Go. The program calls the sink at, and its name nameAt.
type goSink struct {
	name, at, nameAt string
	open             opener
}

func (a *assembly) addGoSink(s goSink) {
	path := a.AddSink(config.SinkInProcess, map[string]any{"name": s.name}, s.at)
	a.Names[path+".name"] = s.nameAt
	if a.openers[s.name] == nil { // if the name is taken, package config reports it
		a.openers[s.name] = s.open
	}
}

// addComposite adds the members that settings describe, and the composite if it has more than one member.
func (a *assembly) addComposite(settings map[string]any) {
	const at = publisherConfig
	strategy, isText := textOf(settings["strategy"])
	switch {
	case settings["strategy"] == nil:
		strategy = config.StrategyAll
	case !isText || !slices.Contains(strategies, strategy):
		a.wrong(at+".strategy", noStrategy, strings.Join(strategies, ", "))
		strategy = config.StrategyAll
	}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		if key != "strategy" && key != "members" && !slices.Contains(memberTypes, key) {
			a.wrong(at+"."+key, "unknown key; known here: strategy, members, %s", strings.Join(memberTypes, ", "))
		}
	}
	var described []string
	for _, typ := range memberTypes {
		value, ok := settings[typ]
		if !ok {
			continue
		}
		member, ok := value.(map[string]any)
		if !ok && value != nil {
			a.wrong(at+"."+typ, "must be a map[string]any")
		} else {
			described = append(described, a.addSink(typ, member, at+"."+typ))
		}
	}
	members := described
	if value, ordered := settings["members"]; ordered {
		var ok bool
		if members, ok = stringsOf(value); !ok {
			a.wrong(at+".members", "must be a []string")
			return
		}
		for _, name := range described {
			if !slices.Contains(members, name) {
				a.wrong(at+".members", "leaves out %q, which is described beside it", name)
			}
		}
	} else if len(members) > 1 && strategy != config.StrategyAll { // the map does not tell their order
		a.wrong(at+".members", "missing; write them in their order, such as []string{%q, %q}", members[0], members[1])
		return
	}
	switch {
	case len(members) == 0:
		a.wrong(at, "describes no member; write %s with its keys", config.SinkKafka)
	case len(members) == 1 && slices.Equal(members, described): // the only member takes the place of the composite
	default:
		a.AddSink(config.SinkComposite, map[string]any{"strategy": strategy, "members": members}, at)
	}
}

// textOf returns the text of a string, also of a type that is defined as a string.
func textOf(v any) (text string, ok bool) {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.String {
		return "", false
	}
	return r.String(), true
}

// stringsOf returns the texts of a []string or a []any.
func stringsOf(v any) (texts []string, ok bool) {
	switch v := v.(type) {
	case []string:
		return v, true
	case []any:
		for _, e := range v {
			s, ok := textOf(e)
			if !ok {
				return nil, false
			}
			texts = append(texts, s)
		}
		return texts, true
	}
	return nil, false
}
