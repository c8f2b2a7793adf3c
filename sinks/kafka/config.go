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
)

// Config says where the brokers are and how records are made. Only Brokers is needed.
type Config struct {
	Brokers  []string // host:port, some of them
	ClientID string
	TLS      *tls.Config // nil: not encrypted
	SASL     SASL
	// Compression is none (the default), gzip, snappy, lz4 or zstd.
	Compression string
	// Timestamp of a record is the time of the commit ("commit", the default) or the event's own ("created_at"):
	// Debezium's table.field.event.timestamp.
	Timestamp string

	// Formats say which headers a record has: debezium (the default), those of Debezium's outbox router; cloudevents,
	// the attributes of a CloudEvent in binary mode, with the prefix ce_ and a content-type always; or both. Key,
	// value, content-type, traceparent and tracestate are the same with each.
	// (github.com/cloudevents/spec, cloudevents/bindings/kafka-protocol-binding.md)
	Formats []string
	// Source of CloudEvents, a URI reference in which {aggregate_type} stands for the event's. Format cloudevents needs
	// it, and nothing else looks at it.
	Source string
	// Placement, of format debezium, says which columns become headers beside the id, in the syntax of Debezium's
	// table.fields.additional.placement, see parsePlacement. A column that is NULL has no header, where Debezium sends
	// one of value null. Empty stands for
	// event_type:header:eventType,event_version:header:eventVersion,tenant_id:header:tenantId,correlation_id:header:correlationId,causation_id:header:causationId
	// and "id:header" for the id alone, as Debezium has it by default.
	Placement string
	// Columns translates the names in Placement that are those of the user's table into ours: {"type": "event_type"}.
	Columns map[string]string
	// HeaderEncoding, of format debezium, is plain (the default), as Kafka Connect sends headers with
	// SimpleHeaderConverter or StringConverter, or json, as Debezium Server does by default (debezium.format.header):
	// strings are in quotes. It is that of id, placed columns, outbox_lsn and headers from the metadata; content-type,
	// traceparent, tracestate and ce_* are never quoted.
	HeaderEncoding string
	// HeadersFromMetadata are keys of the metadata, at its top level, that become headers of their names: strings as
	// their text, other values as JSON; null and what is not there, none. traceparent and tracestate need not be among
	// them.
	HeadersFromMetadata []string
	// TombstoneOnEmptyPayload sends a payload that is empty, or white space only, as the value null: Debezium's
	// route.tombstone.on.empty.payload. A payload that is NULL is null anyway.
	TombstoneOnEmptyPayload bool
	// LSNHeader adds a header outbox_lsn, the event's position as ce_sequence has it: LSN of the commit and number in
	// the transaction, in fixed width, so that it orders as a text. Debezium has nothing like it.
	LSNHeader bool

	// MaxMessageBytes: a record that is larger with key and headers is permanently refused without a try, as brokers
	// cut the connection on a request of more than socket.request.max.bytes (100 MiB). Which sizes a topic takes is
	// for its broker to say. 0 means 99 MiB.
	MaxMessageBytes int
	// Logger is told, at debug level, what franz-go has to say. Errors are returned.
	Logger *slog.Logger
}

// SASL is how the client says who it is; an empty Mechanism means that it does not.
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

// GoString hides it from %#v.
func (s SASL) GoString() string { return s.String() }

// LogValue hides it from logs.
func (s SASL) LogValue() slog.Value { return slog.StringValue(s.String()) }

const (
	dialTimeout     = 5 * time.Second // TLS included
	requestOverhead = 5 * time.Second // beyond what the request itself allows the broker
	idleTimeout     = 3 * time.Minute // below the four minutes after which some clouds forget a connection silently
	retryPause      = 100 * time.Millisecond

	defaultMaxMessageBytes = 99 << 20
)

var codecs = map[string]kgo.CompressionCodec{
	"": kgo.NoCompression(), "none": kgo.NoCompression(), "gzip": kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

// options are those of the clients, of which each lane has its own.
func (c *Config) options() ([]kgo.Opt, error) {
	if len(c.Brokers) == 0 {
		return nil, errors.New("no brokers")
	}
	// The last version of Produce that names topics. Later ones have ids, which are stale when a topic was made anew.
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(0, 12)
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.MaxVersions(versions),
		kgo.RequiredAcks(kgo.AllISRAcks()), // kgo puts it into our requests
		kgo.DialTimeout(dialTimeout),
		kgo.RequestTimeoutOverhead(requestOverhead),
		kgo.ConnIdleTimeout(idleTimeout),
		// Requests to any broker (metadata, producer id) go on to the next one. Produce requests are never repeated.
		kgo.RequestRetries(2),
		kgo.RetryBackoffFn(func(int) time.Duration { return retryPause }),
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
		return nil, fmt.Errorf("sasl mechanism %q is none of plain, scram-sha-256 and scram-sha-512", c.SASL.Mechanism)
	}
	return opts, kgo.ValidateOpts(opts...)
}

// debugLog hands on the client's messages. All are of debug level: what it warns of is in the errors of Deliver too.
type debugLog struct{ to *slog.Logger }

func (l debugLog) Level() kgo.LogLevel {
	if l.to.Enabled(context.Background(), slog.LevelDebug) {
		return kgo.LogLevelDebug
	}
	return kgo.LogLevelNone
}

func (l debugLog) Log(_ kgo.LogLevel, msg string, keyvals ...any) {
	l.to.Debug(msg, keyvals...) //nolint:sloglint // the client's words
}
