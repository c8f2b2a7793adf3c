package service

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/eventbus"
	"github.com/pyairtable-compose/outbox-cdc/sinks/publisher"
)

// OutboxServiceConfig configures a connector within a service. A field that is zero stands for the daemon's default,
// unless the field's comment says otherwise. The fields are translated into the daemon's configuration; every setting
// that has no field here has the daemon's default too.
type OutboxServiceConfig struct {
	// ServiceName is the connector's name in the ledger. By default it is the variable SERVICE_NAME, and without that Slot.
	ServiceName string
	// DatabaseURL is for the replication stream and the ledger. It is needed because a *sql.DB does not tell which database it
	// leads to. By default it is the variable DATABASE_URL, which counts only if this is empty.
	DatabaseURL string
	// Slot and Publication are outbox_cdc by default. All replicas of a service have the same, and so have all services that
	// share an outbox table; services with other databases on the same server need slots of other names.
	Slot, Publication string
	// LedgerSchema is the schema of the connector's tables, by default that of event_outbox. Set it if tables of another outbox
	// have the same names there, as after a migration.
	LedgerSchema string

	// PublisherType is kafka, redis_stream, webhook, event_bus, composite or stdout. It may be empty if there are Publishers or
	// Sinks. They get every event too.
	PublisherType string
	// PublisherConfig has the keys of such a sink in the daemon's file, for example brokers and topic, or url, headers
	// and secret. For redis_stream the keys url and topic may also be written redis_url and stream. An event_bus
	// without url is one within the process: OutboxService.EventBus. A composite has the key strategy (all, any or
	// primary), a map for each member under its type, and members: the members' names in order. The strategies any and
	// primary need members; the first is the primary.
	PublisherConfig map[string]any
	// Publishers are written by the service. Each becomes a sink with the name that GetName returns. They are never closed.
	Publishers []publisher.Publisher
	// Sinks are written by the service, by name. Each is opened at the beginning of a session and closed at its end. An error that wraps a
	// *sinks.FieldError ends the connector, and any other error ends the session, after which the next session opens the sink again.
	Sinks map[string]func() (sinks.Sink, error)

	// BatchSize is the most events that a sink gets in one call.
	BatchSize int
	// PollInterval has no effect: nothing is polled.
	PollInterval time.Duration
	// MaxRetries is how often a refused event is tried again before it becomes a dead letter. 0 stands for 3, and for 20 with a
	// webhook.
	MaxRetries int
	// WorkerCount is the number of lanes of each sink.
	WorkerCount int
	// EnableMetrics registers the metrics with Registerer while the connector runs. A nil Registerer stands for
	// prometheus.DefaultRegisterer.
	EnableMetrics bool
	Registerer    prometheus.Registerer
	// RetentionDays is how many days a row of the outbox is kept at least, after which it is deleted if it is settled for every sink,
	// and so is the delivery log. 0 stands for 7 days for the outbox that the connector makes, and for ever if LedgerSchema or the
	// table makes it a mapped one.
	RetentionDays int

	// CircuitBreakerEnabled stops deliveries to a destination that is away. Without it the connector goes on trying.
	CircuitBreakerEnabled      bool
	CircuitBreakerMaxFailures  int           // the breaker opens after so many batches in a row have found the destination away
	CircuitBreakerResetTimeout time.Duration // an open breaker lets one message ask after this time

	// SLAWithin and SLAObjective are the objective of each sink: this share of its events, in per cent, is to be accepted within this time of
	// their commit. They stand for 1 s and 99. A sink of PublisherConfig may have a map of its own under the key sla.
	SLAWithin    time.Duration
	SLAObjective float64

	// Logger is slog.Default() by default.
	Logger *slog.Logger
	// TracerProvider makes a span of each delivery and of each transaction of the recorder, such as otel.GetTracerProvider(). Without it
	// there are none, whatever the variables OTEL_… say.
	TracerProvider trace.TracerProvider
}

// maxRetentionDays is a hundred years, as in package config.
const maxRetentionDays = 36_500

// loadedConfig is the result of OutboxServiceConfig.load.
type loadedConfig struct {
	config   config.Config
	warnings []string
	openers  map[string]func() (sinks.Sink, error) // of the sinks that are made in Go
	bus      *eventbus.Bus                         // nil if there is none within the process
}

// environment is what counts beside an OutboxServiceConfig.
type environment struct {
	variables []string // as os.Environ returns them
	// explicit says that NewOutboxService was called, which reads no variables OUTBOX_….
	explicit bool
	// preset is what the OutboxServiceConfig was made of, or nil. Mistakes then name its fields.
	preset *Preset
}

// explicitEnviron returns the only variables that NewOutboxService reads. All else it takes from the fields.
func (c *OutboxServiceConfig) explicitEnviron() environment {
	e := environment{variables: []string{"SERVICE_NAME=" + os.Getenv("SERVICE_NAME")}, explicit: true}
	if c.DatabaseURL == "" {
		e.variables = append(e.variables, "DATABASE_URL="+os.Getenv("DATABASE_URL"))
	}
	return e
}

// load makes the connector's configuration out of c and the environment, whose variables OUTBOX_* prevail. The error is a *config.Error
// with all that is wrong, including the mistakes that were found before.
func (c *OutboxServiceConfig) load(env environment, mistakes ...config.Mistake) (loadedConfig, error) {
	p := config.NewProgram(env.variables, config.Options{CheckSink: CheckSink, NoSinks: true, InProcess: true, NoVariables: env.explicit})
	p.Wrong(mistakes...)
	maps.Copy(p.Names, fieldNames)
	cfg := p.Config
	set(p, "name", &cfg.Name, c.ServiceName)
	set(p, "source.dsn", &cfg.Source.DSN, config.DSN(config.Clean(c.DatabaseURL)))
	set(p, "source.slot", &cfg.Source.Slot, c.Slot)
	set(p, "source.publication", &cfg.Source.Publication, c.Publication)
	set(p, "source.ledger_schema", &cfg.Source.LedgerSchema, c.LedgerSchema)
	a := assembly{Program: p, environ: env.variables, loadedConfig: loadedConfig{openers: map[string]func() (sinks.Sink, error){}}}
	a.addPublishers(c)
	set(p, "delivery.batch_size", &cfg.Delivery.BatchSize, c.BatchSize)
	set(p, "delivery.max_retries", &cfg.Delivery.MaxRetries, c.MaxRetries)
	set(p, "delivery.lanes", &cfg.Delivery.Lanes, c.WorkerCount)
	cfg.Metrics.Enabled, cfg.Breaker.Enabled = c.EnableMetrics, c.CircuitBreakerEnabled
	if c.RetentionDays < 0 || c.RetentionDays > maxRetentionDays {
		a.wrong("retention.outbox", "%d is not between 0 and %d", c.RetentionDays, maxRetentionDays)
	} else if c.RetentionDays > 0 {
		set(p, "retention.outbox", &cfg.Retention.Outbox, config.Age(strconv.Itoa(c.RetentionDays)+"d"))
	}
	set(p, "breaker.max_failures", &cfg.Breaker.MaxFailures, c.CircuitBreakerMaxFailures)
	set(p, "breaker.reset_timeout", &cfg.Breaker.ResetTimeout, c.CircuitBreakerResetTimeout)
	set(p, "sla.within", &cfg.SLA.Within, c.SLAWithin)
	set(p, "sla.objective", &cfg.SLA.Objective, c.SLAObjective)
	if env.preset != nil {
		env.preset.name(p)
	}
	var err error
	if a.config, a.warnings, err = p.Load(); err != nil {
		return loadedConfig{}, err
	}
	a.config.HTTP.Listen = "" // a service has an HTTP server of its own
	if c.PollInterval != 0 {
		a.warnings = append(a.warnings, "PollInterval has no effect: events are streamed from the write-ahead log, nothing is polled")
	}
	return a.loadedConfig, nil
}

// fieldNames has the field of OutboxServiceConfig for each path of a configuration that has one. AddSink adds those of the sinks.
var fieldNames = config.Names{
	"name": "ServiceName", "source.dsn": "DatabaseURL", "source.slot": "Slot", "source.publication": "Publication", "source.ledger_schema": "LedgerSchema",
	"delivery.batch_size": "BatchSize", "delivery.max_retries": "MaxRetries", "delivery.lanes": "WorkerCount", "retention.outbox": "RetentionDays",
	"breaker.max_failures": "CircuitBreakerMaxFailures", "breaker.reset_timeout": "CircuitBreakerResetTimeout",
	"sla.within": "SLAWithin", "sla.objective": "SLAObjective", "metrics.enabled": "EnableMetrics",
}

// set writes the value of a field into a configuration, unless it is zero, which stands for the default.
func set[T comparable](p *config.Program, path string, into *T, value T) {
	if value != *new(T) {
		*into = value
		p.Written(path)
	}
}

// addPublishers adds the sinks of c.
func (a *assembly) addPublishers(c *OutboxServiceConfig) {
	switch {
	case c.PublisherType == config.SinkComposite:
		a.addComposite(c.PublisherConfig)
	case c.PublisherType != "" && !slices.Contains(publisherTypes, c.PublisherType):
		a.wrong("PublisherType", noType, c.PublisherType, strings.Join(publisherTypes, ", "))
	case c.PublisherType != "":
		a.addSink(c.PublisherType, c.PublisherConfig, publisherConfig)
	case len(c.PublisherConfig) > 0:
		a.wrong("PublisherType", "missing; write that of PublisherConfig, such as %s", config.SinkKafka)
	case len(c.Publishers)+len(c.Sinks) == 0:
		a.wrong("PublisherType", "missing; write %s, or name Publishers or Sinks of your own", strings.Join(publisherTypes, ", "))
	}
	for i, p := range c.Publishers {
		if at := fmt.Sprintf("Publishers[%d]", i); p == nil {
			a.wrong(at, "is nil")
		} else {
			// All sessions share one sink, because it knows which calls of Publish are still running.
			s := keptOpen{publisher.New(p)}
			a.addGoSink(goSink{p.GetName(), at, at + ".GetName()", func() (sinks.Sink, error) { return s, nil }})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sinks)) {
		if at := fmt.Sprintf("Sinks[%q]", name); c.Sinks[name] == nil {
			a.wrong(at, "is nil")
		} else {
			a.addGoSink(goSink{name, at, at, namingFields(at, c.Sinks[name])})
		}
	}
}

// namingFields returns open with the mistakes that it finds in settings (sinks.FieldError) told by their paths below at. They are final:
// the connector ends with them, because the settings of a program do not change while it runs.
func namingFields(at string, open opener) opener {
	return func() (sinks.Sink, error) {
		s, err := open()
		if _, isField := errors.AsType[*sinks.FieldError](err); !isField {
			return s, err
		}
		mistakes := mistakesOf(err)
		for i := range mistakes {
			mistakes[i].Path = strings.TrimSuffix(at+"."+mistakes[i].Path, ".")
		}
		return nil, &config.Error{Mistakes: mistakes}
	}
}

// keptOpen is a sink that stays open when a session closes it.
type keptOpen struct{ sinks.Sink }

func (keptOpen) Close() error { return nil }
