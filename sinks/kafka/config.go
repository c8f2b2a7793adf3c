package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Config says where the brokers are and how records are made. Only Brokers is required.
type Config struct {
	Brokers []string // host:port of some brokers
	// Topics says whether messages have different topics. If they have, a topic or a partition that is away while the cluster
	// answers is ErrTopicUnavailable, and is remembered. See the documentation of the package.
	Topics   sinks.Topics
	ClientID string
	TLS      *tls.Config // nil for connections without TLS
	SASL     SASL
	// Compression is none (the default), gzip, snappy, lz4 or zstd.
	Compression string
	// Timestamp says which time a record has: that of the commit ("commit", the default) or the event's own ("created_at"). It
	// corresponds to Debezium's table.field.event.timestamp.
	Timestamp string

	// Formats say which headers a record has. debezium (the default): those of Debezium's outbox router. cloudevents:
	// the attributes of a CloudEvent in binary mode, with the prefix ce_, and always a content-type. A record may have
	// both. Key, value, content-type, traceparent and tracestate do not depend on the format.
	// (github.com/cloudevents/spec, cloudevents/bindings/kafka-protocol-binding.md)
	Formats []string
	// Source is the attribute source of CloudEvents, a URI reference. {aggregate_type} in it stands for that of the
	// event. The format cloudevents requires it; nothing else uses it.
	Source string
	// ContentType becomes the header content-type of records whose metadata name none. If it is empty, records in the format
	// cloudevents get the one that the type of the payload's column stands for, and others get none.
	ContentType string
	// Placement (format debezium) says which columns become headers beside the id, in the syntax of Debezium's
	// table.fields.additional.placement; see parsePlacement. A column that is NULL has no header. (Debezium sends a
	// header with the value null.) An empty Placement stands for
	// event_type:header:eventType,event_version:header:eventVersion,tenant_id:header:tenantId,correlation_id:header:correlationId,causation_id:header:causationId
	// and "id:header" for the id alone, which is Debezium's default.
	Placement string
	// Columns translates names of columns of the user's table, which Placement may contain, into ours: {"type": "event_type"}.
	Columns map[string]string
	// HeaderEncoding (format debezium) is plain or json. plain (the default) is what Kafka Connect sends with
	// SimpleHeaderConverter or StringConverter. json puts strings in quotes, as Debezium Server does by default
	// (debezium.format.header). It applies to id, placed columns, outbox_lsn and headers from the metadata.
	// content-type, traceparent, tracestate and ce_* are never quoted.
	HeaderEncoding string
	// HeadersFromMetadata are keys at the top level of the metadata that become headers with the same names. The value
	// of a string is its text, any other value is written as JSON. A key that is null or missing makes no header.
	// traceparent and tracestate become headers without being listed here.
	HeadersFromMetadata []string
	// TombstoneOnEmptyPayload sends a payload that is empty or only white space as the value null. It corresponds to Debezium's
	// route.tombstone.on.empty.payload. A payload that is NULL is always sent as null.
	TombstoneOnEmptyPayload bool
	// LSNHeader adds a header outbox_lsn with the event's position, in the same form as ce_sequence: the LSN of the
	// commit and the number in the transaction, in fixed width, so that positions can be compared as texts. Debezium
	// has nothing like it.
	LSNHeader bool

	// MaxMessageBytes is the largest record, with key and headers. A larger one is refused permanently without a try,
	// because brokers close the connection when a request has more than socket.request.max.bytes (100 MiB). Which sizes
	// a topic accepts, only its broker decides. 0 means 99 MiB.
	MaxMessageBytes int
	// Logger gets the messages of franz-go, at debug level. Errors are not logged but returned.
	Logger *slog.Logger
}

// SASL says how the client logs in. An empty Mechanism means that it does not.
type SASL struct {
	Mechanism string // plain, scram-sha-256 or scram-sha-512
	Username  string
	Password  string
}

// String hides the password.
func (s SASL) String() string {
	if s.Mechanism == "" {
		return "none"
	}
	return s.Mechanism + " as " + s.Username
}

// GoString hides the password from %#v.
func (s SASL) GoString() string { return s.String() }

// LogValue hides the password from logs.
func (s SASL) LogValue() slog.Value { return slog.StringValue(s.String()) }

const (
	dialTimeout     = 5 * time.Second // for connection and TLS together
	requestOverhead = 5 * time.Second // how long to wait beyond the time that the request allows the broker
	idleTimeout     = 3 * time.Minute // some clouds drop an idle connection without notice after four minutes
	retryPause      = 100 * time.Millisecond
	nextBrokerPause = 20 * time.Millisecond

	defaultMaxMessageBytes = 99 << 20
)

var codecs = map[string]kgo.CompressionCodec{
	"": kgo.NoCompression(), "none": kgo.NoCompression(), "gzip": kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

// options returns the options for the clients. Each lane has a client of its own. The error joins all mistakes.
func (c *Config) options() ([]kgo.Opt, error) {
	var wrong []error
	if len(c.Brokers) == 0 {
		wrong = append(wrong, sinks.FieldErrorf("brokers", "missing; write host:port of some brokers"))
	}
	for i, b := range c.Brokers {
		if err := kgo.ValidateOpts(kgo.SeedBrokers(b)); err != nil {
			wrong = append(wrong, sinks.FieldErrorf(fmt.Sprintf("brokers[%d]", i), "%w", err))
		}
	}
	// Use the last version of Produce that has names of topics. Later versions have ids, which become wrong when a
	// topic is deleted and made again.
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(0, 12)
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.MaxVersions(versions),
		kgo.RequiredAcks(kgo.AllISRAcks()), // kgo writes this into our requests
		kgo.DialTimeout(dialTimeout),
		kgo.RequestTimeoutOverhead(requestOverhead),
		kgo.ConnIdleTimeout(idleTimeout),
		// A request that any broker can answer (metadata, producer id) is sent to the next one if it fails. Brokers and
		// seed brokers take turns, so that five tries find the one of two brokers that is left. Produce requests are never
		// repeated.
		kgo.RequestRetries(4),
		kgo.RetryBackoffFn(func(int) time.Duration { return nextBrokerPause }),
		kgo.DisableClientMetrics(),
	}
	if c.ClientID != "" {
		opts = append(opts, kgo.ClientID(c.ClientID))
	}
	if c.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(c.TLS))
	}
	if c.Logger != nil {
		opts = append(opts, kgo.WithLogger(debugLog{c.Logger}))
	}
	auth := scram.Auth{User: c.SASL.Username, Pass: c.SASL.Password}
	switch c.SASL.Mechanism {
	case "":
	case "plain":
		opts = append(opts, kgo.SASL(plain.Auth{User: c.SASL.Username, Pass: c.SASL.Password}.AsMechanism()))
	case "scram-sha-256":
		opts = append(opts, kgo.SASL(auth.AsSha256Mechanism()))
	case "scram-sha-512":
		opts = append(opts, kgo.SASL(auth.AsSha512Mechanism()))
	default:
		wrong = append(wrong, sinks.FieldErrorf("sasl.mechanism", "%q is none of plain, scram-sha-256 and scram-sha-512", c.SASL.Mechanism))
	}
	if wrong == nil {
		wrong = append(wrong, kgo.ValidateOpts(opts...))
	}
	return opts, errors.Join(wrong...)
}

// debugLog passes on the messages of the client, all at debug level. Whatever the client warns of is in the errors of
// Deliver as well.
type debugLog struct{ to *slog.Logger }

func (l debugLog) Level() kgo.LogLevel {
	if l.to.Enabled(context.Background(), slog.LevelDebug) {
		return kgo.LogLevelDebug
	}
	return kgo.LogLevelNone
}

func (l debugLog) Log(_ kgo.LogLevel, msg string, keyvals ...any) {
	l.to.Debug(msg, keyvals...) //nolint:sloglint // the message comes from the client
}
