package eventbus

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// Config says where the servers are and how messages are made. Only URL is needed.
type Config struct {
	// URL is nats://host:port or tls://host:port, or several, separated by commas. It may hold user:password@ or token@.
	URL string
	// Name is what the server's monitoring calls this connection.
	Name string
	// CredentialsFile holds a user's JWT and its NKey seed, as nsc makes it. It is read at each connect.
	CredentialsFile string
	// NKeySeedFile holds an NKey seed. It is read by New and at each connect.
	NKeySeedFile string
	TLS          *tls.Config // nil: encrypted only where the URL or the server demands it
	// Stream, when not empty, is the only one that may take messages: Nats-Expected-Stream.
	Stream string
	// InboxPrefix is where acknowledgements are sent, for users who may not subscribe to the default, _INBOX.
	InboxPrefix string
	// CloudEvents makes the headers.
	CloudEvents format.CloudEvents
}

// String hides what URL may hold of secrets.
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

// GoString hides it from %#v.
func (c Config) GoString() string { return c.String() }

// LogValue hides it from logs.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

const (
	dialTimeout  = 2 * time.Second // of one server; the handshake has as long again
	writeTimeout = 5 * time.Second // after which a connection that takes no bytes is lost
	pingInterval = 5 * time.Second
	unanswered   = 2 // pings, before the connection counts as lost

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

// checkURL does not repeat what it complains of: that may hold a password.
func (c Config) checkURL() error {
	servers := c.servers()
	if len(servers) == 0 {
		return errors.New("no url: nats://host:4222")
	}
	for i, s := range servers {
		u, err := url.Parse(s)
		switch {
		case err != nil:
			return fmt.Errorf("url %d cannot be read: it is scheme://user:password@host:port, special characters in it as %%XX", i+1)
		case u.Scheme != "nats" && u.Scheme != "tls":
			return fmt.Errorf("url %d: its scheme must be nats or tls", i+1)
		case u.Hostname() == "":
			return fmt.Errorf("url %d: it has no host", i+1)
		}
	}
	return nil
}

// options are those of the client, without handlers.
func (c Config) options() ([]nats.Option, error) {
	opts := []nats.Option{
		nats.Name(c.Name),
		nats.Timeout(dialTimeout),
		nats.FlusherTimeout(writeTimeout), nats.ReconnectOnFlusherError(),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(unanswered),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.ReconnectBufSize(-1), // what cannot be sent now is not sent
	}
	if c.TLS != nil {
		opts = append(opts, nats.Secure(c.TLS))
	}
	if c.CredentialsFile != "" && c.NKeySeedFile != "" {
		return nil, errors.New("a credentials file and an nkey seed file: it can be one of them")
	}
	if c.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(c.CredentialsFile))
	}
	if c.NKeySeedFile != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.NKeySeedFile)
		if err != nil {
			return nil, fmt.Errorf("nkey seed file: %w", err)
		}
		opts = append(opts, nkey)
	}
	return opts, nil
}

// reconnectDelay is between two rounds through all servers. (The client's own jitter is not needed: connections are few.)
func reconnectDelay(round int) time.Duration {
	return min(firstReconnect<<min(max(round-1, 0), 10), maxReconnect)
}
