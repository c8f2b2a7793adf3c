package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// hostile are settings of a role or a database that mean well elsewhere.
var hostile = []struct {
	name, value string
	since       int // version of PostgreSQL
}{
	{"quote_all_identifiers", "on", 0},
	{"DateStyle", "SQL, DMY", 0},
	{"IntervalStyle", "sql_standard", 0},
	{"TimeZone", "Asia/Kathmandu", 0},
	{"bytea_output", "escape", 0},
	{"xmlbinary", "hex", 0},
	{"extra_float_digits", "-15", 0},
	{"standard_conforming_strings", "off", 0},
	{"backslash_quote", "off", 0},
	{"array_nulls", "off", 0},
	{"transform_null_equals", "on", 0},
	{"client_encoding", "LATIN1", 0},
	{"client_min_messages", "error", 0},
	{"search_path", "pg_temp, nosuch", 0},
	{"row_security", "on", 0},
	{"default_transaction_isolation", "serializable", 0},
	{"default_transaction_deferrable", "on", 0},
	{"default_transaction_read_only", "on", 0},
	{"synchronous_commit", "off", 0},
	{"session_replication_role", "replica", 0},
	{"exit_on_error", "on", 0},
	{"check_function_bodies", "off", 0},
	{"statement_timeout", "50ms", 0},
	{"idle_session_timeout", "1s", 0},
	{"idle_in_transaction_session_timeout", "1s", 0},
	{"transaction_timeout", "2s", 17},
	{"plan_cache_mode", "force_generic_plan", 0},
	{"enable_seqscan", "off", 0},
	{"enable_indexscan", "off", 0},
	{"enable_bitmapscan", "off", 0},
	{"enable_nestloop", "off", 0},
	{"enable_partition_pruning", "off", 0},
	{"work_mem", "64kB", 0},
	{"logical_decoding_work_mem", "64kB", 0},
	{"wal_sender_timeout", "0", 0},
}

// Whatever a role or a database sets, every command does what it is to do: by half of the settings of each, and the other way round.
func TestHostileSettings(t *testing.T) {
	t.Parallel()
	for turn, name := range []string{"of the role", "of the database"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{"kafka", "webhook"}, bare: true, delivery: map[string]any{"park_after": "200ms"}})
			role := w.role()
			w.exec("alter role " + role + " superuser")
			for i, s := range hostile {
				if w.version() < s.since {
					continue
				}
				if i%2 == turn {
					w.exec(fmt.Sprintf("alter role %s in database %[1]s set %s = '%s'", w.database, s.name, s.value))
					continue
				}
				// The test's own sessions stay as they are.
				w.exec(fmt.Sprintf("alter role postgres in database %s set %s from current", w.database, s.name))
				w.exec(fmt.Sprintf("alter database %s set %s = '%s'", w.database, s.name, s.value))
			}
			w.source["dsn"] = asRole(t, w.dsn, role, "secret")
			w.init()
			c := w.connector()
			c.start()
			c.ready("leader")
			w.insert(50)
			w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'Ωmega', 'made', '{\"text\": \"ü \\u00fc Ω\"}')")
			w.allPassed(20 * time.Second)

			// What is parked, dead, and looked at by people.
			w.hook.status.Store(http.StatusBadRequest)
			w.insert(3)
			w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'Ωdead', 'made', '{\"text\": \"ü\"}')")
			eventually(t, 20*time.Second, "dead letters", func() error {
				if n := w.ofSink("webhook", "k.status = 'dead'"); n < 4 {
					return fmt.Errorf("%d dead letters", n)
				}
				return nil
			})
			for _, line := range []string{"events list --since 1h", "events list --status failed --since 1h", "dlq list", "dlq export --payload", "pause webhook", "resume webhook"} {
				c.does(strings.Fields(line)...)
			}
			w.hook.status.Store(0)
			c.does("dlq", "retry", "--all")
			eventually(t, 20*time.Second, "no dead letters", func() error {
				if n := w.ofSink("webhook", "true"); n > 0 {
					return fmt.Errorf("%d rows are parked", n)
				}
				return nil
			})
			c.ready("leader")
			c.term()
			// As text, which goes through every setting: each event once to each sink.
			if n := ask[int](w, "select count(*) from event_outbox"); w.deliveredTo("kafka") != n || w.deliveredTo("webhook") != n {
				t.Errorf("of %d events %d went to kafka, %d to webhook", n, w.deliveredTo("kafka"), w.deliveredTo("webhook"))
			}
			for _, sink := range []string{"kafka", "webhook"} {
				payloads := map[string]bool{}
				for _, d := range w.received(sink) {
					payloads[d.payload] = true
				}
				if !payloads[`{"text": "ü \u00fc Ω"}`] || !payloads[`{"text": "ü"}`] {
					t.Errorf("%s: payloads changed: %v", sink, payloads)
				}
			}
			c.does("init", "--backlog", "none")
			c.does("destroy", "--yes", "--ledger")
		})
	}
}
