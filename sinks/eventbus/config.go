package eventbus

import (
	"crypto/tls"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// Config says where the servers are and how messages are made. Only URL is required.
type Config struct {
	// URL is nats://host:port or tls://host:port, or several of these with commas between them. It may contain
	// user:password@ or token@.
	URL string
	// Name is the name of the connection in the monitoring of the server.
	Name string
	// CredentialsFile holds the JWT of a user and its NKey seed, in the format of nsc. It is read at each connect.
	CredentialsFile string
	// NKeySeedFile holds an NKey seed. It is read by New and at each connect.
	NKeySeedFile string
	TLS          *tls.Config // nil uses TLS only if the URL or the server demands it
	// Stream, if it is set, is the only stream that may take messages. It is sent as Nats-Expected-Stream.
	Stream string
	// InboxPrefix begins the subjects to which acknowledgements are sent. Set it for users who may not subscribe to the
	// default, _INBOX.
	InboxPrefix string
	// Topics says whether the subjects of messages differ.
	Topics sinks.Topics
	// CloudEvents makes the headers of messages.
	CloudEvents format.CloudEvents
}

// String hides the secrets that URL may contain.
func (c Config) String() string {
	var servers []string
	for _, s := range c.servers() {
		u, err := url.Parse(s)
		if err != nil {
			servers = append(servers, "?")
			continue
		}
		servers = append(servers, u.Scheme+"://"+u.Host)
	}
	return strings.Join(servers, ",")
}

// GoString hides them from %#v.
func (c Config) GoString() string { return c.String() }

// LogValue hides them from logs.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

const (
	dialTimeout  = 2 * time.Second // for connecting to one server, and again for the handshake
	writeTimeout = 5 * time.Second // a connection that takes no bytes for this long is lost
	pingInterval = 5 * time.Second
	unanswered   = 2 // how many pings may have no answer before the connection counts as lost

	firstReconnect = 100 * time.Millisecond
	maxReconnect   = 2 * time.Second
)

func (c Config) servers() (all []string) {
	for s := range strings.SplitSeq(c.URL, ",") {
		if s = strings.TrimSpace(s); s != "" {
			all = append(all, s)
		}
	}
	return all
}

// checkURL checks the URL. Its errors do not quote it, because it may contain a password.
func (c Config) checkURL() error {
	servers := c.servers()
	if len(servers) == 0 {
		return sinks.FieldErrorf("url", "missing; write nats://host:4222")
	}
	for i, s := range servers {
		u, err := url.Parse(s)
		switch {
		case err != nil:
			return sinks.FieldErrorf("url", "server %d cannot be read: it is scheme://user:password@host:port, special characters in it as %%XX", i+1)
		case u.Scheme != "nats" && u.Scheme != "tls":
			return sinks.FieldErrorf("url", "server %d: its scheme must be nats or tls", i+1)
		case u.Hostname() == "":
			return sinks.FieldErrorf("url", "server %d: it has no host", i+1)
		}
	}
	return nil
}

// options returns the options for the client, without handlers.
func (c Config) options() ([]nats.Option, error) {
	opts := []nats.Option{
		nats.Name(c.Name),
		nats.Timeout(dialTimeout),
		nats.FlusherTimeout(writeTimeout), nats.ReconnectOnFlusherError(),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(unanswered),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.ReconnectBufSize(-1), // buffer nothing while there is no connection
	}
	if c.TLS != nil {
		opts = append(opts, nats.Secure(c.TLS))
	}
	if c.CredentialsFile != "" && c.NKeySeedFile != "" {
		return nil, sinks.FieldErrorf("nkey_file", "excludes credentials_file; write one of them")
	}
	if c.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(c.CredentialsFile))
	}
	if c.NKeySeedFile != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.NKeySeedFile)
		if err != nil {
			return nil, &sinks.FieldError{Field: "nkey_file", Err: err}
		}
		opts = append(opts, nkey)
	}
	return opts, nil
}

// reconnectDelay returns how long the client waits between two rounds through all servers. (There are so few connections
// that the client's own jitter is not needed.)
func reconnectDelay(round int) time.Duration {
	return min(firstReconnect<<min(max(round-1, 0), 10), maxReconnect)
}
