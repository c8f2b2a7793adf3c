// Package dsn reads connection strings of PostgreSQL. Every package of ours reads them with Parse, so that "validate" finds the
// mistakes for which "run" would be refused.
package dsn

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5/pgconn"
)

// urlForm is how a connection string is written, for messages.
const urlForm = "postgres://user:password@host:5432/database?sslmode=verify-full" //nolint:gosec // the password of nobody

var schemePattern = regexp.MustCompile(`^\s*([A-Za-z][A-Za-z0-9+.-]{0,40}):`)

// Parse reads a connection string as pgx does, and refuses what pgx would hand on to a server that does not know it either.
// Its error joins one for each thing that is wrong. None of them repeats a value, because any part of a connection string may
// be a password that was not escaped.
func Parse(text string) (*pgconn.Config, error) {
	if m := schemePattern.FindStringSubmatch(text); m != nil {
		switch s := strings.ToLower(m[1]); {
		case s == "jdbc":
			return nil, errors.New("is a JDBC URL; write " + urlForm)
		case s != "postgres" && s != "postgresql" && strings.Contains(text, "://"):
			return nil, fmt.Errorf("begins with %s:// instead of postgres://; write %s", m[1], urlForm)
		}
	}
	config, err := pgconn.ParseConfig(text)
	if err != nil {
		return nil, cause(err)
	}
	errs := broken(text, config)
	for _, name := range sorted(config.RuntimeParams) {
		if hint, ok := foreign(name); ok {
			errs = append(errs, fmt.Errorf("has the parameter %s, which no PostgreSQL server takes; remove it%s", name, hint))
		}
	}
	return config, errors.Join(errs...)
}

// broken finds line breaks within a part of the connection string, such as the one at the end of a file that holds a password. A
// line break that is meant can be written as %XX.
func broken(text string, config *pgconn.Config) (errs []error) {
	if !strings.ContainsFunc(text, unicode.IsControl) {
		return nil
	}
	for _, part := range []struct{ name, value string }{
		{"host", config.Host}, {"user", config.User}, {"password", config.Password}, {"database", config.Database},
	} {
		if strings.ContainsFunc(part.value, unicode.IsControl) {
			errs = append(errs, fmt.Errorf("has a line break or another control character in its %s; remove it, or write it as %%XX", part.name))
		}
	}
	return errs
}

// cause returns what pgx finds wrong with a connection string, without the parts that pgx quotes.
func cause(err error) error {
	const written = "write " + urlForm + ", other characters than letters and digits of the password as %XX"
	why := errors.Unwrap(err)
	switch {
	case why == nil && strings.HasSuffix(err.Error(), ": invalid port"): // the port, or a part of a password that looks like one
		return errors.New("is no connection string that PostgreSQL understands: its port is not within 1 and 65535; " + written)
	case why == nil || strings.ContainsAny(why.Error(), "\"'`"):
		return errors.New("is no connection string that PostgreSQL understands: " + written)
	case why.Error() == "invalid keyword/value": // a text without "="
		return fmt.Errorf("is no connection string that PostgreSQL understands: %w; write %s", why, urlForm)
	}
	return fmt.Errorf("is no connection string that PostgreSQL understands: %w", why)
}

func sorted(params map[string]string) []string {
	names := make([]string, 0, len(params))
	for name := range params {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// foreign reports whether a parameter is one of some client (another one, or a relative of pgx), which PostgreSQL does not know.
// hint says what there is instead, if anything.
func foreign(name string) (hint string, ok bool) {
	lower := strings.ToLower(name)
	if strings.HasPrefix(lower, "pool_") {
		return " (source.max_connections says how many connections there may be)", true
	}
	hint, ok = clientParameters[lower]
	return hint, ok
}

const (
	inSchema  = " (source.table and source.ledger_schema name the schemas)"
	byItself  = " (the connector asks for replication itself)"
	viaPooler = " (the connector needs a direct connection, see docs/roles.md#poolers)"
)

// clientParameters are parameters of clients that are often found in connection strings, and that PostgreSQL does not know. If a
// parameter is missing here, the server refuses it. The names are in lower case, and the hints begin with a space.
var clientParameters = map[string]string{
	// pgx
	"default_query_exec_mode": viaPooler, "statement_cache_capacity": "", "description_cache_capacity": "",
	// Schemas, by Prisma, JDBC and others
	"schema": inSchema, "currentschema": inSchema, "schemas": inSchema,
	"replication": byItself,
	// Prisma
	"pgbouncer": viaPooler, "connection_limit": " (source.max_connections says how many connections there may be)", "pool_timeout": "",
	"socket_timeout": "", "sslaccept": "", "sslidentity": "",
	// JDBC
	"ssl": " (sslmode says it)", "preparethreshold": "", "rewritebatchedinserts": "", "applicationname": " (application_name is its name here)",
	"sockettimeout": "", "logintimeout": " (connect_timeout is its name here)", "connecttimeout": " (connect_timeout is its name here)",
	"tcpkeepalive": "", "stringtype": "", "targetservertype": " (target_session_attrs is its name here)", "loadbalancehosts": "",
	"sslfactory": "", "autosave": "", "binarytransfer": "",
	// lib/pq, libpq, asyncpg, Npgsql
	"binary_parameters": "", "disable_prepared_binary_result": "", "hostaddr": "", "keepalives": "", "keepalives_idle": "", "keepalives_interval": "",
	"keepalives_count": "", "gssencmode": "", "requirepeer": "", "sslcompression": "", "sslcrl": "", "sslcrldir": "", "requiressl": "",
	"load_balance_hosts": "", "fallback_application_name": " (application_name)", "server_settings": "", "command_timeout": "",
	"prepared_statement_cache_size": "", "pooling": "", "maximum pool size": "", "minimum pool size": "",
}
