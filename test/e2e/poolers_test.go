package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// ignored are all startup parameters that connections of ours have, as people tell PgBouncer to ignore them one after the other.
const ignored = "search_path, TimeZone, row_security, idle_in_transaction_session_timeout, lock_timeout, idle_session_timeout, statement_timeout, " +
	"default_transaction_read_only, default_transaction_isolation, synchronous_commit, tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count, " +
	"tcp_user_timeout, replication, client_encoding, DateStyle, IntervalStyle, bytea_output, extra_float_digits, wal_sender_timeout, quote_all_identifiers, " +
	"standard_conforming_strings, transform_null_equals, array_nulls, xmloption, xmlbinary, lc_messages, lc_monetary, lc_numeric, escape_string_warning, " +
	"backslash_quote, client_min_messages, check_function_bodies, plan_cache_mode, jit, statement_timeout, transaction_timeout, default_transaction_deferrable"

// PgBouncer in any mode is named at once, by every command and for both connections.
func TestPoolerInTheWay(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"session", "transaction", "statement"} {
		for _, ignore := range []string{"", ignored} {
			t.Run(fmt.Sprintf("%s, ignoring %t", mode, ignore != ""), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
				b, err := servers.StartPgBouncer(context.Background(), w.pg, servers.PgBouncerOptions{Settings: map[string]string{
					"pool_mode": mode, "ignore_startup_parameters": ignore,
				}})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { closes(t, b) })
				pooled, tells := b.DSN(w.database), []string{"connection pooler", "connect directly", "docs/roles.md#poolers"}
				stands := w.confirmed()
				for key, other := range map[string]string{"dsn": "replication_dsn", "replication_dsn": "dsn"} {
					w.source[key], w.source[other] = pooled, w.dsn
					c := w.connector()
					c.refuses(exitcode.Config, append(tells, "source."+key)...)
					w.stands(stands)
				}
				w.source["dsn"], w.source["replication_dsn"] = pooled, w.dsn
				c := w.connector()
				for _, line := range []string{"init", "destroy --yes", "events list", "events list --status parked", "dlq list", "pause stdout"} {
					out, code := c.command(nil, append(strings.Fields(line), "--config", c.config)...)
					if code != exitcode.Config || !containsAll(out, tells) {
						t.Errorf("%s: exit code %d\n%s", line, code, out)
					}
				}
				// A login of its own for the administrator is no better.
				w.source["dsn"], w.source["replication_dsn"] = w.dsn, pooled
				w.writeConfig(c)
				w.exec("select pg_drop_replication_slot($1)", w.slot)
				w.exec("delete from outbox_checkpoints")
				if out, code := c.command(nil, "init", "--config", c.config); code != exitcode.Config || !containsAll(out, tells) {
					t.Errorf("init: exit code %d\n%s", code, out)
				}
				if out, code := c.command(nil, "init", "--config", c.config, "--dsn", pooled); code != exitcode.Config || !containsAll(out, tells) {
					t.Errorf("init --dsn: exit code %d\n%s", code, out)
				}
			})
		}
	}
}

// What the server does not take of a connection string is named, with the key and without the value.
func TestParametersThatTheServerRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	stands := w.confirmed()
	with := func(query string) string { return w.dsn + "&" + query }
	for _, tt := range []struct {
		name, dsn string
		valid     bool // for validate, which asks no server
		code      exitcode.Code
		tells     []string
	}{
		{"of pgxpool", with("pool_max_conns=canary"), false, exitcode.Config, []string{"pool_max_conns", "source.max_connections"}},
		{"of another pool", with("pool_min_conns=4&pool_max_conn_lifetime=1h"), false, exitcode.Config, []string{"pool_min_conns", "pool_max_conn_lifetime"}},
		{"of pgx", with("default_query_exec_mode=simple_protocol"), false, exitcode.Config, []string{"default_query_exec_mode", "remove it"}},
		{"of pgx's caches", with("statement_cache_capacity=0&description_cache_capacity=0"), false, exitcode.Config, []string{"statement_cache_capacity", "description_cache_capacity"}},
		{"Prisma's schema", with("schema=canary"), false, exitcode.Config, []string{"schema", "source.table"}},
		{"JDBC's schema", with("currentSchema=canary"), false, exitcode.Config, []string{"currentSchema", "source.table"}},
		{"replication", with("replication=database"), false, exitcode.Config, []string{"replication", "asks for replication itself"}},
		{"a JDBC URL", "jdbc:" + w.dsn, false, exitcode.Config, []string{"is a JDBC URL", "write postgres://"}},
		{"a JDBC URL with properties", "jdbc:postgresql://" + w.pg.Addr() + "/" + w.database + "?user=postgres&password=canary", false, exitcode.Config, []string{"JDBC URL"}},
		{"SQLAlchemy", "postgresql+psycopg://" + strings.TrimPrefix(w.dsn, "postgres://"), false, exitcode.Config, []string{"postgresql+psycopg://", "postgres://"}},
		{"nobody's", with("frobnicate=canary"), true, exitcode.Config, []string{"frobnicate", "the server does not know", "remove it"}},
		{"nobody's, in the options", with("options=" + "-c%20frobnicate%3Dcanary"), true, exitcode.Config, []string{"frobnicate", "remove it"}},
		{"a wrong value", with("work_mem=canary"), true, exitcode.Config, []string{"work_mem", "remove it"}},
		{"a role that does not exist", with("role=canary"), true, exitcode.Config, []string{"the parameter role", "remove it"}},
		{"options of another program", with("options=-x"), true, exitcode.Config, []string{"the parameter options", "remove it"}},
		{"not for sessions", with("shared_buffers=8MB"), true, exitcode.Config, []string{"shared_buffers", "cannot be set for a session"}},
		{"not while it runs", with("wal_level=logical"), true, exitcode.Config, []string{"wal_level", "remove it"}},
		{"of an extension, which is fine", with("application_name=x&shop.tenant=1"), true, 0, nil},
	} {
		for _, key := range []string{"dsn", "replication_dsn"} {
			t.Run(tt.name+", "+key, func(t *testing.T) {
				outer, right := w.t, w.source
				defer func() { w.t, w.source = outer, right }()
				w.t, w.source = t, map[string]any{"dsn": w.dsn, "slot": w.slot, "publication": w.publication}
				w.source[key] = tt.dsn
				c := w.connector()
				out, code := c.command(nil, "validate", "--config", c.config)
				if want := map[bool]exitcode.Code{true: exitcode.OK, false: exitcode.Config}[tt.valid]; code != want || !tt.valid && !containsAll(out, append(tt.tells, "source."+key)) {
					t.Errorf("validate: exit code %d\n%s", code, out)
				}
				if tt.code == 0 {
					c.start()
					c.ready("leader")
					c.term()
					return
				}
				c.refuses(tt.code, append(tt.tells, "source."+key)...)
				w.stands(stands)
				if log := out + tail(c.last().stderr, 1000); strings.Contains(log, "canary") {
					t.Errorf("a value is told:\n%s", log)
				}
			})
		}
	}
	// A parameter that only a superuser may set.
	login := w.role()
	w.exec("alter role " + login + " replication")
	t.Run("a superuser's", func(t *testing.T) {
		w.t = t
		w.source["dsn"] = asRole(t, with("session_preload_libraries=canary"), login, "secret")
		w.source["replication_dsn"] = w.dsn
		w.connector().refuses(exitcode.Privilege, "session_preload_libraries", "source.dsn", "remove it")
	})
	w.t = t
	w.source["dsn"], w.source["replication_dsn"] = w.dsn, asRole(t, w.dsn, login, "guess")
	w.connector().refuses(exitcode.Privilege, "password authentication failed", "source.replication_dsn")
}

// A newline at the end of a secret, as most tools that write one to a file leave it.
func TestNoiseAroundTheDSN(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	c := w.connector()
	for _, dsn := range []string{w.dsn + "\n", " " + w.dsn + " ", `"` + w.dsn + `"`, "\ufeff" + w.dsn + "\r\n"} {
		c.env = []string{"DATABASE_URL=" + dsn, "OUTBOX_PUBLISHER_TYPE=stdout\n", "OUTBOX_SLOT=" + w.slot + " ", "OUTBOX_PUBLICATION=" + w.publication, "OUTBOX_LISTEN=" + c.listen}
		if out, code := c.command(c.env, "validate"); code != 0 {
			t.Errorf("validate with %q: exit code %d\n%s", dsn, code, out)
		}
		before := w.delivered()
		c.start()
		w.insert(3)
		w.deliveredAtLeast(20*time.Second, before+3)
		c.term()
	}
}
