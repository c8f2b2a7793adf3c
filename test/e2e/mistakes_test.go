package e2e

import (
	"context"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// refuses starts c, and wants it to end with this exit code and to tell all of these.
func (c *connector) refuses(code exitcode.Code, tells ...string) {
	c.t.Helper()
	c.start()
	c.exits(20*time.Second, code)
	c.says(tells...)
}

// role makes a login without rights, whose password is secret.
func (w *world) role() string {
	w.t.Helper()
	w.exec("create role " + w.database + " login password 'secret'")
	w.t.Cleanup(func() {
		conn := connect(w.t, w.dsn)
		defer conn.Close(context.Background())
		if _, err := conn.Exec(context.Background(), "drop owned by "+w.database+"; drop role "+w.database); err != nil {
			w.t.Error(err)
		}
	})
	return w.database
}

// Everything that can be wrong before the first session. Each mistake is named with its remedy, the slot stays where it
// is, and when all are mended everything that waited is delivered, once.
func TestMistakesBeforeTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.insert(60)
	role := w.role()
	plain := asRole(t, w.dsn, role, "secret")
	stands := w.confirmed()

	for _, mistake := range []struct {
		name   string
		source map[string]any // over the right one
		wrong  string         // SQL
		mended string
		code   exitcode.Code
		tells  []string
	}{
		{"password", map[string]any{"dsn": asRole(t, w.dsn, w.database, "guess")}, "", "", exitcode.Privilege, []string{"password", "source.dsn"}},
		{
			"no connection string",
			map[string]any{"dsn": "postgres://app:guess%@localhost/shop"},
			"", "", exitcode.Config,
			[]string{"outbox.yaml:", "source.dsn", "percent-encoded", "password"},
		},
		{"database", map[string]any{"dsn": strings.Replace(w.dsn, "/"+w.database, "/nosuch", 1)}, "", "", exitcode.Config, []string{"nosuch", "source.dsn"}},
		{"a role that may not replicate", map[string]any{"replication_dsn": plain}, "", "", exitcode.Privilege, []string{w.database, "may not replicate", "alter role"}},
		{"a role without rights", map[string]any{"dsn": plain, "replication_dsn": w.dsn}, "", "", exitcode.Privilege, []string{"outbox_delivery_log", "grant"}},
		{
			"a missing right",
			map[string]any{"dsn": plain, "replication_dsn": w.dsn},
			"grant all on all tables in schema public to " + w.database + "; grant all on all functions in schema public to " + w.database +
				"; revoke insert on outbox_delivery_log from " + w.database,
			"drop owned by " + w.database, exitcode.Privilege,
			[]string{"insert on", "outbox_delivery_log", "grant"},
		},
		{
			"no publication", nil, "drop publication " + w.publication,
			"create publication " + w.publication + " for table event_outbox with (publish = 'insert')", exitcode.Config,
			[]string{w.publication, "outbox-cdc init"},
		},
		{
			"a publication of updates", nil, "alter publication " + w.publication + " set (publish = 'update')",
			"alter publication " + w.publication + " set (publish = 'insert')", exitcode.Config,
			[]string{"does not publish inserts", "alter publication"},
		},
		{
			"a publication of another table", nil, "create table other (id int); alter publication " + w.publication + " set table other",
			"alter publication " + w.publication + " set table event_outbox", exitcode.Config,
			[]string{"does not publish table public.event_outbox", "alter publication"},
		},
		{
			"a row filter (15)", nil, "alter publication " + w.publication + " set table event_outbox where (event_type <> 'made')",
			"alter publication " + w.publication + " set table event_outbox", exitcode.Config,
			[]string{"leaves out rows", "alter publication"},
		},
		{
			"a column list (15)", nil, "alter publication " + w.publication + " set table event_outbox (id, payload)",
			"alter publication " + w.publication + " set table event_outbox", exitcode.Config,
			[]string{"leaves out columns", "aggregate_id", "alter publication"},
		},
		{
			"no table", nil, "alter table event_outbox rename to outbox_event", "alter table outbox_event rename to event_outbox", exitcode.Config,
			[]string{"public.event_outbox does not exist", "source.table"},
		},
		{
			"no column", nil, "alter table event_outbox rename aggregate_id to id_of_aggregate",
			"alter table event_outbox rename id_of_aggregate to aggregate_id", exitcode.Config,
			[]string{"aggregate_id", "is missing", "id_of_aggregate", "source.columns"},
		},
		{"no ledger", map[string]any{"ledger_schema": "elsewhere"}, "", "", exitcode.Config, []string{"elsewhere", "outbox_checkpoints", "outbox-cdc init"}},
		{"no slot of that name", map[string]any{"slot": w.slot + "_new"}, "", "", exitcode.Config, []string{w.slot + "_new", "outbox-cdc init"}},
		{"unknown key", map[string]any{"slots": "x"}, "", "", exitcode.Config, []string{"outbox.yaml:", "source.slots", "unknown key"}},
		{"several at once", map[string]any{"slot": "No Slot", "table": "outbox"}, "", "", exitcode.Config, []string{"source.slot", "source.table"}},
	} {
		if strings.Contains(mistake.name, "(15)") && w.version() < 15 {
			continue
		}
		t.Run(mistake.name, func(t *testing.T) {
			outer, right := w.t, w.source
			defer func() { w.t, w.source = outer, right }()
			w.t, w.source = t, maps.Clone(right)
			maps.Copy(w.source, mistake.source)
			if mistake.wrong != "" {
				w.exec(mistake.wrong)
			}
			c := w.connector()
			c.refuses(mistake.code, mistake.tells...)
			if mistake.mended != "" {
				w.exec(mistake.mended)
			}
			w.stands(stands)
			if log := tail(c.last().stderr, 1000); strings.Contains(log, "secret") || strings.Contains(log, "guess") {
				t.Errorf("the log holds a password:\n%s", log)
			}
		})
	}

	t.Run("no YAML", func(t *testing.T) {
		c := w.connector()
		if err := os.WriteFile(c.config, []byte("source:\n  dsn: [\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.refuses(exitcode.Config, "outbox.yaml:")
		w.stands(stands)
	})
	c := w.connector()
	if out, code := c.command(nil, "run", "--confg", c.config); code != 2 || !strings.Contains(out, "--confg") {
		t.Errorf("usage: exit code %d, %s", code, out)
	}
	c.start()
	w.verify(expectation{})
	c.term()
}

func TestPostgresThatIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.insert(20)
	stands := w.confirmed()
	w.source["dsn"] = through(t, w.dsn, freeAddress(t))
	c := w.connector()
	c.start()
	c.failed("session", "connection refused")
	c.exits(45*time.Second, exitcode.Unavailable)
	c.says("not reachable", "30s", "source.dsn")
	w.stands(stands)
	w.source["dsn"] = w.dsn
	w.writeConfig(c)
	c.start()
	w.verify(expectation{})
	c.term()
}

func TestWALLevelReplica(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{pg: ownPostgres(t, map[string]string{"wal_level": "replica"}), bare: true})
	c := w.connector()
	out, code := c.command(nil, "init", "--config", c.config)
	if code != exitcode.Config || !containsAll(out, []string{"wal_level", "logical", "restart"}) {
		t.Errorf("init: exit code %d, %s", code, out)
	}
	c.refuses(exitcode.Config, "wal_level", "logical", "restart")
	if n := ask[int](w, "select (select count(*) from pg_replication_slots) + (select count(*) from pg_publication)"); n != 0 {
		t.Errorf("%d slots and publications were made", n)
	}
}

// A slot that was dropped and made again has a gap in front of it. The connector files a job, which compares the outbox with the ledger.
func TestSlotMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 10)
	c.term()
	w.insert(10)
	w.exec("select pg_drop_replication_slot($1)", w.slot)
	c.refuses(exitcode.SlotLost, w.slot, "is gone", "outbox-cdc resync", "docs/slot.md#lost-slot")
	if n := ask[int](w, "select count(*) from pg_replication_slots where slot_name = $1", w.slot); n != 0 {
		t.Error("somebody has replaced the slot")
	}
	w.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", w.slot)
	c.start()
	c.ready("leader")
	if n := ask[int](w, "select count(*) from outbox_backlog where reason = 'reconcile'"); n != 1 {
		t.Errorf("%d jobs were filed, want 1", n)
	}
	w.deliveredAtLeast(20*time.Second, 20)
	c.term()
}

// owed wants so many events to be in the table and not in the ledger: what a comparison finds is not lost.
func (w *world) owed(n int) {
	w.t.Helper()
	got := ask[int](w, "select count(*) from event_outbox o where not exists (select from outbox_delivery_log l where l.event_id = o.id and l.status <> 'failed')")
	if got != n {
		w.t.Errorf("table and ledger show %d events that are owed, want %d", got, n)
	}
}

// version of PostgreSQL.
func (w *world) version() int {
	w.t.Helper()
	return ask[int](w, "select current_setting('server_version_num')::int / 10000")
}

// stands wants the slot to be where it was.
func (w *world) stands(at pglogrepl.LSN) {
	w.t.Helper()
	if now := w.confirmed(); now != at {
		w.t.Errorf("the slot moved from %s to %s", at, now)
	}
}

// before wants the slot not to have passed the nth event, from 0.
func (w *world) before(n int) {
	w.t.Helper()
	if now, end := w.confirmed(), w.truth()[n].commitEnd; now >= end {
		w.t.Errorf("the slot stands at %s, past what ended at %s and is not settled", now, end)
	}
}

// While Kafka is away WAL piles up, until the server gives the slot up.
func TestSlotLostWhileStreaming(t *testing.T) {
	t.Parallel()
	pg := ownPostgres(t, map[string]string{"max_slot_wal_keep_size": "16MB", "max_wal_size": "64MB"})
	w := newWorld(t, worldOptions{pg: pg, never: true})
	w.sinks[0]["brokers"] = []string{freeAddress(t)}
	c := w.connector()
	c.start()
	w.insert(10)
	c.degraded("sink:kafka")
	w.exec("create table busy (filler text)")
	w.exec("alter table busy alter filler set storage external")
	for range 100 {
		w.exec("insert into busy select string_agg(md5(i::text), '') from generate_series(1, 32768) i")
	}
	w.exec("checkpoint")
	c.exits(20*time.Second, exitcode.SlotLost)
	c.says(w.slot, "was invalidated", "outbox-cdc resync", "docs/slot.md#lost-slot")
	c.refuses(exitcode.SlotLost, w.slot, "outbox-cdc resync", "docs/slot.md#lost-slot")
	if status := ask[string](w, "select wal_status from pg_replication_slots where slot_name = $1", w.slot); status != "lost" {
		t.Errorf("wal_status is %s: somebody has replaced the slot", status)
	}
	w.owed(10)
}
