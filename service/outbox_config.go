package service

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/eventbus"
	"github.com/pyairtable-compose/outbox-cdc/sinks/publisher"
)

// OutboxServiceConfig configures a connector within a service. A field that is zero has the daemon's default, unless it says
// otherwise. It becomes the same configuration that the daemon has; what the fields do not name is as there.
type OutboxServiceConfig struct {
	// ServiceName is the connector's name in the ledger; SERVICE_NAME by default, else Slot.
	ServiceName string
	// DatabaseURL is for the replication stream and the ledger, as a *sql.DB does not tell its own; DATABASE_URL by default.
	DatabaseURL string
	// Slot and Publication are outbox_cdc by default. All replicas of a service have the same, and so have all services that
	// share an outbox table; services with other databases on the same server need slots of other names.
	Slot, Publication string
	// LedgerSchema is where the connector keeps its tables; by default beside event_outbox. It is needed where those of another
	// outbox have taken their names, as after a migration.
	LedgerSchema string

	// PublisherType is kafka, redis_stream, webhook, event_bus, composite or stdout. It may be empty where there are Publishers
	// or Sinks, which get every event as well.
	PublisherType string
	// PublisherConfig has the keys that such a sink has in the daemon's file, such as brokers and topic, url, headers and
	// secret. For redis_stream, redis_url and stream may be written for url and topic. An event_bus without url is within the
	// process: OutboxService.EventBus. A composite has strategy (all, any or primary), a map for each member, under
	// its type, and members, their names in order, which any and primary need: the first is the primary.
	PublisherConfig map[string]any
	// Publishers are the service's own, each a sink that is named by GetName. They are not closed.
	Publishers []publisher.Publisher
	// Sinks are the service's own, by name. Each is opened at the beginning of a session and closed at its end.
	Sinks map[string]func() (sinks.Sink, error)

	// BatchSize is the most events that a sink is given at a time.
	BatchSize int
	// PollInterval has no effect: nothing is polled.
	PollInterval time.Duration
	// MaxRetries is how often a refused event is tried again before it becomes a dead letter.
	MaxRetries int
	// WorkerCount is the number of lanes of each sink.
	WorkerCount int
	// EnableMetrics registers the metrics with Registerer while the service runs; prometheus.DefaultRegisterer where that is nil.
	EnableMetrics bool
	Registerer    prometheus.Registerer
	// RetentionDays is accepted. Nothing is deleted yet.
	RetentionDays int

	// Without CircuitBreakerEnabled a sink that is away is never left alone.
	CircuitBreakerEnabled      bool
	CircuitBreakerMaxFailures  int           // batches in a row that found the destination away
	CircuitBreakerResetTimeout time.Duration // after which it is asked whether it is back

	// Logger is slog.Default() by default.
	Logger *slog.Logger
}

// embedded is what an OutboxServiceConfig comes to.
type embedded struct {
	config   config.Config
	warnings []string
	opens    map[string]func() (sinks.Sink, error) // the sinks that are made in Go
	bus      *eventbus.Bus                         // nil where none is in the process
}

// explicit is the environment for a configuration that says all by itself.
func (c *OutboxServiceConfig) explicit() []string {
	return []string{"SERVICE_NAME=" + os.Getenv("SERVICE_NAME"), "DATABASE_URL=" + cmp.Or(c.DatabaseURL, os.Getenv("DATABASE_URL"))}
}

// load makes the daemon's configuration: c becomes its file, over which environ prevails. The error is a *config.Error with
// all that is wrong, and with the mistakes that were found before.
func (c *OutboxServiceConfig) load(environ []string, mistakes ...config.Mistake) (embedded, error) {
	d := document{environ: environ, mistakes: mistakes, embedded: embedded{opens: map[string]func() (sinks.Sink, error){}}}
	file := map[string]any{
		"name": optional(c.ServiceName),
		"source": map[string]any{
			"dsn": optional(c.DatabaseURL), "slot": optional(c.Slot), "publication": optional(c.Publication), "ledger_schema": optional(c.LedgerSchema),
		},
		"delivery": map[string]any{"batch_size": optional(c.BatchSize), "max_retries": optional(c.MaxRetries), "lanes": optional(c.WorkerCount)},
		"metrics":  map[string]any{"enabled": c.EnableMetrics},
		"breaker": map[string]any{
			"enabled": c.CircuitBreakerEnabled, "max_failures": optional(c.CircuitBreakerMaxFailures),
			"reset_timeout": optional(c.CircuitBreakerResetTimeout),
		},
		"http": map[string]any{"listen": ""},
	}
	d.publishers(c)
	if d.sinks != nil {
		file["sinks"] = d.sinks
	}
	if c.RetentionDays < 0 {
		d.wrong("RetentionDays", "is no number of days")
	}
	data, err := yaml.Marshal(d.plain("", file))
	if err != nil {
		return embedded{}, err
	}
	cfg, warnings, err := config.Parse("", data, environ, config.Options{CheckSink: CheckSink, NoSinks: true, InProcess: true})
	d.report(err)
	if d.mistakes != nil {
		return embedded{}, &config.Error{Mistakes: d.mistakes}
	}
	cfg.HTTP.Listen = "" // a service has its own
	d.config = cfg
	for _, w := range warnings {
		d.warnings = append(d.warnings, d.fieldsIn(w))
	}
	if c.PollInterval != 0 {
		d.warnings = append(d.warnings, "PollInterval has no effect: events are streamed from the write-ahead log, nothing is polled")
	}
	if c.RetentionDays > 0 {
		d.warnings = append(d.warnings, "RetentionDays has no effect yet: nothing is deleted")
	}
	return d.embedded, nil
}

// optional leaves out a zero.
func optional[T comparable](v T) any {
	if v == *new(T) {
		return nil
	}
	return v
}

// publishers adds the sinks of c.
func (d *document) publishers(c *OutboxServiceConfig) {
	switch {
	case c.PublisherType == config.SinkComposite:
		d.composite(c.PublisherConfig)
	case c.PublisherType != "" && !slices.Contains(publisherTypes, c.PublisherType):
		d.wrong("PublisherType", noType, c.PublisherType, strings.Join(publisherTypes, ", "))
	case c.PublisherType != "":
		d.sink(c.PublisherType, c.PublisherConfig, "PublisherConfig")
	case len(c.PublisherConfig) > 0:
		d.wrong("PublisherType", "missing; write that of PublisherConfig, such as %s", config.SinkKafka)
	case len(c.Publishers)+len(c.Sinks) == 0:
		d.wrong("PublisherType", "missing; write %s, or name Publishers or Sinks of your own", strings.Join(publisherTypes, ", "))
	}
	for i, p := range c.Publishers {
		if at := fmt.Sprintf("Publishers[%d]", i); p == nil {
			d.wrong(at, "is nil")
		} else {
			// One for all sessions: it knows which Publish is still running.
			s := keptOpen{publisher.New(p)}
			d.own(p.GetName(), at, func() (sinks.Sink, error) { return s, nil })
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sinks)) {
		if at := fmt.Sprintf("Sinks[%q]", name); c.Sinks[name] == nil {
			d.wrong(at, "is nil")
		} else {
			d.own(name, at, c.Sinks[name])
		}
	}
}

// keptOpen is closed by whoever made it.
type keptOpen struct{ sinks.Sink }

func (keptOpen) Close() error { return nil }
