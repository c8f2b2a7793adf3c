package ledger

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// pinnedSettings are the parameters of every connection of ours over which SQL is sent.
var pinnedSettings = map[string]string{
	// See the package comment. Temporary tables come last, or they would be found before those of pg_catalog.
	"search_path": "pg_catalog, pg_temp",
	"TimeZone":    "UTC",
	// An error instead of hidden rows.
	"row_security": "off",
	// A role's own settings could end our connections or refuse what we do.
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
	// PostgreSQL 18 says by a WARNING alone that it leaves out rows.
	"client_min_messages": "notice",
	// The plans are those that were measured.
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

// Pin sets the parameters that every connection of ours has over which SQL is sent, whatever the DSN, the role and the database say. No
// such connection is opened without it.
func Pin(c *pgconn.Config) {
	// The server takes the names of parameters in any case. Of two equal ones the later one counts.
	maps.DeleteFunc(c.RuntimeParams, func(name, _ string) bool {
		for pinned := range pinnedSettings {
			if strings.EqualFold(name, pinned) {
				return true
			}
		}
		return false
	})
	maps.Copy(c.RuntimeParams, pinnedSettings)
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = applicationPrefix
	}
}

// PinRun adds to Pin what the connections of a running connector have. applicationName is what people see in pg_stat_activity:
// Process.ApplicationName.
func PinRun(c *pgconn.Config, applicationName string) {
	Pin(c)
	c.RuntimeParams["application_name"] = applicationName
	// A connection of ours that hangs must not hold a lock for ever, nor wait for one for ever.
	c.RuntimeParams["idle_in_transaction_session_timeout"] = "2s"
	c.RuntimeParams["lock_timeout"] = "2s"
}

// SetUpCommand sets up the connection of an operator's command: it must neither wait for a lock for ever nor hold one, and its reads
// of outbox_parked are planned as a lane's are.
func SetUpCommand(ctx context.Context, db Execer) error {
	_, err := db.Exec(ctx, "set lock_timeout = '2s'; set idle_in_transaction_session_timeout = '10s'; "+planParked("set"))
	if err != nil {
		return fmt.Errorf("set up the connection: %w", err)
	}
	return nil
}

// planBatches makes the planner take the indexes of outbox_parked for the recorder's changes. It sets less than planParked,
// because the same few statements come again and again and are planned once.
const planBatches = "set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; set jit = off"

// planParked returns the statements that set the planner up for reads of outbox_parked; how is "set" or "set local". A queue
// rarely has usable statistics, and without them the planner sorts a million rows. With these settings it can only follow the
// primary key in order, and probe the partial index idx_outbox_retry_ready for each row. A read of 5,000 rows out of a million
// takes 13 to 40 ms instead of 1,000 (PostgreSQL 15, four lanes), and 200 ms with a generic plan.
func planParked(how string) string {
	return how + " " + strings.Join([]string{
		"enable_seqscan = off", "enable_bitmapscan = off", "enable_hashjoin = off", "enable_mergejoin = off", "enable_material = off", "enable_sort = off",
		"jit = off", "work_mem = '32MB'", "max_parallel_workers_per_gather = 0", "plan_cache_mode = force_custom_plan",
	}, "; "+how+" ")
}
