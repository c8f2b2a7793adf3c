package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// environmentKeys are the variables that beat the file, with the keys of the file that they set. The variables of sinks are not
// among them.
var environmentKeys = []struct{ name, path string }{
	{"OUTBOX_SLOT", "source.slot"},
	{"OUTBOX_PUBLICATION", "source.publication"},
	{"OUTBOX_LEDGER_SCHEMA", "source.ledger_schema"},
	{"OUTBOX_BATCH_SIZE", "delivery.batch_size"},
	{"OUTBOX_WORKER_COUNT", "delivery.lanes"},
	{"OUTBOX_MAX_RETRIES", "delivery.max_retries"},
	{"OUTBOX_RETENTION_OUTBOX", "retention.outbox"},
	{"OUTBOX_RETENTION_LEDGER", "retention.ledger"},
	{"OUTBOX_SLA_WITHIN", "sla.within"},
	{"OUTBOX_SLA_OBJECTIVE", "sla.objective"},
	{"OUTBOX_ENABLE_METRICS", "metrics.enabled"},
	{"OUTBOX_LISTEN", "http.listen"},
	{"OUTBOX_HTTP_HOSTS", "http.hosts"},
}

// sinkVariable is a variable that sets a key of the one sink of a type.
type sinkVariable struct{ name, typ, key string }

var sinkVariables = []sinkVariable{
	{"OUTBOX_KAFKA_BROKERS", SinkKafka, "brokers"},
	{"OUTBOX_KAFKA_TOPIC", SinkKafka, "topic"},
	{"OUTBOX_REDIS_URL", SinkRedis, "url"},
	{"OUTBOX_REDIS_STREAM", SinkRedis, "topic"},
	{"OUTBOX_WEBHOOK_URL", SinkWebhook, "url"},
	{"OUTBOX_WEBHOOK_SECRET", SinkWebhook, "secret"},
	{"OUTBOX_WEBHOOK_ALLOW_HOSTS", SinkWebhook, "allow_hosts"},
	{"OUTBOX_EVENT_BUS_URL", SinkEventBus, "url"},
	{"OUTBOX_COMPOSITE_STRATEGY", SinkComposite, "strategy"},
	{"OUTBOX_COMPOSITE_MEMBERS", SinkComposite, "members"},
}

const (
	publisherType = "OUTBOX_PUBLISHER_TYPE"
	databaseURL   = "DATABASE_URL"
	serviceName   = "SERVICE_NAME"
	configFile    = "OUTBOX_CONFIG"
	// listenOff is what http.listen says if there shall be no HTTP server. An empty text says so as well, but an empty variable counts
	// as none.
	listenOff = "off"
)

var (
	// Kubernetes sets such variables for every service. Those of a service named outbox are no mistake.
	serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_.*)?)$`)
	// otherCommands read these themselves.
	otherCommands = []string{"OUTBOX_ADMIN_URL", configFile}
)

// FileOf returns the path of the configuration file that the environment names by OUTBOX_CONFIG, or "".
func FileOf(environ []string) string { return environment(environ)[configFile] }

func environment(environ []string) map[string]string {
	env := make(map[string]string, len(environ))
	for _, e := range environ {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			continue
		}
		env[name] = trim(value)
		if name == databaseURL || strings.HasPrefix(name, "OUTBOX_") {
			env[name] = Clean(value)
		}
	}
	return env
}

// applyEnvironment sets what the environment has. An empty variable counts as none.
func (l *loader) applyEnvironment() {
	known := slices.Clone(otherCommands)
	for _, v := range environmentKeys {
		known = append(known, v.name)
		l.setVariable(v.name, v.path, l.field(v.path))
	}
	known = append(known, retentionDays, publisherType)
	l.applyRetentionDays()
	if typ := l.env[publisherType]; typ != "" {
		l.applyPublisherType(typ)
	}
	for _, v := range sinkVariables {
		known = append(known, v.name)
		if l.env[v.name] != "" && !l.used[v.name] { // a file that refers to it says where it belongs
			l.applySinkVariable(v.name, v.typ, v.key)
		}
	}
	known = append(known, "OUTBOX_POLL_INTERVAL")
	if l.env["OUTBOX_POLL_INTERVAL"] != "" {
		l.warn("OUTBOX_POLL_INTERVAL has no effect: events are streamed from the write-ahead log, nothing is polled")
	}
	for _, name := range sortedKeys(l.env) {
		switch {
		case l.env[name] == "" || !strings.HasPrefix(name, "OUTBOX_") || slices.Contains(known, name) || l.used[name]:
		case !serviceLink.MatchString(name):
			l.warn("%s is no variable of outbox-cdc and has no effect", name)
		}
	}
}

// applyDatabaseURL takes source.dsn from DATABASE_URL if the file has none. Many programs of an environment read that variable, so a
// file that names a database of its own beats it. If the two differ, a warning says so.
func (l *loader) applyDatabaseURL() {
	const path = "source.dsn"
	dsn, variable := l.config.Source.DSN, l.env[databaseURL]
	switch {
	case l.options.NoDSN:
	case dsn == "":
		l.setVariable(databaseURL, path, l.field(path))
	case variable != "" && string(dsn) != variable && !l.used[databaseURL]:
		l.warn("%s: source.dsn is used, and the variable %[2]s, which has another value, is not; unset %[2]s, or write dsn: ${%[2]s} to use it",
			l.place(path), databaseURL)
	}
}

// setVariable writes a variable into the value at path, which from then on came from there.
func (l *loader) setVariable(name, path string, v reflect.Value) {
	text := l.env[name]
	if text == "" {
		return
	}
	l.origins[path], l.written[path] = origin{variable: name}, true
	if err := setScalar(v, text); err != nil {
		l.mistake(path, "%q %v", text, err)
	}
}

// applyPublisherType makes the sink of a configuration that has none. Where the file has sinks, the variable may only
// repeat it: a sink's name is its identity in the ledger, and a leftover variable must not exchange it.
func (l *loader) applyPublisherType(typ string) {
	sinks := l.config.Sinks
	inFile := len(sinks) > 0
	switch {
	case !slices.Contains(sinkTypes, typ):
		l.mistakes = append(l.mistakes, Mistake{Variable: publisherType, Path: "sinks", Text: wrongSinkType(typ)})
	case inFile && (len(sinks) != 1 || sinks[0].Type != typ):
		l.mistakes = append(l.mistakes, Mistake{Variable: publisherType, Path: "sinks", Text: fmt.Sprintf(
			"%s contradicts the sinks at %s:%d; unset the variable, or remove them", typ, l.file, l.origins["sinks"].line)})
	case !inFile:
		l.config.Sinks = []Sink{defaultSink(typ)}
		l.origins["sinks"] = origin{variable: publisherType}
		if typ == SinkComposite {
			l.addMembers()
		}
	}
}

// addMembers makes the sinks of a composite that comes from the environment: one of each type that it names.
func (l *loader) addMembers() {
	for name := range strings.SplitSeq(l.env["OUTBOX_COMPOSITE_MEMBERS"], ",") {
		name = strings.TrimSpace(name)
		if slices.Contains(sinkTypes, name) && name != SinkComposite { // what is none is reported with the members
			l.config.Sinks = append(l.config.Sinks, defaultSink(name))
		}
	}
}

func (l *loader) applySinkVariable(name, typ, key string) {
	var found []int
	for i, s := range l.config.Sinks {
		if s.Type == typ {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 0:
		l.warn("%s has no effect: there is no sink of type %s", name, typ)
	case 1:
		i := found[0]
		_, fields := fieldsOf(reflect.ValueOf(&l.config.Sinks[i]).Elem())
		l.setVariable(name, fmt.Sprintf("sinks[%d].%s", i, key), fields[key])
	default:
		l.mistakes = append(l.mistakes, Mistake{Variable: name, Path: name, Text: fmt.Sprintf(
			"could mean any of %d sinks of type %s; write ${%s} in the file where it belongs", len(found), typ, name)})
	}
}

// field finds the value at a path of structs.
func (l *loader) field(path string) reflect.Value {
	v := reflect.ValueOf(&l.config).Elem()
	for name := range strings.SplitSeq(path, ".") {
		_, fields := fieldsOf(v)
		v = fields[name]
	}
	return v
}
