package redisstream

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Config says where Redis is and how long streams are. URL or Addresses is required.
//
//   - URL alone names one server.
//   - Addresses without Master name some nodes of a cluster. A URL adds another node.
//   - Addresses with Master name Sentinels. A URL then gives user, password, database and TLS. Its host is not used.
type Config struct {
	// URL is redis://user:password@host:port/database, or rediss:// for TLS. It may have the options db and skip_verify.
	URL       string
	Addresses []string // host:port
	Master    string   // the name of the master at the Sentinels
	// Username and Password prevail over those of the URL. They are not sent to Sentinels.
	Username string
	Password string
	// ClientName is the name that CLIENT LIST shows, if the user has the right to CLIENT SETNAME. It must not contain spaces.
	ClientName string
	// TLS is used for all connections, also to Sentinels. If it is nil, the URL decides. Without a ServerName,
	// certificates are verified against the host that is dialed.
	TLS *tls.Config
	// MaxLen, if it is above 0, is how many entries a stream keeps at least (XADD MAXLEN ~). MinIDAge, if it is above
	// 0, is how long it keeps entries at least (MINID ~), by this machine's clock. Only one of them may be set.
	MaxLen   int64
	MinIDAge time.Duration
	// ContentType becomes the field content_type of entries whose metadata name none. If it is empty, they have no such field.
	ContentType string
	// MaxMessageBytes is the largest message, with all fields. A larger one is refused permanently without a try. 0
	// means 500 MiB. The server's proto-max-bulk-len applies as well, if the user has the right to ask for it (CONFIG
	// GET).
	MaxMessageBytes int
	// Topics says whether messages go to several streams. If they do, what concerns one stream or one node of a cluster is
	// sinks.ErrTopicUnavailable, and does not count as a failure of the whole destination.
	Topics sinks.Topics
}

// String says where Redis is. It shows no password.
func (c Config) String() string {
	addresses := c.Addresses
	if u, err := url.Parse(c.URL); err == nil && u.Host != "" {
		addresses = append([]string{u.Host}, addresses...)
	}
	return "redis at " + strings.Join(addresses, ", ")
}

// GoString hides the password from %#v.
func (c Config) GoString() string { return c.String() }

const (
	dialTimeout = 5 * time.Second // for connection and TLS together
	idleTimeout = 3 * time.Minute // some clouds drop an idle connection without notice after four minutes
	bufferBytes = 128 << 10       // for each direction of a connection

	defaultMaxMessageBytes = 500 << 20 // less than the default of proto-max-bulk-len, 512 MiB
)

// opener makes the client of a lane: a *redis.Client, or a *redis.ClusterClient. The nodes of a cluster that were found away are
// asked with less patience.
type opener func(away *sinks.Away[string]) redis.UniversalClient

// opener checks the configuration. Its error joins all mistakes. They do not quote the URL, which may contain a password.
func (c *Config) opener() (opener, *redis.Options, error) {
	o, err := c.options()
	wrong := []error{err}
	bad := func(field, format string, args ...any) {
		wrong = append(wrong, sinks.FieldErrorf(field, format, args...))
	}
	if c.URL == "" && len(c.Addresses) == 0 {
		bad("url", "missing; write redis://host:6379, or addresses")
	}
	if c.Master != "" && len(c.Addresses) == 0 {
		bad("addresses", "missing; write those of the Sentinels that know the master")
	}
	if c.Master == "" && len(c.Addresses) > 0 && err == nil && o.DB != 0 {
		bad("url", "names database %d, and a cluster has database 0 only", o.DB)
	}
	if c.MaxLen < 0 {
		bad("max_len", "%d is negative", c.MaxLen)
	}
	if c.MinIDAge < 0 {
		bad("min_id_age", "%s is negative", c.MinIDAge)
	}
	if c.MaxLen > 0 && c.MinIDAge > 0 {
		bad("min_id_age", "excludes max_len: XADD takes one of them")
	}
	if c.MaxMessageBytes < 0 {
		bad("max_message_bytes", "%d is negative", c.MaxMessageBytes)
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, nil, err
	}
	addresses := c.Addresses
	switch {
	case c.Master != "":
		return func(*sinks.Away[string]) redis.UniversalClient {
			return redis.NewFailoverClient(failoverOptions(o, c.Master, addresses))
		}, o, nil
	case len(c.Addresses) > 0:
		if o.Addr != "" {
			addresses = append([]string{o.Addr}, addresses...)
		}
		return func(away *sinks.Away[string]) redis.UniversalClient {
			return redis.NewClusterClient(clusterOptions(o, addresses, away))
		}, o, nil
	}
	return func(*sinks.Away[string]) redis.UniversalClient { return redis.NewClient(o) }, o, nil
}

// options returns the options for connections.
func (c *Config) options() (*redis.Options, error) {
	from := &redis.Options{}
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		if err != nil || u.Scheme != "redis" && u.Scheme != "rediss" {
			return nil, sinks.FieldErrorf("url", "is no URL of Redis; write redis://host:6379 or rediss://host:6379, "+
				"other characters than letters and digits of a password as %%XX")
		}
		for _, name := range slices.Sorted(maps.Keys(u.Query())) {
			if name != "db" && name != "skip_verify" {
				return nil, sinks.FieldErrorf("url", "has the option %q, and only db and skip_verify are known", name)
			}
		}
		if from, err = redis.ParseURL(c.URL); err != nil {
			return nil, sinks.FieldErrorf("url", "has a database that is no number, or a skip_verify that is neither true nor false")
		}
		if from.TLSConfig != nil {
			from.TLSConfig.ServerName = "" // the nodes of a cluster have other names than the host of the URL
		}
	}
	o := &redis.Options{
		Addr: from.Addr, Username: from.Username, Password: from.Password, DB: from.DB, TLSConfig: from.TLSConfig,
		// go-redis tries nothing again: the lane delivers again what was not accepted.
		MaxRetries: -1, DialerRetries: 1,
		DialTimeout: dialTimeout, ReadTimeout: maxWait, WriteTimeout: maxWait, ContextTimeoutEnabled: true,
		ReadBufferSize: bufferBytes, WriteBufferSize: bufferBytes,
		// A lane uses one connection to a node, and a second one while a dial that it no longer waits for is going on.
		// After PoolSize failed dials the pool would dial by itself, but a client is given up after the first one.
		PoolSize: 4, PipelinePoolSize: -1, ConnMaxIdleTime: idleTimeout,
		Protocol: 2, DisableIdentity: true,
	}
	if c.ClientName != "" {
		// The name is not set by go-redis: for a user without the right to CLIENT SETNAME it would fail to connect.
		o.OnConnect = func(ctx context.Context, conn *redis.Conn) error {
			_ = conn.ClientSetName(ctx, c.ClientName).Err() // if the connection is broken, the next command fails
			return nil
		}
	}
	if c.Username != "" {
		o.Username = c.Username
	}
	if c.Password != "" {
		o.Password = c.Password
	}
	if c.TLS != nil {
		o.TLSConfig = c.TLS.Clone()
	}
	if o.TLSConfig != nil && c.Master == "" {
		o.Dialer = dialTLS(o.TLSConfig)
	}
	return o, nil
}

func clusterOptions(o *redis.Options, addresses []string, away *sinks.Away[string]) *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs: addresses, Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig, Dialer: o.Dialer, OnConnect: o.OnConnect,
		MaxRedirects: -1, MaxRetries: o.MaxRetries, DialerRetries: o.DialerRetries,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, ContextTimeoutEnabled: true,
		ReadBufferSize: o.ReadBufferSize, WriteBufferSize: o.WriteBufferSize,
		PoolSize: o.PoolSize, PipelinePoolSize: o.PipelinePoolSize, ConnMaxIdleTime: o.ConnMaxIdleTime,
		Protocol: o.Protocol, DisableIdentity: true,
		NewClient: func(o *redis.Options) *redis.Client {
			client := redis.NewClient(o)
			client.AddHook(impatience{o.Addr, away})
			return client
		},
	}
}

// impatience limits how long a node may take to answer what the client asks about the cluster. A node that never answers would
// otherwise take all the time of a Deliver when go-redis reads the map of the cluster, before it asks another node.
type impatience struct {
	address string
	away    *sinks.Away[string]
}

// DialHook implements redis.Hook.
func (impatience) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessPipelineHook implements redis.Hook.
func (impatience) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// ProcessHook implements redis.Hook.
func (i impatience) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, c redis.Cmder) error {
		if c.Name() == "cluster" {
			limit := askTimeout
			if i.away.Wait(i.address, time.Now()) > 0 {
				limit = awayTimeout
			}
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		return next(ctx, c)
	}
}

func failoverOptions(o *redis.Options, master string, sentinels []string) *redis.FailoverOptions {
	return &redis.FailoverOptions{
		MasterName: master, SentinelAddrs: sentinels,
		Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLSConfig, OnConnect: o.OnConnect,
		MaxRetries: o.MaxRetries, DialerRetries: o.DialerRetries,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, ContextTimeoutEnabled: true,
		ReadBufferSize: o.ReadBufferSize, WriteBufferSize: o.WriteBufferSize,
		PoolSize: o.PoolSize, PipelinePoolSize: o.PipelinePoolSize, ConnMaxIdleTime: o.ConnMaxIdleTime,
		Protocol: o.Protocol, DisableIdentity: true,
	}
}
