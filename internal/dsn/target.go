package dsn

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Target is what a connection string leads to. It holds no password.
type Target struct {
	// Address is host:port, or the path of a socket. Several are tried in their order; there are commas between them.
	Address  string
	Database string
	User     string
	// Configured says where all this was configured, such as: outbox.yaml:3; host from PGHOST.
	Configured string
}

// TargetOf reads a connection string, and what the environment of the process adds to it. place says where the connection string was
// written, such as outbox.yaml:3. The error is that of Parse.
func TargetOf(text, place string) (Target, error) {
	c, err := Parse(text)
	if err != nil {
		return Target{}, err
	}
	var addresses []string
	for _, e := range endpoints(c) {
		_, address := pgconn.NetworkAddress(e.host, e.port)
		addresses = append(addresses, address)
	}
	t := Target{Address: strings.Join(addresses, ","), Database: c.Database, User: c.User}
	if t.Database == "" { // the server takes the name of the user
		t.Database = t.User
	}
	// A password with an @ or a / that was not escaped spills over into the host or the database, and the @ behind it shows.
	if strings.Contains(text, "://") && strings.Contains(t.Address+t.Database, "@") {
		t.Address, t.Database = "***", "***"
	}
	t.Configured = strings.Join(append([]string{place}, elsewhere(text)...), "; ")
	return t, nil
}

// endpoint is a host, or the directory of a socket, with a port.
type endpoint struct {
	host string
	port uint16
}

// endpoints returns where a connection is tried, in this order and each once. pgx has each twice where TLS is optional.
func endpoints(c *pgconn.Config) []endpoint {
	all := []endpoint{{c.Host, c.Port}}
	for _, f := range c.Fallbacks {
		if e := (endpoint{f.Host, f.Port}); !slices.Contains(all, e) {
			all = append(all, e)
		}
	}
	return all
}

// Hosts returns the hosts and ports of a connection string in a form that can be compared: two connection strings that name the same ones,
// in whatever order and spelling, have the same Hosts. What the string leaves out comes from where it comes from for a connection
// (a service file, PGHOST, the default port). Names are not resolved, because the address behind a name may change. It is empty if
// the connection string cannot be read. It is stored in the ledger, so it holds nothing of a password.
func Hosts(text string) string {
	c, err := Parse(text)
	if err != nil {
		return ""
	}
	var hosts []string
	for _, e := range endpoints(c) {
		host := strings.TrimSuffix(strings.ToLower(e.host), ".") // a name with a dot at its end is the same name
		switch ip := net.ParseIP(host); {
		case filepath.IsAbs(e.host):
			host = filepath.Clean(e.host) // the directory of a socket
		case ip.IsLoopback():
			host = "localhost"
		case ip != nil:
			host = ip.String()
		}
		hosts = append(hosts, net.JoinHostPort(host, strconv.Itoa(int(e.port))))
	}
	slices.Sort(hosts)
	all := strings.Join(slices.Compact(hosts), ",")
	if strings.Contains(all, "@") { // it may be the end of a password, as in TargetOf
		return ""
	}
	return all
}

// Place returns a text such as: database "shop" on db.internal:5432.
func (t Target) Place() string { return fmt.Sprintf("database %q on %s", t.Database, t.Address) }

// String returns all that is known of the target.
func (t Target) String() string {
	return fmt.Sprintf("%s as user %q (%s)", t.Place(), t.User, t.Configured)
}

// elsewhere says where those of host, port, database and user come from that the connection string leaves out. A port that is nowhere
// is 5432, and is not told.
func elsewhere(text string) []string {
	written := writtenKeys(text)
	service := os.Getenv("PGSERVICE")
	if slices.Contains(written, "service") {
		service = "its service"
	} else if service != "" {
		service = "the service of PGSERVICE"
	}
	var out []string
	for _, part := range []struct{ key, name, variable, byDefault string }{
		{"host", "host", "PGHOST", "a local socket, or localhost"},
		{"port", "port", "PGPORT", ""},
		{"database", "database", "PGDATABASE", "that of the user's name"},
		{"user", "user", "PGUSER", "that of the operating system"},
	} {
		switch {
		case slices.Contains(written, part.key):
		case service != "": // which of the two has it, only the file of services tells
			out = append(out, fmt.Sprintf("%s from %s, %s or the default", part.name, service, part.variable))
		case os.Getenv(part.variable) != "":
			out = append(out, part.name+" from "+part.variable)
		case part.byDefault != "":
			out = append(out, fmt.Sprintf("no %s: %s", part.name, part.byDefault))
		}
	}
	return out
}

var refusedKey = regexp.MustCompile(`connection string key ("(?:[^"\\]|\\.)*") is not in ConnStringAllowedKeys`)

// writtenKeys returns which keys a connection string has itself. pgx tells it by refusing them, one after the other.
func writtenKeys(text string) []string {
	written := []string{}
	for {
		_, err := pgconn.ParseConfigWithOptions(text, pgconn.ParseConfigOptions{ConnStringAllowedKeys: written})
		if err == nil {
			return written
		}
		refused := refusedKey.FindStringSubmatch(err.Error())
		if refused == nil { // pgx refuses something else; Parse has not, so this does not happen
			return written
		}
		key, err := strconv.Unquote(refused[1])
		if err != nil || slices.Contains(written, key) {
			return written
		}
		written = append(written, key)
	}
}
