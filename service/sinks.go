package service

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/composite"
	"github.com/pyairtable-compose/outbox-cdc/sinks/eventbus"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
	"github.com/pyairtable-compose/outbox-cdc/sinks/kafka"
	"github.com/pyairtable-compose/outbox-cdc/sinks/redisstream"
	"github.com/pyairtable-compose/outbox-cdc/sinks/stdout"
	"github.com/pyairtable-compose/outbox-cdc/sinks/webhook"
)

// buildSinks makes the connector's sinks out of the configured ones, in their order. A composite with the strategy
// "any" becomes one sink in place of its members. Any other composite is no sink: its members are, and buildRoutes
// sends events to them.
func buildSinks(cfg config.Config, o BuildOptions) ([]connector.Sink, error) {
	all, _, err := buildSinksAndMembers(cfg, o)
	return all, err
}

// buildSinksAndMembers does what buildSinks does. It also returns the members of each composite with the strategy "any", by the
// name of the composite.
func buildSinksAndMembers(cfg config.Config, o BuildOptions) ([]connector.Sink, map[string][]connector.Sink, error) {
	b := newSinkBuilder(cfg, o)
	built := map[string]connector.Sink{}
	members := map[string][]connector.Sink{}
	var all []config.Mistake
	for i, sc := range cfg.Sinks {
		if sc.Composite != nil {
			continue
		}
		s, mistakes := b.buildSink(sc)
		for _, m := range mistakes {
			m.Path = strings.TrimSuffix(fmt.Sprintf("sinks[%d].%s", i, m.Path), ".")
			all = append(all, m)
		}
		s.MaxRetries, s.RenamedFrom, s.Backlog, s.Objective = sc.MaxRetries, sc.RenamedFrom, sc.Backlog == config.BacklogAll, objective(cfg, sc)
		built[sc.Name] = s
	}
	if all != nil {
		return nil, nil, &config.Error{Mistakes: all}
	}
	for _, sc := range cfg.Sinks {
		switch c := sc.Composite; {
		case c == nil:
		case c.Strategy == config.StrategyAny:
			for _, name := range c.Members {
				members[sc.Name] = append(members[sc.Name], built[name])
				delete(built, name)
			}
			one, err := anyOf(sc, members[sc.Name])
			if err != nil {
				return nil, nil, err
			}
			one.MaxRetries, one.RenamedFrom, one.Backlog, one.Objective = sc.MaxRetries, sc.RenamedFrom, sc.Backlog == config.BacklogAll, objective(cfg, sc)
			built[sc.Name] = one
		case c.Strategy == config.StrategyPrimary:
			for _, name := range c.Members[1:] {
				s := built[name]
				s.OneTry = true
				built[name] = s
			}
		}
	}
	var out []connector.Sink
	for _, sc := range cfg.Sinks { // in the order of the configuration
		if s, ok := built[sc.Name]; ok {
			out = append(out, s)
		}
	}
	return out, members, nil
}

// anyOf makes one sink out of the members of a composite with the strategy "any".
func anyOf(sc config.Sink, members []connector.Sink) (connector.Sink, error) {
	description, err := json.Marshal(map[string]any{"strategy": sc.Composite.Strategy, "members": sc.Composite.Members})
	states := make(memberStates, len(members))
	for i, m := range members {
		states[i] = &memberState{name: m.Name}
	}
	return connector.Sink{
		Name: sc.Name, Type: sc.Type, Description: description,
		Open:    func() (sinks.Sink, error) { return openAny(members, states) },
		Members: states.status,
	}, err
}

func openAny(from []connector.Sink, states memberStates) (sinks.Sink, error) {
	var members []composite.Member
	for i, s := range from {
		sink, err := s.Open()
		if err != nil {
			_ = composite.NewAny(members...).Close() // none of them was used
			return nil, fmt.Errorf("member %q: %w", s.Name, err)
		}
		var topics []string
		if topic, constant := s.Topic.Constant(); constant && topic != "" {
			topics = []string{topic}
		}
		members = append(members, composite.Member{Name: s.Name, Sink: sink, Topics: topics, Tell: states[i].note, Address: func(e *outbox.Event) (topic, key string) {
			return s.Topic.Expand(e), s.Key.Expand(e)
		}})
	}
	return composite.NewAny(members...), nil
}

// buildRoutes makes the connector's routes. Where a route names a composite that is no sink, it names the members instead.
func buildRoutes(cfg config.Config) ([]connector.Route, error) {
	members := map[string][]string{}
	for _, s := range cfg.Sinks {
		if s.Composite != nil && s.Composite.Strategy != config.StrategyAny {
			members[s.Name] = s.Composite.Members
		}
	}
	var out []connector.Route
	for i, rc := range cfg.Routes {
		r := connector.Route{Match: router.Match(rc.Match)}
		for _, name := range rc.Sinks {
			if m, ok := members[name]; ok {
				r.Sinks = append(r.Sinks, m...)
			} else {
				r.Sinks = append(r.Sinks, name)
			}
		}
		for _, t := range []struct {
			text  string
			parse func(string) (router.Template, error)
			into  **router.Template
		}{{rc.Topic, router.ParseTopic, &r.Topic}, {rc.Key, router.ParseTemplate, &r.Key}} {
			if t.text == "" {
				continue
			}
			template, err := t.parse(t.text)
			if err != nil {
				return nil, fmt.Errorf("routes[%d]: %w", i, err)
			}
			*t.into = &template
		}
		out = append(out, r)
	}
	return out, nil
}

// sinkBuilder holds what the builders of all types of sinks need.
type sinkBuilder struct {
	cfg     config.Config
	options BuildOptions
	source  string            // the source of CloudEvents for sinks that configure none
	columns map[string]string // from the names of the user's columns to those of event_outbox
}

func newSinkBuilder(cfg config.Config, o BuildOptions) sinkBuilder {
	database := "postgres"
	if c, err := pgx.ParseConfig(string(cfg.Source.DSN)); err == nil && c.Database != "" {
		database = c.Database
	}
	c := cfg.Source.Columns
	// Source and id together must name one event. The ids of a table of the user's own may be numbers that begin at 1, as those
	// of another such table do, so the source of such an event names the table.
	source := "/outbox/" + url.PathEscape(database)
	if table := cfg.Source.Table; table != config.Default().Source.Table {
		source += "/" + url.PathEscape(table)
	}
	b := sinkBuilder{cfg: cfg, options: o, source: source + "/{aggregate_type}", columns: map[string]string{
		c.ID: "id", c.AggregateType: "aggregate_type", c.AggregateID: "aggregate_id", c.EventType: "event_type", c.EventVersion: "event_version",
		c.TenantID: "tenant_id", c.CorrelationID: "correlation_id", c.CausationID: "causation_id", c.CreatedAt: "created_at",
	}}
	delete(b.columns, "") // the key of all optional columns that the table does not have
	return b
}

// buildSink makes one sink that is no composite. It connects to nothing. It opens and closes the sink once, so that what the
// sink's package finds wrong with the configuration shows now, and not in the first session.
func (b sinkBuilder) buildSink(sc config.Sink) (connector.Sink, []config.Mistake) {
	s := connector.Sink{Name: sc.Name, Type: sc.Type}
	var mistakes []config.Mistake
	for _, t := range []struct {
		key, text string
		parse     func(string) (router.Template, error)
		into      *router.Template
	}{{"topic", sc.Topic, router.ParseTopic, &s.Topic}, {"key", sc.Key, router.ParseTemplate, &s.Key}} {
		var err error
		if *t.into, err = t.parse(t.text); err != nil {
			mistakes = append(mistakes, config.Mistake{Path: t.key, Text: err.Error()})
		}
	}
	// The description is stored in outbox_processors, so it must not hold secrets.
	description := map[string]any{"topic": config.ShownTemplate(sc.Topic), "key": config.ShownTemplate(sc.Key)}
	var wrong []config.Mistake
	switch sc.Type {
	case config.SinkKafka:
		description["brokers"], description["format"] = sc.Kafka.Brokers, sc.Kafka.Formats
		s.Open, wrong = b.kafkaSink(sc)
	case config.SinkRedis:
		description["url"], description["addresses"] = sc.Redis.URL.String(), sc.Redis.Addresses
		s.Open, wrong = b.redisSink(sc)
	case config.SinkWebhook:
		description["url"], description["body"] = sc.Webhook.URL.String(), sc.Webhook.Body
		s.Open, wrong = b.webhookSink(sc)
	case config.SinkEventBus:
		description["url"] = sc.EventBus.URL.String()
		s.Open, wrong = b.eventBusSink(sc)
	case config.SinkInProcess:
		s.Open = b.options.InProcess[sc.Name] // nil if the connector is not going to run
	case config.SinkStdout:
		s.Open = func() (sinks.Sink, error) { return stdout.New(b.options.Stdout), nil }
	default:
		return s, []config.Mistake{{Path: "type", Text: fmt.Sprintf("%q is not built", sc.Type)}}
	}
	if sc.Type != config.SinkInProcess { // this one exists already, and has no configuration that could be wrong
		wrong = append(wrong, mistakesOfOpening(s.Open)...)
	}
	var err error
	if s.Description, err = json.Marshal(description); err != nil {
		wrong = append(wrong, config.Mistake{Text: err.Error()})
	}
	return s, append(mistakes, wrong...)
}

// opener is connector.Sink.Open.
type opener func() (sinks.Sink, error)

func (b sinkBuilder) kafkaSink(sc config.Sink) (opener, []config.Mistake) {
	k := sc.Kafka
	t, mistakes := tlsConfig(k.TLS)
	c := kafka.Config{
		Brokers: k.Brokers, Topics: topicsOf(b.cfg, sc), ClientID: k.ClientID, Compression: k.Compression, Timestamp: k.Timestamp, Logger: b.options.Logger, TLS: t,
		SASL:    kafka.SASL{Mechanism: k.SASL.Mechanism, Username: k.SASL.Username, Password: string(k.SASL.Password)},
		Formats: k.Formats, Source: cmp.Or(k.Source, b.source), ContentType: k.ContentType, Placement: k.Placement, Columns: b.columns, HeaderEncoding: k.HeaderEncoding,
		HeadersFromMetadata: k.HeadersFromMetadata, TombstoneOnEmptyPayload: k.TombstoneOnEmptyPayload, LSNHeader: k.LSNHeader,
		MaxMessageBytes: int(k.MaxMessageBytes),
	}
	return func() (sinks.Sink, error) { return kafka.New(c) }, mistakes
}

func (b sinkBuilder) redisSink(sc config.Sink) (opener, []config.Mistake) {
	r := sc.Redis
	t, mistakes := tlsConfig(r.TLS)
	c := redisstream.Config{
		URL: string(r.URL), Addresses: r.Addresses, Master: r.Master, Username: r.Username, Password: string(r.Password),
		ClientName: r.ClientName, TLS: t, MaxLen: int64(r.MaxLen), MinIDAge: r.MinIDAge, MaxMessageBytes: int(r.MaxMessageBytes),
		ContentType: r.ContentType, Topics: topicsOf(b.cfg, sc),
	}
	return func() (sinks.Sink, error) { return redisstream.New(c) }, mistakes
}

func (b sinkBuilder) webhookSink(sc config.Sink) (opener, []config.Mistake) {
	w := sc.Webhook
	t, mistakes := tlsConfig(w.TLS)
	c := webhook.Config{
		URL: string(w.URL), Headers: map[string]string{}, Body: w.Body, Source: cmp.Or(w.Source, b.source), ContentType: w.ContentType, AllowHosts: w.AllowHosts,
		TLS: t, Connections: w.Connections, Rate: float64(w.Rate), MaxRetryAfter: w.MaxRetryAfter, Topics: topicsOf(b.cfg, sc),
	}
	for _, s := range w.Secrets {
		c.Secrets = append(c.Secrets, string(s))
	}
	for name, value := range w.Headers {
		c.Headers[name] = string(value)
	}
	return func() (sinks.Sink, error) { return webhook.New(c) }, mistakes
}

func (b sinkBuilder) eventBusSink(sc config.Sink) (opener, []config.Mistake) {
	e := sc.EventBus
	t, mistakes := tlsConfig(e.TLS)
	c := eventbus.Config{
		URL: string(e.URL), Name: e.ClientName, CredentialsFile: e.CredentialsFile, NKeySeedFile: e.NKeyFile, TLS: t,
		Stream: e.Stream, InboxPrefix: e.InboxPrefix, Topics: topicsOf(b.cfg, sc),
		CloudEvents: format.CloudEvents{Source: cmp.Or(e.Source, b.source), DataContentType: e.ContentType},
	}
	return func() (sinks.Sink, error) { return eventbus.New(c) }, append(mistakes, checkCredentials(e.CredentialsFile)...)
}
