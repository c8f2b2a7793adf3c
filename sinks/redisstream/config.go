package redisstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Config says where Redis is and how streams are kept. URL or Addresses are needed.
//
//   - URL alone is one server.
//   - Addresses without Master are nodes of a cluster, some of them; a URL adds one more.
//   - Addresses with Master are Sentinels; a URL then gives user, password, database and TLS, and its host is not used.
type Config struct {
	// URL is redis://user:password@host:port/database, or rediss:// for TLS. Its options db and skip_verify are known.
	URL       string
	Addresses []string // host:port
	Master    string   // the name by which the Sentinels know it
	// Username and Password, where they are set, come before those of the URL. Sentinels are told neither.
	Username string
	Password string
	// ClientName is what CLIENT LIST shows, if the user has the right to CLIENT SETNAME; no spaces.
	ClientName string
	// TLS is used as it is, Sentinels included; nil leaves it to the URL. Without a ServerName, certificates are verified
	// against the host that is dialed.
	TLS *tls.Config
	// MaxLen, when above 0, is how many entries a stream keeps at least (XADD MAXLEN ~), MinIDAge how long it keeps
	// them at least (MINID ~), by this machine's clock. Not both.
	MaxLen   int64
	MinIDAge time.Duration
	// MaxMessageBytes: a message that is larger, with all fields, is permanently refused without a try. 0 means 500 MiB. What
	// the server says of proto-max-bulk-len holds besides, if the user may ask for it (CONFIG GET).
	MaxMessageBytes int
}

// String tells where Redis is, and no password.
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
	dialTimeout = 5 * time.Second // TLS included
	idleTimeout = 3 * time.Minute // below the four minutes after which some clouds forget a connection silently
	bufferBytes = 128 << 10       // for each direction of a connection

	defaultMaxMessageBytes = 500 << 20 // below proto-max-bulk-len's default, 512 MiB
)

// opener makes the client of one lane: a *redis.Client, or a *redis.ClusterClient.
type opener func() redis.UniversalClient

// opener checks the configuration. Errors quote nothing of the URL, which may hold a password.
func (c *Config) opener() (opener, *redis.Options, error) {
	if c.URL == "" && len(c.Addresses) == 0 {
		return nil, nil, errors.New("neither URL nor addresses")
	}
	if c.Master != "" && len(c.Addresses) == 0 {
		return nil, nil, errors.New("no addresses of the Sentinels that know the master")
	}
	if c.MaxLen < 0 || c.MinIDAge < 0 || c.MaxMessageBytes < 0 {
		return nil, nil, errors.New("max len, min id age and max message bytes cannot be negative")
	}
	if c.MaxLen > 0 && c.MinIDAge > 0 {
		return nil, nil, errors.New("max len and min id age exclude each other: XADD takes one of them")
	}
	o, err := c.options()
	if err != nil {
		return nil, nil, err
	}
	addresses := c.Addresses
	switch {
	case c.Master != "":
		return func() redis.UniversalClient { return redis.NewFailoverClient(failoverOptions(o, c.Master, addresses)) }, o, nil
	case len(c.Addresses) > 0:
		if o.DB != 0 {
			return nil, nil, errors.New("a cluster has database 0 only")
		}
		if o.Addr != "" {
			addresses = append([]string{o.Addr}, addresses...)
		}
		return func() redis.UniversalClient { return redis.NewClusterClient(clusterOptions(o, addresses)) }, o, nil
	}
	return func() redis.UniversalClient { return redis.NewClient(o) }, o, nil
}

// options are those of a connection.
func (c *Config) options() (*redis.Options, error) {
	from := &redis.Options{}
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		if err != nil || u.Scheme != "redis" && u.Scheme != "rediss" {
			return nil, errors.New("the URL is none: write redis://host:6379 or rediss://host:6379, " +
				"other characters than letters and digits of a password as %XX")
		}
		for _, name := range slices.Sorted(maps.Keys(u.Query())) {
			if name != "db" && name != "skip_verify" {
				return nil, fmt.Errorf("the URL's option %q is not known, only db and skip_verify are", name)
			}
		}
		if from, err = redis.ParseURL(c.URL); err != nil {
			return nil, errors.New("the URL's database is no number, or skip_verify is neither true nor false")
		}
		if from.TLSConfig != nil {
			from.TLSConfig.ServerName = "" // nodes of a cluster have other names
		}
	}
	o := &redis.Options{
		Addr: from.Addr, Username: from.Username, Password: from.Password, DB: from.DB, TLSConfig: from.TLSConfig,
		// Nothing is tried again: what is not accepted comes back from the lane.
		MaxRetries: -1, DialerRetries: 1,
		DialTimeout: dialTimeout, ReadTimeout: maxWait, WriteTimeout: maxWait, ContextTimeoutEnabled: true,
		ReadBufferSize: bufferBytes, WriteBufferSize: bufferBytes,
		// A lane has one connection (to a node), and one more while a dial that nobody waits for any more is going on.
		// After that many failed dials the pool would begin to dial by itself; a client with one is given up before.
		PoolSize: 4, PipelinePoolSize: -1, ConnMaxIdleTime: idleTimeout,
		Protocol: 2, DisableIdentity: true,
	}
	if c.ClientName != "" {
		// Not as an option: go-redis would take the user for one without access who may not CLIENT SETNAME.
		o.OnConnect = func(ctx context.Context, conn *redis.Conn) error {
			_ = conn.ClientSetName(ctx, c.ClientName).Err() // a connection that broke shows in what comes next
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

func clusterOptions(o *redis.Options, addresses []string) *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs: addresses, Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig, Dialer: o.Dialer, OnConnect: o.OnConnect,
		MaxRedirects: -1, MaxRetries: o.MaxRetries, DialerRetries: o.DialerRetries,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, ContextTimeoutEnabled: true,
		ReadBufferSize: o.ReadBufferSize, WriteBufferSize: o.WriteBufferSize,
		PoolSize: o.PoolSize, PipelinePoolSize: o.PipelinePoolSize, ConnMaxIdleTime: o.ConnMaxIdleTime,
		Protocol: o.Protocol, DisableIdentity: true,
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
