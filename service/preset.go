package service

import (
	"database/sql"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// Preset is what a service of the platform need not say again. The environment, with the variables that the daemon has, beats
// it; where the destinations are, such as OUTBOX_KAFKA_BROKERS, and DATABASE_URL, only the environment says.
type Preset struct {
	Service string
	// Sinks are types, as in OutboxServiceConfig.PublisherType; each gets every event. OUTBOX_PUBLISHER_TYPE replaces
	// them.
	Sinks []string
	// Topics by type of sink: of kafka a topic, of redis_stream a stream, of event_bus a subject. They may have
	// fields, as outbox.event.{aggregate_type}, which is also the default.
	Topics map[string]string
	// Lanes of each sink; 0 is the daemon's default.
	Lanes int
}

// presets are those of services that have a function of their own.
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

// Setup is NewOutboxService for a service that has a preset, and for the environment.
func Setup(db *sql.DB, p Preset) (*OutboxService, error) {
	c, environ, mistakes := p.config(os.Environ())
	return newOutboxService(db, c, environ, mistakes...)
}

// config makes of the preset what the environment has not said, and gives what is left of that. In the place of a variable
// that is wrong, the rest is checked with what the preset says.
func (p Preset) config(environ []string) (c OutboxServiceConfig, rest []string, mistakes []config.Mistake) {
	env := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	variable := func(name, format string, args ...any) {
		mistakes = append(mistakes, config.Mistake{Variable: name, Path: name, Text: fmt.Sprintf(format, args...)})
	}
	// known says whether this may be the type of a sink, and tells of it if not.
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
		types = []string{config.SinkStdout} // of which nothing else can be wrong
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
	switch {
	case len(types) == 0: // is a mistake
	case len(types) == 1 && !ordered:
		c.PublisherType, c.PublisherConfig = types[0], p.settings(types[0])
	default:
		c.PublisherType = config.SinkComposite
		c.PublisherConfig = map[string]any{"strategy": strategy, "members": types}
		for _, typ := range types {
			c.PublisherConfig[typ] = p.settings(typ)
		}
	}
	if days := env["OUTBOX_RETENTION_DAYS"]; days != "" { // the daemon refuses it, and it is in every environment of the platform
		var err error
		if c.RetentionDays, err = strconv.Atoi(days); err != nil || c.RetentionDays < 0 {
			variable("OUTBOX_RETENTION_DAYS", "is no number of days")
			c.RetentionDays = 0
		}
	}
	for _, name := range []string{"OUTBOX_PUBLISHER_TYPE", "OUTBOX_COMPOSITE_MEMBERS", "OUTBOX_COMPOSITE_STRATEGY", "OUTBOX_RETENTION_DAYS"} {
		delete(env, name)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		rest = append(rest, name+"="+env[name])
	}
	return c, rest, mistakes
}

func (p Preset) settings(typ string) map[string]any {
	settings := map[string]any{}
	if topic := p.Topics[typ]; topic != "" {
		settings["topic"] = topic
	}
	return settings
}
