package service

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/eventbus"
)

// document collects what becomes the daemon's file while an OutboxServiceConfig is translated, and the mistakes.
type document struct {
	loadedConfig
	environ  []string
	sinks    []any    // the sinks of the file
	places   []string // for each of these sinks, its path in OutboxServiceConfig
	mistakes []config.Mistake
}

func (d *document) wrong(path, format string, args ...any) {
	d.mistakes = append(d.mistakes, config.Mistake{Path: path, Text: fmt.Sprintf(format, args...)})
}

var (
	publisherTypes = []string{config.SinkKafka, config.SinkRedis, config.SinkWebhook, config.SinkEventBus, config.SinkComposite, config.SinkStdout}
	memberTypes    = slices.DeleteFunc(slices.Clone(publisherTypes), func(t string) bool { return t == config.SinkComposite })
	strategies     = []string{config.StrategyAll, config.StrategyAny, config.StrategyPrimary}
)

// Texts of mistakes: a value is none of publisherTypes or memberTypes, or none of strategies.
const (
	noType     = "%q is no type of sink; write one of %s"
	noStrategy = "is unknown; write %s"
)

// platformKeys maps, for a type of sink, the platform's names of keys to ours.
var platformKeys = map[string]map[string]string{config.SinkRedis: {"redis_url": "url", "stream": "topic"}}

// addSink adds the sink that settings describe, and returns its name. at is the path of settings.
func (d *document) addSink(typ string, settings map[string]any, at string) (name string) {
	sink := map[string]any{"name": typ, "type": typ}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		ours := cmp.Or(platformKeys[typ][key], key)
		if _, twice := sink[ours]; twice && ours != "name" {
			d.wrong(at+"."+key, "is said already")
			continue
		}
		sink[ours] = settings[key]
	}
	name, isText := textOf(sink["name"])
	if !isText {
		d.wrong(at+".name", "must be a string")
		name = typ
	}
	sink["name"] = name
	if typ == config.SinkEventBus && sink["url"] == nil && !slices.ContainsFunc(d.environ, func(e string) bool {
		return strings.HasPrefix(e, "OUTBOX_EVENT_BUS_URL=") && !strings.HasSuffix(e, "=")
	}) {
		sink["type"] = config.SinkInProcess
		d.bus = eventbus.NewBus(0)
	}
	d.add(sink, at)
	if sink["type"] == config.SinkInProcess {
		d.openers[name] = func() (sinks.Sink, error) { return d.bus, nil }
	}
	return name
}

// addGoSink adds a sink that is made in Go.
func (d *document) addGoSink(name, at string, open func() (sinks.Sink, error)) {
	d.add(map[string]any{"name": name, "type": config.SinkInProcess}, at)
	if d.openers[name] == nil { // if the name is taken, package config reports it
		d.openers[name] = open
	}
}

func (d *document) add(sink map[string]any, at string) {
	d.sinks, d.places = append(d.sinks, sink), append(d.places, at)
}

// addComposite adds the members that settings describe, and the composite if it has more than one member.
func (d *document) addComposite(settings map[string]any) {
	const at = "PublisherConfig"
	strategy, isText := textOf(settings["strategy"])
	switch {
	case settings["strategy"] == nil:
		strategy = config.StrategyAll
	case !isText || !slices.Contains(strategies, strategy):
		d.wrong(at+".strategy", noStrategy, strings.Join(strategies, ", "))
		strategy = config.StrategyAll
	}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		if key != "strategy" && key != "members" && !slices.Contains(memberTypes, key) {
			d.wrong(at+"."+key, "unknown key; known here: strategy, members, %s", strings.Join(memberTypes, ", "))
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
			d.wrong(at+"."+typ, "must be a map[string]any")
		} else {
			described = append(described, d.addSink(typ, member, at+"."+typ))
		}
	}
	members := described
	if value, ordered := settings["members"]; ordered {
		var ok bool
		if members, ok = stringsOf(value); !ok {
			d.wrong(at+".members", "must be a []string")
			return
		}
		for _, name := range described {
			if !slices.Contains(members, name) {
				d.wrong(at+".members", "leaves out %q, which is described beside it", name)
			}
		}
	} else if len(members) > 1 && strategy != config.StrategyAll { // the map does not tell their order
		d.wrong(at+".members", "missing; write them in their order, such as []string{%q, %q}", members[0], members[1])
		return
	}
	switch {
	case len(members) == 0:
		d.wrong(at, "describes no member; write %s with its keys", config.SinkKafka)
	case len(members) == 1 && slices.Equal(members, described): // the only member takes the place of the composite
	default:
		d.add(map[string]any{"name": config.SinkComposite, "type": config.SinkComposite, "strategy": strategy, "members": members}, at)
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

// plain copies a value that YAML can hold. Bytes become a text. A $ is doubled, because in the file a $ refers to a
// variable. What YAML cannot hold is a mistake.
func (d *document) plain(path string, v any) any {
	if duration, ok := v.(time.Duration); ok {
		return duration.String()
	}
	r := reflect.ValueOf(v)
	if r.Kind() == reflect.Slice && r.Type().Elem().Kind() == reflect.Uint8 {
		r = reflect.ValueOf(string(r.Bytes()))
	}
	switch r.Kind() {
	case reflect.Invalid:
		return nil
	case reflect.String:
		if !utf8.ValidString(r.String()) {
			d.wrong(d.field(path), "is not UTF-8")
			return nil
		}
		return strings.ReplaceAll(r.String(), "$", "$$")
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16,
		reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return v
	case reflect.Slice:
		list := make([]any, r.Len())
		for i := range list {
			list[i] = d.plain(fmt.Sprintf("%s[%d]", path, i), r.Index(i).Interface())
		}
		return list
	case reflect.Map:
		if r.Type().Key().Kind() != reflect.String {
			break
		}
		m := map[string]any{}
		for _, key := range slices.SortedFunc(r.Seq(), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) }) {
			m[key.String()] = d.plain(strings.TrimPrefix(path+"."+key.String(), "."), r.MapIndex(key).Interface())
		}
		return m
	}
	d.wrong(d.field(path), "is a %T; write a string, a number, a bool, a list or a map of such", v)
	return nil
}

// report adds the mistakes that package config has found, with paths and keys of the file replaced by fields of
// OutboxServiceConfig.
func (d *document) report(err error) {
	if err == nil {
		return
	}
	found, ok := errors.AsType[*config.Error](err)
	if !ok {
		d.mistakes = append(d.mistakes, config.Mistake{Text: err.Error()})
		return
	}
	ours := d.mistakes // a path that has one of these is not reported again
	for _, m := range found.Mistakes {
		text := d.fieldsIn(m.Text)
		if m.Variable != "" && m.Variable != "DATABASE_URL" {
			d.mistakes = append(d.mistakes, config.Mistake{Variable: m.Variable, Path: m.Path, Text: text})
			continue
		}
		path := d.field(m.Path)
		if !slices.ContainsFunc(ours, func(other config.Mistake) bool { return other.Path == path }) {
			d.mistakes = append(d.mistakes, config.Mistake{Path: path, Text: d.withoutVariables(text)})
		}
	}
}

// withoutVariables removes the advice to set a variable from a text, if no OUTBOX_ variables are read.
func (d *document) withoutVariables(text string) string {
	if slices.ContainsFunc(d.environ, func(e string) bool { return strings.HasPrefix(e, "OUTBOX_") }) {
		return text
	}
	return outboxVariables.ReplaceAllString(text, "")
}

var (
	outboxVariables = regexp.MustCompile(`, or set OUTBOX_[A-Z_]+| \(OUTBOX_[A-Z_]+\)`)
	sinkPath        = regexp.MustCompile(`\bsinks\[(\d+)\](?:\.([a-z_]+))?`)
)

// fieldOf maps keys of the file to fields of OutboxServiceConfig.
var fieldOf = map[string]string{
	"name": "ServiceName", "source.dsn": "DatabaseURL", "source.slot": "Slot", "source.publication": "Publication", "source.ledger_schema": "LedgerSchema",
	"delivery.batch_size": "BatchSize", "delivery.max_retries": "MaxRetries", "delivery.lanes": "WorkerCount", "retention.outbox": "RetentionDays",
	"breaker.max_failures": "CircuitBreakerMaxFailures", "breaker.reset_timeout": "CircuitBreakerResetTimeout",
	"sla.within": "SLAWithin", "sla.objective": "SLAObjective",
}

// field returns what a path of the file is called in OutboxServiceConfig.
func (d *document) field(path string) string { return cmp.Or(fieldOf[path], d.fieldsIn(path)) }

// fieldsIn replaces paths of sinks in a text, such as sinks[0].url, by their paths in OutboxServiceConfig.
func (d *document) fieldsIn(text string) string {
	return sinkPath.ReplaceAllStringFunc(text, func(path string) string {
		m := sinkPath.FindStringSubmatch(path)
		i, err := strconv.Atoi(m[1])
		if err != nil || i >= len(d.places) {
			return path
		}
		at, key := d.places[i], m[2]
		switch {
		case key == "":
			return at
		case key == "type" && at == "PublisherConfig":
			return "PublisherType"
		case key == "name" && strings.HasPrefix(at, "Publishers"):
			return at + ".GetName()"
		case key == "name" && strings.HasPrefix(at, "Sinks"):
			return at
		}
		sink, _ := d.sinks[i].(map[string]any)
		typ, _ := sink["type"].(string)
		for platform, ours := range platformKeys[typ] {
			if ours == key {
				key = platform
			}
		}
		return at + "." + key
	})
}
