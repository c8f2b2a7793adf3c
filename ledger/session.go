package ledger

import (
	"maps"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// settings are the parameters of every SQL session of ours. What else a session needs, such as a lock_timeout, its owner adds
// after Pin.
var settings = map[string]string{
	// See the package comment. Temporary tables come last, or they would be found before those of pg_catalog.
	"search_path": "pg_catalog, pg_temp",
	"TimeZone":    "UTC",
	// An error instead of hidden rows.
	"row_security": "off",
	// A role's own settings would end or refuse what is right.
	"idle_session_timeout":           "0",
	"statement_timeout":              "0",
	"default_transaction_read_only":  "off",
	"default_transaction_isolation":  "read committed",
	"default_transaction_deferrable": "off",
	"exit_on_error":                  "off",
	// Text means the same everywhere: what we send and read, what statements compare, names that the server writes.
	"client_encoding":             "UTF8",
	"DateStyle":                   "ISO",
	"IntervalStyle":               "postgres",
	"bytea_output":                "hex",
	"xmlbinary":                   "base64",
	"extra_float_digits":          "1",
	"quote_all_identifiers":       "off",
	"standard_conforming_strings": "on",
	"array_nulls":                 "on",
	"transform_null_equals":       "off",
	// PostgreSQL 18 tells that it leaves out rows by a WARNING alone.
	"client_min_messages": "notice",
	// Plans are those that were measured.
	"plan_cache_mode":          "auto",
	"enable_seqscan":           "on",
	"enable_indexscan":         "on",
	"enable_bitmapscan":        "on",
	"enable_nestloop":          "on",
	"enable_hashjoin":          "on",
	"enable_mergejoin":         "on",
	"enable_sort":              "on",
	"enable_partition_pruning": "on",
	// The slot's position is made durable apart from the WAL: without this a crash could keep "confirmed X" and
	// lose the ledger rows before X.
	"synchronous_commit": "on",
}

// Pin sets what every SQL session of ours is to have, whatever the DSN, the role and the database say. A session for SQL is
// opened nowhere without it.
func Pin(c *pgconn.Config) {
	// The server takes the names of parameters in any case, and of two the later one.
	maps.DeleteFunc(c.RuntimeParams, func(name, _ string) bool {
		for pinned := range settings {
			if strings.EqualFold(name, pinned) {
				return true
			}
		}
		return false
	})
	maps.Copy(c.RuntimeParams, settings)
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "outbox-cdc"
	}
}
