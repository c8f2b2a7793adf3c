package webhook

import (
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Config says where the receiver is and what it is sent. Only URL is required.
type Config struct {
	// URL of the receiver. If the topic of a message is a URL, which comes from the template of a route, that is used
	// instead. It must have the same scheme, host and port.
	URL string
	// Topics says whether topics, and so perhaps URLs, differ from message to message.
	Topics sinks.Topics
	// Secrets sign requests. Each request is signed with all of them: there are two while one is being replaced. A
	// secret that begins with whsec_ is the base64 of 24 to 64 bytes, as in Standard Webhooks. Of any other secret the
	// text itself is the key. Without secrets requests are not signed.
	Secrets []string
	// Headers are sent with every request. Their values are secret.
	Headers map[string]string
	// Body says what the body is: the JSON {"type","timestamp","data"} of Standard Webhooks ("envelope", the default); the
	// payload as it is ("raw"); the payload, with the event's columns as headers of CloudEvents ("cloudevents"); or a
	// CloudEvent as JSON ("cloudevents-structured").
	Body string
	// Source is the attribute source of CloudEvents, which is required for them. {aggregate_type} in it stands for that
	// of the event.
	Source string
	// ContentType is the header Content-Type, or the attribute datacontenttype, of messages whose metadata name none. If it is
	// empty, the type of the payload's column says it. The body "envelope" is always application/json.
	ContentType string
	// AllowHosts are hosts that may have internal addresses, and that may be used without TLS. An entry is a name or an
	// address. It is for one port if it names one, and for all ports otherwise.
	AllowHosts []string
	// TLS holds root certificates and client certificates. nil stands for the system's roots.
	TLS *tls.Config
	// Connections is the most requests under way at a time, of all lanes together. 0 means 16.
	Connections int
	// Rate is the most requests that are begun in a second. 0 means no limit.
	Rate float64
	// MaxRetryAfter is the longest pause that a receiver can ask for. 0 means a minute.
	MaxRetryAfter time.Duration
}

// String shows no secrets: it leaves out the secrets, the values of headers, and all of the URL except its host.
func (c Config) String() string {
	host := "an unsound URL"
	if u, err := url.Parse(c.URL); err == nil {
		host = u.Scheme + "://" + u.Host
	}
	return fmt.Sprintf("webhook to %s, body %s, %d secrets, headers %v",
		host, c.bodyName(), len(c.Secrets), slices.Sorted(maps.Keys(c.Headers)))
}

// GoString hides the same from %#v.
func (c Config) GoString() string { return c.String() }

// LogValue hides the same from logs.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

const (
	bodyRaw                   = "raw"
	bodyEnvelope              = "envelope"
	bodyCloudEvents           = "cloudevents"
	bodyCloudEventsStructured = "cloudevents-structured"

	defaultConnections   = 16
	defaultMaxRetryAfter = time.Minute

	dialTimeout = 5 * time.Second // for connection and TLS together
	// idleTimeout is shorter than that of most load balancers and servers (not than that of Node, 5 s). If both sides
	// close a connection at the same time, a request is sent twice.
	idleTimeout = 30 * time.Second

	secretPrefix = "whsec_"
)

func (c *Config) bodyName() string {
	return cmp.Or(c.Body, bodyEnvelope)
}

// reservedHeaders holds the headers that the configuration may not set, because the sink or net/http sets them.
var reservedHeaders = map[string]bool{
	"Webhook-Id": true, "Webhook-Timestamp": true, "Webhook-Signature": true, "Idempotency-Key": true,
	"X-Outbox-Attempt": true, "X-Outbox-Event-Type": true, "X-Outbox-Aggregate-Type": true, "X-Outbox-Aggregate-Id": true, "Content-Type": true, "Content-Length": true, "Traceparent": true, "Tracestate": true,
	"Host": true, "Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "Expect": true,
}

// settings is a Config that was checked and parsed.
type settings struct {
	url           *url.URL
	allowed       bool // the host of url is in AllowHosts
	keys          [][]byte
	headers       http.Header
	connections   int
	maxRetryAfter time.Duration
}

// check parses the Config. Its error joins all mistakes.
func (c *Config) check() (settings, error) {
	var mistakes []error
	bad := func(field, format string, args ...any) {
		mistakes = append(mistakes, sinks.FieldErrorf(field, format, args...))
	}
	s := settings{
		headers: make(http.Header), connections: c.Connections, maxRetryAfter: c.MaxRetryAfter,
	}
	for i, entry := range c.AllowHosts {
		if entry == "" || strings.ContainsAny(entry, "/@?#* ") {
			bad(fmt.Sprintf("allow_hosts[%d]", i), "%q is no host, nor host:port", entry)
		}
	}
	if err := s.setURL(c); err != nil {
		mistakes = append(mistakes, &sinks.FieldError{Field: "url", Err: err})
	}
	for i, secret := range c.Secrets {
		key, err := keyOf(secret)
		if err != nil {
			bad(fmt.Sprintf("secret[%d]", i), "%w", err)
		}
		s.keys = append(s.keys, key)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !isToken(name):
			bad("headers", "%q is no name of a header", name)
		case reservedHeaders[canonical] || strings.HasPrefix(canonical, "Ce-"):
			bad("headers", "%s is set by the sink itself", name)
		case s.headers[canonical] != nil:
			bad("headers", "%s is there twice", canonical)
		case !isHeaderValue(c.Headers[name]):
			bad("headers", "the value of %s has a line end or another control character", name)
		}
		s.headers[canonical] = []string{c.Headers[name]}
	}
	switch c.bodyName() {
	case bodyRaw, bodyEnvelope:
	case bodyCloudEvents, bodyCloudEventsStructured:
		if c.Source == "" {
			bad("source", "CloudEvents need one, such as /outbox/{aggregate_type}")
		}
	default:
		bad("body", "%q is none of raw, envelope, cloudevents and cloudevents-structured", c.Body)
	}
	if !isHeaderValue(c.ContentType) {
		bad("content_type", "has a line end or another control character")
	}
	switch {
	case c.Connections < 0:
		bad("connections", "%d is negative", c.Connections)
	case c.Connections == 0:
		s.connections = defaultConnections
	}
	if c.Rate < 0 || math.IsNaN(c.Rate) || math.IsInf(c.Rate, 0) {
		bad("rate", "%v is no number of events a second", c.Rate)
	}
	switch {
	case c.MaxRetryAfter < 0:
		bad("max_retry_after", "%s is negative", c.MaxRetryAfter)
	case c.MaxRetryAfter == 0:
		s.maxRetryAfter = defaultMaxRetryAfter
	}
	return s, errors.Join(mistakes...)
}

// setURL parses the URL. Its errors do not quote it, because it may contain a credential.
func (s *settings) setURL(c *Config) error {
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		return errors.New("missing")
	case err != nil:
		return errors.New("cannot be parsed")
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("its scheme must be https or http")
	case u.Hostname() == "":
		return errors.New("it has no host")
	case u.User != nil:
		return errors.New("it holds a user or a password; use headers (Authorization) instead")
	}
	u.Fragment, u.RawFragment = "", ""
	u.Host = strings.ToLower(u.Host)
	s.url, s.allowed = u, isAllowed(u, c.AllowHosts)
	if s.allowed {
		return nil
	}
	if u.Scheme != "https" {
		return fmt.Errorf("http is for hosts of allow_hosts only; use https, or add %s there", u.Hostname())
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil && isInternal(addr) {
		return fmt.Errorf("%s is an internal address; add it to allow_hosts if it is meant", addr)
	}
	return nil
}

// isToken reports whether a text can be the name of a header (RFC 9110, 5.6.2).
func isToken(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return name != ""
}

// isHeaderValue reports whether net/http sends a text as the value of a header.
func isHeaderValue(text string) bool {
	for _, c := range []byte(text) {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func isAllowed(u *url.URL, hosts []string) bool {
	for _, entry := range hosts {
		host, port, err := net.SplitHostPort(entry)
		if err != nil { // the entry has no port
			host, port = strings.Trim(entry, "[]"), ""
		}
		if strings.EqualFold(host, u.Hostname()) && (port == "" || port == portOf(u)) {
			return true
		}
	}
	return false
}

func portOf(u *url.URL) string {
	switch port := u.Port(); {
	case port != "":
		return port
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}

func keyOf(secret string) ([]byte, error) {
	encoded, isStandard := strings.CutPrefix(secret, secretPrefix)
	if !isStandard {
		if secret == "" {
			return nil, errors.New("is empty")
		}
		return []byte(secret), nil
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	switch {
	case err != nil:
		return nil, errors.New("what follows whsec_ is not base64") // the decoder's error is left out: it tells only the offset
	case len(key) < 24 || len(key) > 64:
		return nil, fmt.Errorf("whsec_ is followed by %d bytes, and Standard Webhooks asks for 24 to 64", len(key))
	}
	return key, nil
}
