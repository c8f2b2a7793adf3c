package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const mask = "***"

// Secret prints as *** wherever it is printed, marshalled or logged; string(s) reveals it.
type Secret string

// String masks the secret, and tells an empty one.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// Format masks the secret for every verb; without it %d would print the value.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText masks the secret in YAML and JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue masks the secret in logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// DSN is a PostgreSQL connection string. It prints what is known to be no secret; string(d) reveals it.
type DSN string

// shownParameters are those whose values are no secrets. Of any other, a password's part that was split off by a character that
// should have been escaped among them, not even the name is shown.
var shownParameters = map[string]bool{
	"host": true, "hostaddr": true, "port": true, "dbname": true, "database": true, "user": true, "application_name": true,
	"connect_timeout": true, "target_session_attrs": true, "channel_binding": true, "gssencmode": true, "krbsrvname": true,
	"sslmode": true, "sslnegotiation": true, "sslrootcert": true, "sslcert": true, "sslkey": true, "sslsni": true, "ssl_min_protocol_version": true,
	"passfile": true, "service": true, "servicefile": true, "load_balance_hosts": true, "min_protocol_version": true, "max_protocol_version": true,
}

// hiddenParameters are those of which only the name is shown.
var hiddenParameters = []string{"password", "sslpassword", "options", "search_path", "statement_timeout", "lock_timeout", "replication"}

// String masks what may be a secret. What it cannot tell apart it masks as a whole.
func (d DSN) String() string {
	s := string(d)
	switch {
	case s == "":
		return ""
	case strings.HasPrefix(s, "postgres://"), strings.HasPrefix(s, "postgresql://"):
		return maskURL(s)
	case keyValues.MatchString(s):
		return keyValue.ReplaceAllStringFunc(s, func(pair string) string {
			key, _, _ := strings.Cut(pair, "=")
			return maskPair(pair, strings.TrimSpace(key), key)
		})
	}
	return mask
}

// maskPair returns the text that is shown for a pair of a connection string. key is the decoded key, written is the key as the
// user wrote it.
func maskPair(pair, key, written string) string {
	switch {
	case shownParameters[key]:
		return pair
	case slices.Contains(hiddenParameters, key):
		return written + "=" + mask
	}
	return mask
}

func maskURL(s string) string {
	u, err := url.Parse(s)
	// A password with an unescaped / or ? spills over into what follows it, and the @ behind it shows.
	if err != nil || strings.Contains(u.Host+u.Path+u.RawQuery+u.Fragment, "@") {
		return mask
	}
	user := ""
	if u.User != nil {
		user = url.User(u.User.Username()).String()
		if _, ok := u.User.Password(); ok {
			user += ":" + mask
		}
		user += "@"
	}
	query := ""
	if u.RawQuery != "" {
		pairs := strings.Split(u.RawQuery, "&")
		for i, pair := range pairs {
			key, _, _ := strings.Cut(pair, "=")
			name, err := url.QueryUnescape(key)
			if err != nil {
				name = ""
			}
			pairs[i] = maskPair(pair, name, key)
		}
		query = "?" + strings.Join(pairs, "&")
	}
	return u.Scheme + "://" + user + u.Host + u.EscapedPath() + query
}

const pairPattern = `\w+\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)`

var (
	keyValue  = regexp.MustCompile(pairPattern)
	keyValues = regexp.MustCompile(`^\s*(?:` + pairPattern + `\s*)+$`)
)

// Format masks the passwords for every verb.
func (d DSN) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, d.String()) }

// MarshalText masks the passwords in YAML and JSON.
func (d DSN) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// LogValue masks the passwords in logs.
func (d DSN) LogValue() slog.Value { return slog.StringValue(d.String()) }

// trim takes away what stands around a value by accident: spaces and newlines, of which secrets often have one at the
// end, a byte order mark, and characters of no width that were copied along.
func trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || r == '\ufeff' || r == '\u200b' || r == '\u2060'
	})
}

// Clean also takes away one pair of quotes around a value, which docker's --env-file and many secret stores keep. It is
// for values that cannot begin and end with a quote themselves: connection strings, addresses, and our own variables.
func Clean(s string) string {
	s = trim(s)
	if n := len(s); n >= 2 && s[0] == s[n-1] && (s[0] == '"' || s[0] == '\'') {
		s = trim(s[1 : n-1])
	}
	return s
}

// URL is an address, or several with commas between them, that may hold credentials. It prints without them; string(u)
// reveals it.
type URL string

// list are its addresses. A comma that does not begin another one belongs to the one before.
func (u URL) list() (all []URL) {
	if u == "" {
		return nil
	}
	for part := range strings.SplitSeq(string(u), ",") {
		if !strings.Contains(part, "://") {
			return []URL{u}
		}
		all = append(all, URL(strings.TrimSpace(part)))
	}
	return all
}

// String hides user, password, the values of the query, and the path of http and https, as for many receivers that is
// the secret. What it cannot tell apart it masks as a whole.
func (u URL) String() string {
	var texts []string
	for _, one := range u.list() {
		texts = append(texts, one.masked())
	}
	return strings.Join(texts, ",")
}

func (u URL) masked() string {
	parsed, err := url.Parse(string(u))
	// As in maskURL: a password that spills over shows by its @.
	if err != nil || parsed.Host == "" || strings.Contains(parsed.Host+parsed.Path+parsed.RawQuery+parsed.Fragment, "@") {
		return mask
	}
	user, query := "", ""
	if parsed.User != nil { // for some servers the user alone is a token
		user = mask + "@"
	}
	if parsed.RawQuery != "" {
		pairs := strings.Split(parsed.RawQuery, "&")
		for i, pair := range pairs {
			key, _, _ := strings.Cut(pair, "=")
			pairs[i] = key + "=" + mask
		}
		query = "?" + strings.Join(pairs, "&")
	}
	path := parsed.EscapedPath()
	if strings.HasPrefix(parsed.Scheme, "http") && len(path) > 1 {
		path = "/" + mask
	}
	return parsed.Scheme + "://" + user + parsed.Host + path + query
}

// Format masks for every verb.
func (u URL) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, u.String()) }

// MarshalText masks in YAML and JSON.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// LogValue masks in logs.
func (u URL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// ShownTemplate is a topic or key as it may be shown and kept: one that is a URL, of a webhook, as a URL is.
func ShownTemplate(s string) string {
	if strings.Contains(s, "://") {
		return URL(s).String()
	}
	return s
}

// Bytes is a size, written as 64KiB, 32MiB or 1GiB; a bare number counts bytes.
type Bytes int64

// The units of Bytes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

var byteUnits = []struct {
	name string
	size Bytes
}{{"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// String writes the size in the largest unit that divides it.
func (b Bytes) String() string {
	for _, u := range byteUnits {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return "0B"
}

// MarshalText writes the size as String does.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

func parseBytes(s string) (Bytes, error) {
	number, unit := s, Bytes(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || Bytes(n) > (1<<63-1)/unit {
		return 0, errors.New("is no size; write 64KiB, 32MiB or 1GiB")
	}
	return Bytes(n) * unit, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("is no duration; write 500ms, 30s or 5m")
	}
	return d, nil
}
