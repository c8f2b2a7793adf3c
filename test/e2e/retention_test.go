package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// Rows of the outbox and partitions of the log are deleted after seconds, while connectors are killed, PostgreSQL crashes, sinks are away
// for longer than anything is kept, events die and are retried, sinks are paused, others hold transactions open, and a second slot's
// connector is stopped. Nothing is lost, misordered or repeated, nothing is deleted that somebody needs, and in the end all is gone.
func TestReachRetention(t *testing.T) {
	t.Parallel()
	variants := map[string][]string{"plain": nil, "partitioned": {"--partitioned"}}
	if random := testrand.New(t); !*reach && random.IntN(2) == 0 { // one of them
		delete(variants, "plain")
	} else if !*reach {
		delete(variants, "partitioned")
	}
	for name, initFlags := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRetentionWorld(t, ownPostgres(t, nil), initFlags...)
			w.addOther()
			w.c.start()
			w.other.start()
			w.c.ready("leader")
			w.other.ready("leader")
			l := w.load(load{writers: 2, aggregates: 20, rate: 40})
			stop := w.insertsAlone()
			t.Cleanup(stop)
			for end := time.Now().Add(fullOr(10*time.Minute, 35*time.Second)); time.Now().Before(end); {
				w.act()
			}
			stop()
			l.stop()
			w.ends()
			w.longestInsert(3 * time.Second)
		})
	}
}

// keeps makes rows go after so long, "off" for never, and gives the configuration to the connector.
func (w *world) keeps(c *connector, outbox string) {
	w.t.Helper()
	if w.retention == nil {
		w.retention = map[string]any{}
	}
	w.retention["outbox"] = outbox
	w.writeConfig(c)
	c.hup()
	c.ready("leader")
}

// emptied waits until the outbox has n rows.
func (w *world) emptied(patience time.Duration, n int) {
	w.t.Helper()
	eventually(w.t, patience, fmt.Sprintf("%d rows in the outbox", n), func() error {
		if got := ask[int](w, "select count(*) from event_outbox"); got != n {
			return fmt.Errorf("it has %d: %s", got, w.lastReport())
		}
		return nil
	})
}

// The retention is changed while the connector runs, and so are the sinks: one is away, is removed and is added again.
func TestRetentionReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook", "redis_stream"}})
	w.retention = map[string]any{"outbox": "0s"}
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(30)
	w.emptied(15*time.Second, 0) // as soon as it is settled

	w.keeps(c, "off")
	w.insert(30)
	w.allPassedNow(15 * time.Second)
	passes(t, 3*time.Second)
	w.emptied(0, 30)

	w.keeps(c, "1h")
	passes(t, 3*time.Second)
	w.emptied(0, 30)
	w.keeps(c, "0s")
	w.emptied(15*time.Second, 0)

	hook := w.sinks[0]
	w.hook.status.Store(http.StatusServiceUnavailable)
	w.insert(30)
	w.parksAtLeast(15*time.Second, "webhook", 30)
	w.emptied(15*time.Second, 0)
	w.hook.status.Store(0)
	w.live(c, 20*time.Second)
	w.sinks = w.sinks[1:] // it is removed
	w.keeps(c, "0s")
	w.insert(30)
	w.emptied(15*time.Second, 0)
	w.sinks = append(w.sinks, hook) // and added later
	w.keeps(c, "0s")
	w.insert(30)
	w.emptied(15*time.Second, 0)
	w.live(c, 20*time.Second)
	if hook, redis := len(w.received("webhook")), len(w.received("redis_stream")); hook != 120 || redis != 150 {
		t.Errorf("webhook got %d events and redis_stream %d, want 120 and 150", hook, redis)
	}
	c.term()
}

// allPassedNow waits until the slot has passed all that is written now.
func (w *world) allPassedNow(patience time.Duration) {
	w.t.Helper()
	w.passed(patience, ask[pglogrepl.LSN](w, "select pg_current_wal_insert_lsn()"))
}

// Without the right to delete one warning tells of it, everything else goes on, and the log stays, which says what may be deleted. With
// the right everything goes, without a restart.
func TestRetentionWithoutTheRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}, bare: true})
	role := w.role()
	w.exec("alter role " + role + " replication")
	w.source["dsn"] = asRole(t, w.dsn, role, "secret")
	w.retention = map[string]any{"outbox": "off", "ledger": "off"}
	c := w.connector()
	if out, code := c.command(nil, "init", "--config", c.config, "--dsn", w.dsn); code != 0 {
		t.Fatalf("init: exit code %d\n%s", code, out)
	}
	w.sliceLog(time.Second)
	w.exec("grant execute on function outbox_drop_log_partitions(timestamptz, boolean) to " + role) // it may drop the log, and should not
	w.retention = map[string]any{"outbox": "0s", "ledger": "1s"}
	w.writeConfig(c)
	c.start()
	c.degraded("keeper:cleanup", "grant delete on table public.event_outbox to "+role)
	w.insert(30)
	w.deliveredAtLeast(15*time.Second, 30)
	passes(t, 5*time.Second)
	w.emptied(0, 30)
	if n := len(w.oldLog(3 * time.Second)); n == 0 {
		t.Error("the log was dropped before the rows whose deletion needs it")
	}
	if n := strings.Count(tail(c.last().stderr, 1000), `"level":"WARN"`); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, tail(c.last().stderr, 10))
	}
	out, code := c.command(nil, "cleanup", "--once", "--config", c.config)
	if code != exitcode.Privilege || !strings.Contains(out, "grant delete on table public.event_outbox to "+role) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	out, code = c.command(nil, "init", "--config", c.config, "--dsn", w.dsn) // the remedy, and what grants the rest
	if code != 0 {
		t.Fatalf("init: exit code %d\n%s", code, out)
	}
	w.emptied(20*time.Second, 0)
	eventually(t, 20*time.Second, "old partitions of the log dropped", func() error {
		if names := w.oldLog(3 * time.Second); len(names) > 0 {
			return fmt.Errorf("%q are left: %s", names, w.lastReport())
		}
		return nil
	})
	c.ready("leader")
	c.term()
}

// Rows that were there before the slot never come on the stream, and stay. Rows that another table refers to stay until it no longer does.
func TestRetentionKeepsWhatIsNeeded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}})
	w.retention = map[string]any{"outbox": "0s", "ledger": "1s"}
	w.sliceLog(time.Second)
	c := w.connector()
	c.does("destroy", "--yes")
	w.insert(3)
	c.does("init", "--backlog", "none")
	c.start()
	c.ready("leader")
	w.exec("create table invoices (event_id uuid references event_outbox (id))")
	w.exec(`with new as (insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'needed', 'made', '{}') returning id)
		insert into invoices select id from new`)
	w.insert(2000)
	w.deliveredAtLeast(20*time.Second, 2001)
	w.emptied(20*time.Second, 4)
	c.degraded("keeper:cleanup", "refuses", "invoices")
	out, code := c.command(nil, "cleanup", "--dry-run", "--config", c.config)
	if code != 0 || !strings.Contains(out, "3 rows of public.event_outbox are old enough and stay") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	passes(t, 3*time.Second)
	c.does("cleanup", "--once")
	if n := ask[int](w, "select count(*) from outbox_delivery_log join invoices using (event_id)"); n != 1 {
		t.Errorf("the log has %d rows of the event that stays, and its deletion needs one", n)
	}
	w.exec("truncate invoices")
	w.keeps(c, "1ms") // rows that were refused are tried again once a minute, and when the configuration changes
	w.emptied(20*time.Second, 3)
	passes(t, 2*time.Second)
	w.insert(7) // the stream is past the rows when it is past what was written after them
	c.saysTimes(1, "the ledger does not know rows of the outbox")
	w.emptied(20*time.Second, 3)
	if n := ask[int](w, "select count(*) from event_outbox o where exists (select from outbox_delivery_log l where l.event_id = o.id)"); n != 0 {
		t.Errorf("%d of the rows that are left were streamed", n)
	}
	c.term()
}

// Tables of the user's, with ids and times of other types, in a database with another time zone.
func TestRetentionOfMappedTables(t *testing.T) {
	t.Parallel()
	for name, columns := range map[string]string{
		"numbers":   "id bigint generated always as identity primary key, made_at timestamp not null default (clock_timestamp() at time zone 'UTC')",
		"texts":     "id text primary key default gen_random_uuid()::text, made_at timestamptz not null default clock_timestamp()",
		"no index":  "id uuid primary key default gen_random_uuid(), made_at timestamptz not null default clock_timestamp()",
		"partition": "id uuid default gen_random_uuid(), made_at timestamptz not null default clock_timestamp(), primary key (id, made_at)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{"webhook"}, bare: true})
			w.exec("alter database " + w.database + " set timezone = 'Asia/Kathmandu'")
			table := "create table things (" + columns + ", kind text not null, thing text not null, what text not null, body jsonb not null)"
			if name == "partition" {
				w.exec(table + " partition by range (made_at)")
				w.exec("create table things_all partition of things for values from ('2020-01-01') to ('2120-01-01')")
			} else {
				w.exec(table)
			}
			if name != "no index" {
				w.exec("create index on things (made_at, id)")
			}
			mapped := map[string]any{"created_at": "made_at", "aggregate_type": "kind", "aggregate_id": "thing", "event_type": "what", "payload": "body", "event_version": ""}
			for _, c := range []string{"metadata", "max_retries", "tenant_id", "correlation_id", "causation_id"} {
				mapped[c] = ""
			}
			w.source["table"], w.source["columns"] = "public.things", mapped
			c := w.connector()
			c.does("init")
			c.start()
			c.ready("leader")
			const insert = "insert into things (kind, thing, what, body) select 'order', i % 7, 'made', '{}' from generate_series(1, 100) i"
			left := func() int { return ask[int](w, "select count(*) from things") }
			w.exec(insert)
			w.deliveredAtLeast(20*time.Second, 100)
			passes(t, 2*time.Second)
			if n := left(); n != 100 {
				t.Errorf("%d rows are left, want 100: a table of the user's is not cleaned up unless that is configured", n)
			}
			if name == "no index" {
				w.retention = map[string]any{"outbox": "2s"}
				w.writeConfig(c)
				c.hup()
				c.saysTimes(1, "create index concurrently on public.things")
				w.exec("create index concurrently on public.things (made_at)") // the remedy
			}
			w.keeps(c, "2s")
			w.hook.status.Store(http.StatusServiceUnavailable)
			w.exec(insert)
			w.parksAtLeast(15*time.Second, "webhook", 100)
			eventually(t, 20*time.Second, "an empty table", func() error {
				if n := left(); n > 0 {
					return fmt.Errorf("%d rows are left: %s", n, w.lastReport())
				}
				return nil
			})
			w.hook.status.Store(0)
			w.live(c, 20*time.Second)
			w.deliveredAtLeast(20*time.Second, 200)
			c.term()
		})
	}
}

// The clock of a service is ahead by a seventh of the retention. Its rows go when they are old enough by it: the log is kept until then.
func TestRetentionOfTimesToCome(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}})
	w.sliceLog(time.Second)
	w.retention = map[string]any{"outbox": "14s", "ledger": "14s"}
	c := w.connector()
	c.start()
	c.ready("leader")
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
		select 'order', i, 'made', '{}', clock_timestamp() + interval '2 s' from generate_series(1, 20) i`)
	w.deliveredAtLeast(15*time.Second, 20)
	last := ask[string](w, "select max(tableoid::regclass::text) from outbox_delivery_log")
	eventually(t, 40*time.Second, "the log dropped", func() error {
		c.does("cleanup", "--once")
		if ask[bool](w, "select to_regclass($1) is not null", last) {
			return fmt.Errorf("%s is there: %s", last, w.lastReport())
		}
		return nil
	})
	w.emptied(0, 0)
	c.term()
}

// Another connector with a ledger of its own reads the same outbox, and is stopped. It reads WAL and not the table, so it misses nothing.
func TestRetentionBesideAnotherLedger(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}})
	w.retention = map[string]any{"outbox": "0s"}
	c := w.connector()
	w.exec("create schema other")
	w.slot, w.retention = w.slot+"_other", nil
	w.source["slot"], w.source["ledger_schema"], w.source["table"] = w.slot, "other", "public.event_outbox"
	w.sinks = []map[string]any{{"name": "other", "type": "stdout"}}
	other := w.connector()
	other.does("init", "--backlog", "none")
	c.start()
	c.ready("leader")
	w.insert(100)
	w.emptied(20*time.Second, 0)
	other.start()
	other.ready("leader")
	eventually(t, 15*time.Second, "100 events at the other one", func() error { return atLeast(len(w.printed()), 100) })
	c.term()
	w.insert(100)
	eventually(t, 15*time.Second, "200 events at the other one", func() error { return atLeast(len(w.printed()), 200) })
	passes(t, 2*time.Second)
	w.emptied(0, 100) // by default a table that init has not made for this ledger is left alone
	c.start()
	w.emptied(20*time.Second, 0)
	c.term()
	other.term()
}
