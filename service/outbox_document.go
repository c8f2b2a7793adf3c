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

// document is an OutboxServiceConfig on its way to become the daemon's file.
type document struct {
	embedded
	environ  []string
	sinks    []any    // of the file
	places   []string // where in OutboxServiceConfig each of them stands
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

// What is said of a value that is none of those.
const (
	noType     = "%q is no type of sink; write one of %s"
	noStrategy = "is unknown; write %s"
)

// platformKeys are the platform's names for keys of ours.
var platformKeys = map[string]map[string]string{config.SinkRedis: {"redis_url": "url", "stream": "topic"}}

// sink adds the sink of a PublisherConfig, and gives its name.
func (d *document) sink(typ string, settings map[string]any, at string) (name string) {
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
		d.opens[name] = func() (sinks.Sink, error) { return d.bus, nil }
	}
	return name
}

// own adds a sink that is made in Go.
func (d *document) own(name, at string, open func() (sinks.Sink, error)) {
	d.add(map[string]any{"name": name, "type": config.SinkInProcess}, at)
	if d.opens[name] == nil { // another of this name is a mistake, which the configuration tells
		d.opens[name] = open
	}
}

func (d *document) add(sink map[string]any, at string) {
	d.sinks, d.places = append(d.sinks, sink), append(d.places, at)
}

// composite adds the members that settings describe, and the composite where it has more than one.
func (d *document) composite(settings map[string]any) {
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
			described = append(described, d.sink(typ, member, at+"."+typ))
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
	} else if len(members) > 1 && strategy != config.StrategyAll { // a map has no order
		d.wrong(at+".members", "missing; write them in their order, such as []string{%q, %q}", members[0], members[1])
		return
	}
	switch {
	case len(members) == 0:
		d.wrong(at, "describes no member; write %s with its keys", config.SinkKafka)
	case len(members) == 1 && slices.Equal(members, described): // a composite of one is that one
	default:
		d.add(map[string]any{"name": config.SinkComposite, "type": config.SinkComposite, "strategy": strategy, "members": members}, at)
	}
}

// textOf gives the text of a string, also of one whose type has a name.
func textOf(v any) (text string, ok bool) {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.String {
		return "", false
	}
	return r.String(), true
}

// stringsOf gives the texts of a []string or a []any.
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

// plain copies what YAML can hold; bytes are a text. A $ is doubled, as the file's would refer to a variable.
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

// report takes over what config has found, by the names that it has here.
func (d *document) report(err error) {
	if err == nil {
		return
	}
	found, ok := errors.AsType[*config.Error](err)
	if !ok {
		d.mistakes = append(d.mistakes, config.Mistake{Text: err.Error()})
		return
	}
	ours := d.mistakes // what is wrong with them is not told twice
	for _, m := range found.Mistakes {
		text := d.fieldsIn(m.Text)
		if m.Variable != "" && m.Variable != "DATABASE_URL" {
			d.mistakes = append(d.mistakes, config.Mistake{Variable: m.Variable, Path: m.Path, Text: text})
			continue
		}
		path := d.field(m.Path)
		if !slices.ContainsFunc(ours, func(other config.Mistake) bool { return other.Path == path }) {
			d.mistakes = append(d.mistakes, config.Mistake{Path: path, Text: d.otherWays(text)})
		}
	}
}

// otherWays leaves out variables that would have no effect.
func (d *document) otherWays(text string) string {
	if slices.ContainsFunc(d.environ, func(e string) bool { return strings.HasPrefix(e, "OUTBOX_") }) {
		return text
	}
	return outboxVariables.ReplaceAllString(text, "")
}

var (
	outboxVariables = regexp.MustCompile(`, or set OUTBOX_[A-Z_]+| \(OUTBOX_[A-Z_]+\)`)
	sinkPath        = regexp.MustCompile(`\bsinks\[(\d+)\](?:\.([a-z_]+))?`)
)

// fieldOf are the fields of OutboxServiceConfig for keys of the file.
var fieldOf = map[string]string{
	"name": "ServiceName", "source.dsn": "DatabaseURL", "source.slot": "Slot", "source.publication": "Publication", "source.ledger_schema": "LedgerSchema",
	"delivery.batch_size": "BatchSize", "delivery.max_retries": "MaxRetries", "delivery.lanes": "WorkerCount",
	"breaker.max_failures": "CircuitBreakerMaxFailures", "breaker.reset_timeout": "CircuitBreakerResetTimeout",
}

// field is the name that a path has in OutboxServiceConfig.
func (d *document) field(path string) string { return cmp.Or(fieldOf[path], d.fieldsIn(path)) }

// fieldsIn puts such names in the place of sinks in a text.
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
