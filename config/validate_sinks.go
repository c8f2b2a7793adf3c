package config

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"mime"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (v *validator) sink(path string, s *Sink) {
	if !v.isType(s.Type) {
		v.mistake(path+".type", "%s", wrongSinkType(s.Type))
		return
	}
	if !sinkName.MatchString(s.Name) {
		v.mistake(path+".name", "%q is no name for a sink: 1 to 63 letters, digits, _, . and -, the first a letter or digit", s.Name)
	}
	if s.Type == SinkComposite {
		if s.Topic != "" || s.Key != "" {
			v.mistake(path, "a composite has neither topic nor key; its members have their own")
		}
		return
	}
	if s.Backlog != "" {
		v.oneOf(path+".backlog", s.Backlog, BacklogAll)
	}
	if s.MaxRetries != nil {
		v.between(path+".max_retries", *s.MaxRetries, 0, 1_000_000)
	}
	v.template(path+".topic", s.Topic)
	if fault := topicFault(s, s.Topic); fault != "" {
		v.mistake(path+".topic", "%s", fault)
	}
	v.template(path+".key", s.Key)
	switch s.Type {
	case SinkKafka:
		v.kafka(path, s)
	case SinkRedis:
		v.redis(path, s.Redis)
	case SinkWebhook:
		v.webhook(path, s.Webhook)
	case SinkEventBus:
		v.eventBus(path, s.EventBus)
	}
}

func (v *validator) kafka(path string, s *Sink) {
	k := s.Kafka
	if k == nil || len(k.Brokers) == 0 {
		v.mistake(path+".brokers", "missing; write brokers: [host:9092]%s", v.orSet("OUTBOX_KAFKA_BROKERS"))
		return
	}
	for i, b := range k.Brokers {
		if !isHostPort(b) {
			v.mistake(fmt.Sprintf("%s.brokers[%d]", path, i), "%s is no broker; write host:9092", quoted(b))
		}
	}
	v.oneOf(path+".compression", k.Compression, "none", "gzip", "snappy", "lz4", "zstd")
	v.oneOf(path+".timestamp", k.Timestamp, "commit", "created_at")
	v.oneOf(path+".header_encoding", k.HeaderEncoding, "plain", "json")
	if len(k.Formats) == 0 {
		v.mistake(path+".format", "missing; write debezium, cloudevents or both")
	}
	for i, format := range k.Formats {
		v.oneOf(fmt.Sprintf("%s.format[%d]", path, i), format, "debezium", "cloudevents")
	}
	v.cloudEventSource(path+".source", k.Source)
	v.contentType(path+".content_type", k.ContentType)
	v.size(path+".max_message_bytes", k.MaxMessageBytes, KiB, GiB)
	v.tls(path+".tls", &k.TLS)
	v.sasl(path+".sasl", &k.SASL)
	remote := slices.ContainsFunc(k.Brokers, func(b string) bool { host, _, _ := net.SplitHostPort(b); return !isLocal(host) })
	if k.SASL.Mechanism == "plain" && !k.TLS.Enabled && remote {
		v.warn("%s: plain sends the password in clear without tls", v.names.Of(path+".sasl"))
	}
}

func (v *validator) tls(path string, t *TLS) {
	if !t.Enabled && *t != (TLS{}) {
		v.mistake(path, "has settings and is not enabled; write enabled: true, or remove them")
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		v.mistake(path, "cert_file and key_file belong together")
	}
	if t.InsecureSkipVerify {
		v.warn("%s: anybody on the way can pose as the server", v.names.Of(path+".insecure_skip_verify"))
	}
}

func (v *validator) sasl(path string, s *SASL) {
	if s.Mechanism == "" {
		if *s != (SASL{}) {
			v.mistake(path+".mechanism", "missing; write plain, scram-sha-256 or scram-sha-512")
		}
		return
	}
	v.oneOf(path+".mechanism", s.Mechanism, "plain", "scram-sha-256", "scram-sha-512")
	if s.Username == "" {
		v.mistake(path+".username", "missing")
	}
	if s.Password == "" {
		v.mistake(path+".password", "missing")
	}
}

func (v *validator) redis(path string, r *Redis) {
	switch {
	case r.URL == "" && len(r.Addresses) == 0:
		v.mistake(path+".url", "missing; write redis://host:6379%s", v.orSet("OUTBOX_REDIS_URL"))
	case r.URL != "":
		v.url(path+".url", r.URL, &r.TLS, "redis", "rediss")
	}
	for i, a := range r.Addresses {
		if !isHostPort(a) {
			v.mistake(fmt.Sprintf("%s.addresses[%d]", path, i), "%s is no address; write host:6379", quoted(a))
		}
	}
	if r.Master != "" && len(r.Addresses) == 0 {
		v.mistake(path+".addresses", "missing; write those of the Sentinels that know the master")
	}
	if r.Username != "" && r.Password == "" {
		v.mistake(path+".password", "missing")
	}
	if r.MaxLen < 0 {
		v.mistake(path+".max_len", "%d is negative; 0 keeps all", r.MaxLen)
	}
	if r.MinIDAge < 0 {
		v.mistake(path+".min_id_age", "%v is negative; 0s keeps all", r.MinIDAge)
	}
	if r.MaxLen > 0 && r.MinIDAge > 0 {
		v.mistake(path, "max_len and min_id_age exclude each other")
	}
	if strings.ContainsFunc(r.ClientName, func(c rune) bool { return c <= ' ' || c > '~' }) {
		v.mistake(path+".client_name", "%q has a character that Redis does not take there: spaces, control characters, others than ASCII", r.ClientName)
	}
	v.size(path+".max_message_bytes", r.MaxMessageBytes, KiB, GiB)
	v.contentType(path+".content_type", r.ContentType)
	v.tls(path+".tls", &r.TLS)
}

// fieldInURL finds a field that a topic may hold.
var fieldInURL = regexp.MustCompile(`\{(` + strings.Join(templateFields, "|") + `)\}`)

func (v *validator) webhook(path string, w *Webhook) {
	if w.URL == "" {
		v.mistake(path+".url", "missing; write https://host/path%s", v.orSet("OUTBOX_WEBHOOK_URL"))
	} else if u := v.url(path+".url", w.URL, &w.TLS, "https", "http"); u != nil && u.Scheme == "http" {
		if !isAllowed(u, w.AllowHosts) {
			variable := " (OUTBOX_WEBHOOK_ALLOW_HOSTS)"
			if v.options.NoVariables {
				variable = ""
			}
			v.mistake(path+".url", "http sends events and signatures in clear; write https, or name the host in allow_hosts%s", variable)
		}
		if w.TLS != (TLS{}) { // with redis:// and nats:// it does have one: their clients insist on TLS then
			v.mistake(path+".tls", "has no effect on a url with http, which goes in clear; write https there, or remove tls")
		}
	}
	if field := fieldInURL.FindString(string(w.URL)); field != "" {
		v.warn("%s has %s, which is sent as it stands: only topic is a template; write the URL with its fields there", v.names.Of(path+".url"), field)
	}
	for i, h := range w.AllowHosts {
		if !isHost(h) && !isHostPort(h) {
			v.mistake(fmt.Sprintf("%s.allow_hosts[%d]", path, i), "%s is no host, nor host:port", quoted(h))
		}
	}
	for i, s := range w.Secrets {
		if s == "" {
			v.mistake(fmt.Sprintf("%s.secret[%d]", path, i), "is empty")
		}
		if lacksPrefix(string(s)) {
			v.warn("%s looks like base64 without the whsec_ with which Standard Webhooks mark it, so its text itself is the key; "+
				"write whsec_ before it if the receiver has a whsec_… or decodes the base64", v.names.Of(fmt.Sprintf("%s.secret[%d]", path, i)))
		}
	}
	if len(w.Secrets) == 0 {
		v.warn("%s is missing: receivers cannot tell our events from others'", v.names.Of(path+".secret"))
	}
	for _, name := range sortedKeys(w.Headers) { // one that is none may hold the value as well
		if begin := headerName.FindString(name); begin != name {
			v.mistake(path+".headers", "%q is no name of a header; write {Name: value}", begin+"…")
		}
	}
	v.oneOf(path+".body", w.Body, "raw", "envelope", "cloudevents", "cloudevents-structured")
	v.between(path+".connections", w.Connections, 1, 1000)
	v.between(path+".rate", w.Rate, 0, 1_000_000)
	v.lasts(path+".max_retry_after", w.MaxRetryAfter, time.Second, 24*time.Hour)
	v.cloudEventSource(path+".source", w.Source)
	v.contentType(path+".content_type", w.ContentType)
	if w.ContentType != "" && w.Body == "envelope" {
		v.mistake(path+".content_type", "has no effect with body: envelope, which is application/json; remove it, or choose another body")
	}
	v.tls(path+".tls", &w.TLS)
}

// lacksPrefix reports whether a webhook's secret is the base64 of as many bytes as Standard Webhooks ask for. Most hexadecimal digits
// are that too, by chance, and are meant as they are.
func lacksPrefix(secret string) bool {
	key, err := base64.StdEncoding.DecodeString(secret)
	_, notHex := hex.DecodeString(secret)
	return err == nil && notHex != nil && len(key) >= 24 && len(key) <= 64
}

func (v *validator) eventBus(path string, e *EventBus) {
	if e.URL == "" {
		v.mistake(path+".url", "missing; write nats://host:4222%s", v.orSet("OUTBOX_EVENT_BUS_URL"))
	}
	for _, u := range e.URL.list() {
		v.url(path+".url", u, &e.TLS, "nats", "tls")
	}
	if e.CredentialsFile != "" && e.NKeyFile != "" {
		v.mistake(path, "credentials_file and nkey_file exclude each other")
	}
	v.cloudEventSource(path+".source", e.Source)
	v.contentType(path+".content_type", e.ContentType)
	v.tls(path+".tls", &e.TLS)
}

// url reads an address. Of what is wrong with it nothing is quoted: it may be a password.
func (v *validator) url(path string, address URL, t *TLS, schemes ...string) *url.URL {
	u := parseURL(address)
	if u == nil {
		v.mistake(path, "is no URL; write %s://host, other characters than letters and digits of a password as %%XX", schemes[0])
		return nil
	}
	if !slices.Contains(schemes, u.Scheme) {
		v.mistake(path, "has the scheme %q; write %s", u.Scheme, strings.Join(schemes, ", "))
		return nil
	}
	if strings.HasSuffix(u.Host, ":") || u.Port() != "" && !isPort(u.Port()) {
		v.mistake(path, "has a port that nothing can listen on; write one between 1 and 65535")
		return nil
	}
	encrypted := t.Enabled || slices.Contains([]string{"rediss", "https", "tls"}, u.Scheme)
	if _, password := u.User.Password(); (password || u.User != nil) && !encrypted && !isLocal(u.Hostname()) {
		v.warn("%s: user and password cross the network in clear", v.names.Of(path))
	}
	return u
}

// parseURL is nil for what is no URL. An @ behind the host is what a password looks like that should have been escaped:
// what seems to be the host is part of it then.
func parseURL(address URL) *url.URL {
	u, err := url.Parse(string(address))
	if err != nil || u.Host == "" || strings.Contains(u.Host+u.Path+u.RawQuery+u.Fragment, "@") {
		return nil
	}
	return u
}

// quoted is an address as a mistake tells it: what stands before an @ may be a password.
func quoted(address string) string {
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		address = mask + address[at:]
	}
	return strconv.Quote(address)
}

// cloudEventSource is empty for the default.
func (v *validator) cloudEventSource(path, s string) {
	if _, err := url.Parse(strings.ReplaceAll(s, "{aggregate_type}", "x")); err != nil || strings.ContainsAny(strings.ReplaceAll(s, "{aggregate_type}", ""), "{} ") {
		v.mistake(path, "%q is no URI; write such as /outbox/shop/{aggregate_type}, which is the only field here", s)
	}
}

// contentType is empty where the type of the payload's column says it.
func (v *validator) contentType(path, s string) {
	if s == "" {
		return
	}
	if media, _, err := mime.ParseMediaType(s); err != nil || !strings.Contains(media, "/") ||
		strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		v.mistake(path, "%q is no media type; write such as application/json or text/plain; charset=utf-8", s)
	}
}

// sinks checks each, and how they fit together.
func (v *validator) sinks(sinks []Sink) {
	names := map[string]int{}
	for i := range sinks {
		path := fmt.Sprintf("sinks[%d]", i)
		s := &sinks[i]
		if s.Abandoned {
			v.abandoned(path, s)
			continue
		}
		if first, taken := names[s.Name]; taken {
			v.mistake(path+".name", "%q is the name of %s already; the ledger knows a sink by its name", s.Name, v.nameOf(first))
		} else if s.Name != "" { // one without a name has a wrong type, too
			names[s.Name] = i
		}
		v.sink(path, s)
	}
	v.renames(sinks, names)
	memberOf := map[string]int{}
	for i, s := range sinks {
		if s.Composite == nil {
			continue
		}
		path := fmt.Sprintf("sinks[%d]", i)
		v.oneOf(path+".strategy", s.Composite.Strategy, StrategyAll, StrategyAny, StrategyPrimary)
		if len(s.Composite.Members) < 2 {
			v.mistake(path+".members", "names fewer than two sinks; write members: [a, b]%s", v.orSet("OUTBOX_COMPOSITE_MEMBERS"))
		}
		for j, name := range s.Composite.Members {
			at := fmt.Sprintf("%s.members[%d]", path, j)
			member, known := names[name]
			first, taken := memberOf[name]
			switch {
			case !known:
				v.mistake(at, "%q is no sink; these are: %s", name, strings.Join(sortedKeys(names), ", "))
			case sinks[member].Composite != nil:
				v.mistake(at, "%q is a composite itself; name its members", name)
			case taken:
				v.mistake(at, "%q is a member of %s already", name, v.nameOf(first))
			default:
				memberOf[name] = i
			}
		}
	}
}

// nameOf returns what the author calls a sink.
func (v *validator) nameOf(sink int) string { return v.names.Of(fmt.Sprintf("sinks[%d]", sink)) }

// abandoned is all that such a sink can be wrong about.
func (v *validator) abandoned(path string, s *Sink) {
	if !sinkName.MatchString(s.Name) {
		v.mistake(path+".name", "%q is no name for a sink; write the one that it had", s.Name)
	}
	if s.RenamedFrom != "" {
		v.mistake(path+".renamed_from", "a sink is renamed or abandoned, not both")
	}
}

// renames: a name leads to one sink, and none that is still in use.
func (v *validator) renames(sinks []Sink, names map[string]int) {
	from := map[string]int{}
	for i := range sinks {
		old := sinks[i].RenamedFrom
		if old == "" {
			continue
		}
		path := fmt.Sprintf("sinks[%d].renamed_from", i)
		if other, used := names[old]; used {
			v.mistake(path, "%q is the name of %s: its parked events are its own", old, v.nameOf(other))
		} else if first, taken := from[old]; taken {
			v.mistake(path, "%q became %s already", old, v.nameOf(first))
		}
		from[old] = i
	}
}

func (v *validator) routes(c *Config) {
	byName := map[string]*Sink{}
	inside := map[string]string{}
	for i := range c.Sinks {
		s := &c.Sinks[i]
		if s.Abandoned || s.Name == "" {
			continue
		}
		byName[s.Name] = s
		if s.Composite != nil {
			for _, m := range s.Composite.Members {
				inside[m] = s.Name
			}
		}
	}
	for i, r := range c.Routes {
		path := fmt.Sprintf("routes[%d]", i)
		if len(r.Sinks) == 0 {
			v.warn("%s names no sinks: what it matches is discarded", v.names.Of(path))
		}
		seen := map[string]bool{}
		for j, name := range r.Sinks {
			at := fmt.Sprintf("%s.sinks[%d]", path, j)
			s := byName[name]
			switch {
			case s == nil:
				v.mistake(at, "%q is no sink; these are: %s", name, strings.Join(sortedKeys(byName), ", "))
			case inside[name] != "":
				v.mistake(at, "%q is a member of %q; name that", name, inside[name])
			case seen[name]:
				v.mistake(at, "%q stands here twice", name)
			case s.Composite != nil && s.Composite.Strategy == StrategyAny && (r.Topic != "" || r.Key != ""):
				v.mistake(at, "the members of %q have topics and keys of their own; remove topic and key of this route", name)
			}
			seen[name] = true
		}
		if r.Topic != "" {
			v.template(path+".topic", r.Topic)
			v.routeTopic(path+".topic", &r, byName)
		}
		if r.Key != "" {
			v.template(path+".key", r.Key)
		}
		if i < len(c.Routes)-1 && len(r.Match.AggregateType)+len(r.Match.EventType)+len(r.Match.TenantID) == 0 {
			v.mistake(path+".match", "matches every event, so that no route behind it is ever taken; move it to the end")
		}
	}
}

// templateFields are the fields of an event that a topic or key may hold; router expands them.
var templateFields = []string{
	"id", "aggregate_type", "aggregate_id", "event_type", "event_version", "tenant_id", "correlation_id", "causation_id",
}

var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{0,60}")

func (v *validator) template(path, s string) {
	if s == "" {
		v.mistake(path, "must not be empty")
	}
	for _, f := range field.FindAllString(s, -1) {
		if name := f[1 : len(f)-1]; !slices.Contains(templateFields, name) {
			v.mistake(path, "%s is no field of an event; these are: %s", f, strings.Join(templateFields, ", "))
		}
	}
	if strings.ContainsAny(field.ReplaceAllString(s, ""), "{}") {
		v.mistake(path, "%s has a brace without its other", quotedTopic(s))
	}
}
