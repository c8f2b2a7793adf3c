package service

import (
	"database/sql"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// Preset holds the settings of a service of the platform. The variables OUTBOX_* of the environment, which are the same as for the
// daemon, prevail over it. The addresses of the destinations, such as OUTBOX_KAFKA_BROKERS, and DATABASE_URL come from the
// environment only.
type Preset struct {
	// Service is the connector's name in the ledger. The variable SERVICE_NAME counts only if this is empty.
	Service string
	// Sinks are types, as in OutboxServiceConfig.PublisherType. Each sink gets every event. OUTBOX_PUBLISHER_TYPE
	// replaces them.
	Sinks []string
	// Topics by the type of the sink: for kafka a topic, for redis_stream a stream, for event_bus a subject. They may contain
	// fields, as in outbox.event.{aggregate_type}, which is also the default.
	Topics map[string]string
	// Lanes of each sink. 0 means the daemon's default.
	Lanes int
}

// presets holds the presets of those services that have a Setup function of their own.
var presets = map[string]Preset{
	"user-service": {
		Service: "user-service", Sinks: []string{config.SinkKafka}, Lanes: 2,
		Topics: map[string]string{config.SinkKafka: "pyairtable-events", config.SinkRedis: "pyairtable:events"},
	},
}

// SetupForUserService is Setup for the user service.
func SetupForUserService(db *sql.DB) (*OutboxService, error) {
	return Setup(db, presets["user-service"])
}

// Setup is NewOutboxService with a configuration that consists of a preset and the environment.
func Setup(db *sql.DB, p Preset) (*OutboxService, error) {
	c, environ, mistakes := p.config(os.Environ())
	return assemble(db, c, environment{variables: environ, preset: &p}, mistakes...)
}

// config makes an OutboxServiceConfig out of the preset, and those variables of environ that choose the sinks. It
// returns the other variables as rest: they apply as they do for the daemon. If a variable is wrong, config uses the preset's value instead, so that the rest of the configuration can be checked as well.
func (p Preset) config(environ []string) (c OutboxServiceConfig, rest []string, mistakes []config.Mistake) {
	env := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	variable := func(name, format string, args ...any) {
		mistakes = append(mistakes, config.Mistake{Variable: name, Path: name, Text: fmt.Sprintf(format, args...)})
	}
	// known reports whether typ can be the type of a sink. If not, it adds a mistake.
	known := func(typ string, at config.Mistake) bool {
		if slices.Contains(memberTypes, typ) {
			return true
		}
		at.Text = fmt.Sprintf(noType, typ, strings.Join(memberTypes, ", "))
		mistakes = append(mistakes, at)
		return false
	}
	for _, typ := range slices.Sorted(maps.Keys(p.Topics)) {
		known(typ, config.Mistake{Path: "Topics"})
	}
	var types []string
	for i, typ := range p.Sinks {
		if known(typ, config.Mistake{Path: fmt.Sprintf("Sinks[%d]", i)}) {
			types = append(types, typ)
		}
	}
	if types == nil && len(p.Sinks) > 0 {
		types = []string{config.SinkStdout} // needs no settings, so it adds no mistakes of its own
	}
	c = OutboxServiceConfig{ServiceName: p.Service, WorkerCount: p.Lanes, EnableMetrics: true, CircuitBreakerEnabled: true}
	strategy := config.StrategyAll
	ordered := false
	switch typ := env["OUTBOX_PUBLISHER_TYPE"]; {
	case typ == "":
	case typ == config.SinkComposite:
		var members []string
		const list = "OUTBOX_COMPOSITE_MEMBERS"
		for name := range strings.SplitSeq(env[list], ",") {
			if name = strings.TrimSpace(name); known(name, config.Mistake{Variable: list, Path: list}) {
				members = append(members, name)
			}
		}
		if len(members) > 0 {
			types, ordered = members, true
		}
		switch s := env["OUTBOX_COMPOSITE_STRATEGY"]; {
		case s == "":
		case slices.Contains(strategies, s):
			strategy = s
		default:
			variable("OUTBOX_COMPOSITE_STRATEGY", noStrategy, strings.Join(strategies, ", "))
		}
	case slices.Contains(memberTypes, typ):
		types = []string{typ}
	default:
		variable("OUTBOX_PUBLISHER_TYPE", noType, typ, strings.Join(publisherTypes, ", "))
	}
	if len(types) == 0 {
		mistakes = append(mistakes, config.Mistake{Path: "Sinks", Text: fmt.Sprintf(
			"missing; write at least one of %s, or set OUTBOX_PUBLISHER_TYPE", strings.Join(memberTypes, ", "))})
		types = []string{config.SinkStdout} // as above
	}
	switch {
	case len(types) == 1 && !ordered:
		c.PublisherType, c.PublisherConfig = types[0], p.settings(types[0])
	default:
		c.PublisherType = config.SinkComposite
		c.PublisherConfig = map[string]any{"strategy": strategy, "members": types}
		for _, typ := range types {
			c.PublisherConfig[typ] = p.settings(typ)
		}
	}
	for _, name := range []string{"OUTBOX_PUBLISHER_TYPE", "OUTBOX_COMPOSITE_MEMBERS", "OUTBOX_COMPOSITE_STRATEGY"} {
		delete(env, name)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		rest = append(rest, name+"="+env[name])
	}
	return c, rest, mistakes
}

// name replaces the names of a program by those of the preset that it was made of. Names of no field of a preset are those of the
// daemon, whose variables set them.
func (p Preset) name(program *config.Program) {
	clear(program.Names)
	program.Names["name"], program.Names["delivery.lanes"], program.Names["source.dsn"] = "Service", "Lanes", "DATABASE_URL"
	for i, s := range program.Config.Sinks {
		path := fmt.Sprintf("sinks[%d]", i)
		at := slices.Index(p.Sinks, s.Name) // which is the type, as a preset gives no names
		switch {
		case s.Type == config.SinkComposite:
			program.Names[path+".members"] = "Sinks"
		case at >= 0:
			program.Names[path] = fmt.Sprintf("Sinks[%d]", at)
		}
		if p.Topics[s.Name] != "" {
			program.Names[path+".topic"] = fmt.Sprintf("Topics[%q]", s.Name)
		}
	}
}

// settings returns the PublisherConfig of a sink of this type.
func (p Preset) settings(typ string) map[string]any {
	settings := map[string]any{}
	if topic := p.Topics[typ]; topic != "" {
		settings["topic"] = topic
	}
	return settings
}
