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
	// Timestamp of a record is the time of the commit ("commit", the default) or the event's own ("created_at").
	Timestamp string
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

	timestampCommit    = "commit"
	timestampCreatedAt = "created_at"
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
