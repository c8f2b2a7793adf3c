package config

import (
	"fmt"
	"io"
	"time"
)

// The kinds of sink that Sink.Type may name.
const (
	SinkKafka     = "kafka"
	SinkRedis     = "redis_stream"
	SinkWebhook   = "webhook"
	SinkEventBus  = "event_bus"
	SinkComposite = "composite"
	SinkStdout    = "stdout"
	// SinkInProcess is a sink that a service makes in Go when it embeds the connector. No file can name it. See Options.InProcess.
	SinkInProcess = "in_process"
)

// The strategies of a composite.
const (
	StrategyAll     = "all"     // each member gets every event
	StrategyAny     = "any"     // the first member that accepts
	StrategyPrimary = "primary" // the first as usual, each other one try
)

// BacklogAll gives a new sink what the outbox holds from before it, too.
const BacklogAll = "all"

// Sink is one destination.
type Sink struct {
	// Name is the sink's name in ledger, metrics and commands. By default it is its type.
	Name string `yaml:"name"`
	Type string `yaml:"type"`
	// Topic and Key are templates over the event's fields, as outbox.event.{aggregate_type}: a topic of Kafka, a stream of
	// Redis, a subject of NATS.
	Topic string `yaml:"topic"`
	Key   string `yaml:"key"`
	// MaxRetries replaces delivery.max_retries for this sink, unless it is nil. A webhook has webhookRetries if neither is written.
	MaxRetries *int `yaml:"max_retries"`
	// SLA replaces Config.SLA for this sink, field by field: see Config.SLAOf.
	SLA SinkSLA `yaml:"sla"`
	// RenamedFrom is the sink's former name. What is parked under it is delivered under the new name.
	RenamedFrom string `yaml:"renamed_from"`
	// Backlog is BacklogAll, or empty: then a new sink is given what is written from its first start on.
	Backlog string `yaml:"backlog"`
	// Abandoned says that this is no sink any more, and that what is parked for it may be dropped.
	Abandoned bool `yaml:"abandoned"`
	// Only the one of the sink's type is set.
	Kafka     *Kafka     `yaml:",inline"`
	Redis     *Redis     `yaml:",inline"`
	Webhook   *Webhook   `yaml:",inline"`
	EventBus  *EventBus  `yaml:",inline"`
	Composite *Composite `yaml:",inline"`
}

// Route sends the events that it matches to sinks.
type Route struct {
	Match Match    `yaml:"match"`
	Sinks []string `yaml:"sinks,flow"`
	// Topic and Key, where they are set, are used instead of the sinks' own.
	Topic string `yaml:"topic"`
	Key   string `yaml:"key"`
}

// Match holds patterns, in which * stands for any characters and ? for one. Each list that is not empty must hold one that
// fits.
type Match struct {
	AggregateType []string `yaml:"aggregate_type,flow"`
	EventType     []string `yaml:"event_type,flow"`
	TenantID      []string `yaml:"tenant_id,flow"`
}

// Kafka is what a sink of type kafka needs besides.
type Kafka struct {
	Brokers  []string `yaml:"brokers,flow"`
	ClientID string   `yaml:"client_id"`
	// Compression is none, gzip, snappy, lz4 or zstd.
	Compression string `yaml:"compression"`
	// Timestamp of a record is the time of the commit ("commit") or the event's own ("created_at").
	Timestamp string `yaml:"timestamp"`
	// Formats are debezium, cloudevents, or both.
	Formats []string `yaml:"format,flow"`
	// Source of CloudEvents.
	Source string `yaml:"source"`
	// ContentType is that of payloads whose metadata name none.
	ContentType string `yaml:"content_type"`
	// Placement of columns, in Debezium's syntax.
	Placement string `yaml:"placement"`
	// HeaderEncoding is plain or json.
	HeaderEncoding string `yaml:"header_encoding"`
	// HeadersFromMetadata are keys of the metadata that become headers.
	HeadersFromMetadata []string `yaml:"headers_from_metadata,flow"`
	// TombstoneOnEmptyPayload sends an empty payload as null.
	TombstoneOnEmptyPayload bool `yaml:"tombstone_on_empty_payload"`
	// LSNHeader adds the position as header outbox_lsn.
	LSNHeader bool `yaml:"lsn_header"`
	// MaxMessageBytes: a larger record becomes a dead letter without a try.
	MaxMessageBytes Bytes `yaml:"max_message_bytes"`
	TLS             TLS   `yaml:"tls"`
	SASL            SASL  `yaml:"sasl"`
}

// Format prints k as a value would be. A pointer inside of another value it would print with no regard to the methods
// of its fields, the password's among them.
func (k *Kafka) Format(f fmt.State, _ rune) {
	if k == nil {
		_, _ = io.WriteString(f, "<nil>")
		return
	}
	_, _ = fmt.Fprintf(f, "%+v", *k)
}

// TLS is how a destination is reached.
type TLS struct {
	Enabled bool `yaml:"enabled"`
	// CAFile replaces the system's certificate authorities.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are the client's own certificate.
	CertFile           string `yaml:"cert_file"`
	KeyFile            string `yaml:"key_file"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
}

// SASL is how the client says who it is; an empty Mechanism means that it does not.
type SASL struct {
	// Mechanism is plain, scram-sha-256 or scram-sha-512.
	Mechanism string `yaml:"mechanism"`
	Username  string `yaml:"username"`
	Password  Secret `yaml:"password"`
}

// Redis is what a sink of type redis_stream needs besides.
type Redis struct {
	// URL is redis:// or rediss://, which is TLS.
	URL URL `yaml:"url"`
	// Addresses are further nodes of a cluster, or the Sentinels where Master is set; host:port.
	Addresses []string `yaml:"addresses,flow"`
	// Master is the name by which Sentinels know the server.
	Master   string `yaml:"master"`
	Username string `yaml:"username"`
	Password Secret `yaml:"password"`
	// ClientName is what CLIENT LIST shows.
	ClientName string `yaml:"client_name"`
	// MaxLen, MinIDAge trim a stream, approximately: to so many entries, or to those of so long. 0 keeps all.
	MaxLen   int           `yaml:"max_len"`
	MinIDAge time.Duration `yaml:"min_id_age"`
	// MaxMessageBytes: a larger message becomes a dead letter without a try.
	MaxMessageBytes Bytes `yaml:"max_message_bytes"`
	// ContentType is that of payloads whose metadata name none.
	ContentType string `yaml:"content_type"`
	TLS         TLS    `yaml:"tls"`
}

// Webhook is what a sink of type webhook needs besides.
type Webhook struct {
	URL URL `yaml:"url"`
	// Secrets sign, each for itself: two while they are rotated.
	Secrets []Secret          `yaml:"secret,flow"`
	Headers map[string]Secret `yaml:"headers"`
	// Body is envelope, raw, cloudevents or cloudevents-structured.
	Body   string `yaml:"body"`
	Source string `yaml:"source"`
	// ContentType is that of payloads whose metadata name none. The body envelope is JSON anyway.
	ContentType string `yaml:"content_type"`
	// AllowHosts are internal hosts, host or host:port, that may be reached all the same.
	AllowHosts  []string `yaml:"allow_hosts,flow"`
	Connections int      `yaml:"connections"`
	// Rate is the most events a second; 0 is no limit.
	Rate int `yaml:"rate"`
	// MaxRetryAfter caps the pause that a receiver may ask for.
	MaxRetryAfter time.Duration `yaml:"max_retry_after"`
	TLS           TLS           `yaml:"tls"`
}

// EventBus is what a sink of type event_bus needs besides: NATS JetStream.
type EventBus struct {
	// URL is nats:// or tls://; several, separated by commas, are servers of one cluster.
	URL URL `yaml:"url"`
	// ClientName is what the server's monitoring calls the connection.
	ClientName string `yaml:"client_name"`
	// CredentialsFile, NKeyFile: how the client says who it is, where the URL does not.
	CredentialsFile string `yaml:"credentials_file"`
	NKeyFile        string `yaml:"nkey_file"`
	// Stream, where it is set, is the only one that may take events.
	Stream string `yaml:"stream"`
	// InboxPrefix is where acknowledgements are sent, for users who may not subscribe to _INBOX.
	InboxPrefix string `yaml:"inbox_prefix"`
	Source      string `yaml:"source"`
	// ContentType is that of payloads whose metadata name none.
	ContentType string `yaml:"content_type"`
	TLS         TLS    `yaml:"tls"`
}

// Composite is a sink made of others.
type Composite struct {
	Strategy string   `yaml:"strategy"`
	Members  []string `yaml:"members,flow"`
}

const (
	defaultTopic = "outbox.event.{aggregate_type}"
	clientName   = "outbox-cdc"
	// webhookRetries is the default of a webhook's max_retries. With the default backoff these take more than an hour: partners
	// whose deployment goes wrong answer 500 for a while.
	webhookRetries = 20
)

// defaultSink is a sink of a type before file and environment: complete but for what only its owner knows.
func defaultSink(typ string) Sink {
	s := Sink{Name: typ, Type: typ, Topic: defaultTopic, Key: "{aggregate_id}"}
	switch typ {
	case SinkKafka:
		s.Kafka = &Kafka{
			ClientID: clientName, Compression: "none", Timestamp: "commit", Formats: []string{"debezium"}, HeaderEncoding: "plain",
			MaxMessageBytes: 99 * MiB,
		}
	case SinkRedis:
		s.Redis = &Redis{ClientName: clientName, MaxMessageBytes: 500 * MiB}
	case SinkWebhook:
		s.Webhook = &Webhook{Body: "envelope", Connections: 16, MaxRetryAfter: time.Minute}
	case SinkEventBus:
		s.Topic += ".{event_type}"
		s.EventBus = &EventBus{ClientName: clientName}
	case SinkComposite:
		s.Topic, s.Key = "", ""
		s.Composite = &Composite{Strategy: StrategyAll}
	}
	return s
}
