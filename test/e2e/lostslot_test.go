package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// documented is the block of code in a page of docs that holds these words.
func documented(t testing.TB, page, words string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	var block strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "    ") {
			block.WriteString(line)
			continue
		}
		if strings.Contains(block.String(), words) {
			return block.String()
		}
		block.Reset()
	}
	t.Fatalf("docs/%s has no block with %q", page, words)
	return ""
}

// does runs a command that is expected to work.
func (c *connector) does(args ...string) {
	c.t.Helper()
	if out, code := c.command(nil, append(args, "--config", c.config)...); code != 0 {
		c.t.Fatalf("%s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
}

// The steps of docs/slot.md#lost-slot for each way in which a slot can be lost or not ours. Events that were missed are delivered
// afterwards, and so is what was parked and what was dead.
func TestStepsForALostSlot(t *testing.T) {
	t.Parallel()
	gone := func(w *world) { w.exec("select pg_drop_replication_slot($1)", w.slot) }
	for name, lost := range map[string]struct {
		own    map[string]string // settings of a server of the test's own
		happen func(*world)
		tells  string
		mend   func(*world)
		moved  bool // the server is another one
	}{
		"gone": {happen: gone, tells: "is gone"},
		"invalidated": {
			own: map[string]string{"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "64MB"},
			happen: func(w *world) {
				w.exec("create table filler (t text)")
				for range 8 {
					w.exec("insert into filler select repeat(md5(n::text), 40) from generate_series(1, 20000) n")
					w.exec("checkpoint")
				}
			}, tells: "was invalidated",
		},
		"another plugin": {happen: func(w *world) {
			gone(w)
			w.exec("select pg_create_logical_replication_slot($1, 'test_decoding')", w.slot)
		}, tells: "not a logical slot of pgoutput", mend: gone},
		"physical": {happen: func(w *world) {
			gone(w)
			w.exec("select pg_create_physical_replication_slot($1)", w.slot)
		}, tells: "not a logical slot of pgoutput", mend: gone},
		"temporary": {happen: func(w *world) {
			gone(w)
			conn := connect(w.t, w.dsn)
			w.t.Cleanup(func() { conn.Close(context.Background()) })
			if _, err := conn.Exec(w.t.Context(), "select pg_create_logical_replication_slot($1, 'pgoutput', true)", w.slot); err != nil {
				w.t.Fatal(err)
			}
		}, tells: "is temporary", mend: func(w *world) {
			w.exec("select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where slot_name = $1", w.slot)
		}},
		"another cluster":                    {happen: func(w *world) { w.moveTo(longerWAL) }, tells: "belongs to the cluster with system identifier", moved: true},
		"another cluster with a shorter WAL": {happen: func(w *world) { w.moveTo(shorterWAL) }, tells: "belongs to the cluster with system identifier", moved: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := worldOptions{sinks: []string{"stdout", "webhook"}, delivery: map[string]any{"park_after": "200ms"}}
			if lost.own != nil {
				o.pg = ownPostgres(t, lost.own)
			}
			w := newWorld(t, o)
			right := w.sinks[1]["url"]
			w.sinks[1]["url"] = "http://" + freeAddress(t) + "/events"
			c := w.connector()
			c.start()
			w.insert(10)
			w.parksAtLeast(20*time.Second, "webhook", 10)
			eventually(t, 20*time.Second, "all delivered to stdout", func() error {
				if n := w.deliveredTo("stdout"); n < 10 {
					return fmt.Errorf("%d were", n)
				}
				return nil
			})
			c.term()
			dead := ask[string](w, "select min(event_id::text) from outbox_parked")
			c.does("dlq", "kill", "--id", dead, "--reason", "a test", "--yes")
			w.insert(5) // nobody hears of them
			lost.happen(w)
			w.writeConfig(c)
			c.refuses(exitcode.SlotLost, w.slot, lost.tells, "outbox-cdc resync")

			if lost.mend != nil {
				lost.mend(w)
			}
			if lost.moved {
				out, code := c.command(nil, "resync", "--yes", "--config", c.config)
				if code != exitcode.Config || !containsAll(out, []string{"still owes 9 parked events", "--parked keep", "--parked discard"}) {
					t.Fatalf("resync: exit code %d\n%s", code, out)
				}
				c.does("resync", "--yes", "--parked", "keep")
			} else {
				c.does("resync", "--yes")
			}
			if n := w.ofSink("webhook", "true"); n != 10 {
				t.Errorf("%d of the 10 parked rows are left", n)
			}
			if n := ask[int](w, "select count(*) from outbox_backlog where status <> 'done' and reason = 'resync' and base_lsn > '0/0'"); n != 2 {
				t.Errorf("%d jobs were filed, want 2", n)
			}

			w.sinks[1]["url"] = right
			w.writeConfig(c)
			c.start()
			w.insert(3)
			eventually(t, 30*time.Second, "all delivered but the dead letter", func() error { return w.deliveredToBoth(1) })
			c.does("dlq", "retry", "--all")
			eventually(t, 30*time.Second, "all delivered", func() error { return w.deliveredToBoth(0) })
			c.ready("leader")
			c.term()
		})
	}
}

// A promoted server may lack the last rows of the ledger. The connector files a job, which compares the outbox with the ledger, and streams.
func TestPromotedServerGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{pg: ownPostgres(t, map[string]string{"restore_command": "false"})})
	c := w.connector()
	c.start()
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 10)
	c.term()
	w.insert(5)
	promote(w)
	w.writeConfig(c)
	c.start()
	w.deliveredAtLeast(20*time.Second, 15)
	if n := ask[int](w, "select count(*) from outbox_backlog where reason = 'reconcile'"); n != 1 {
		t.Errorf("%d jobs were filed, want 1", n)
	}
	c.ready("leader")
	c.term()
}

// promote ends a recovery from an archive that has nothing: the server goes on in a new timeline, with its slots.
func promote(w *world) {
	w.t.Helper()
	dir := ask[string](w, "show data_directory")
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := w.pg.Stop(ctx, servers.Fast); err != nil {
		w.t.Fatal(err)
	}
	signal := filepath.Join(dir, "recovery.signal")
	if err := os.WriteFile(signal, nil, 0o666); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chmod(signal, 0o666); err != nil { // the server is another user
		w.t.Fatal(err)
	}
	if err := w.pg.Start(ctx); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, 30*time.Second, "the end of the recovery", func() error {
		if ask[bool](w, "select pg_is_in_recovery()") {
			return os.ErrProcessDone
		}
		return nil
	})
}

// walLength compares the WAL of a new server with that of the old one.
type walLength int

const (
	longerWAL walLength = iota
	shorterWAL
)

// moveTo restores the world's tables on a server of their own, as a dump does, and lets the configuration lead there.
func (w *world) moveTo(server walLength) {
	w.t.Helper()
	old := w.dsn
	if w.pg = ownPostgres(w.t, nil); server == longerWAL {
		behind := ask[string](w, "select pg_current_wal_lsn()::text")
		w.dsn = w.pg.DSN("postgres")
		for !ask[bool](w, "select pg_current_wal_lsn() > $1::pg_lsn", behind) {
			w.exec("create table if not exists t (i int)")
			w.exec("insert into t values (1)")
			w.exec("select pg_switch_wal()")
		}
	}
	w.dsn = w.pg.DSN(w.database)
	w.createDatabase("")
	w.source["dsn"] = w.dsn
	c := w.connector()
	c.does("init")
	c.does("destroy", "--yes")
	from, to := connect(w.t, old), connect(w.t, w.dsn)
	defer from.Close(context.Background())
	defer to.Close(context.Background())
	for _, table := range []string{"event_outbox", "outbox_processors", "outbox_delivery_log", "outbox_parked", "outbox_checkpoints"} {
		w.exec("delete from " + table)
		copyTable(w.t, from, to, table)
	}
}

func copyTable(t testing.TB, from, to *pgx.Conn, table string) {
	t.Helper()
	var data bytes.Buffer
	if _, err := from.PgConn().CopyTo(t.Context(), &data, "copy (select * from "+table+") to stdout"); err != nil {
		t.Fatal(err)
	}
	if _, err := to.PgConn().CopyFrom(t.Context(), &data, "copy "+table+" from stdin"); err != nil {
		t.Fatal(err)
	}
}

// execAll runs several statements.
func (w *world) execAll(sql string) {
	w.t.Helper()
	conn := connect(w.t, w.dsn)
	defer conn.Close(context.Background())
	if _, err := conn.PgConn().Exec(w.t.Context(), sql).ReadAll(); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// deliveredToBoth wants all events of the outbox to be delivered to the two sinks, but so many of the second.
func (w *world) deliveredToBoth(but int) error {
	w.t.Helper()
	got := ask[string](w, `select concat_ws(' ', count(distinct e.id), count(distinct l.event_id) filter (where p.processor_name = 'stdout'),
		count(distinct l.event_id) filter (where p.processor_name = 'webhook'))
		from event_outbox e left join outbox_delivery_log l on l.event_id = e.id and l.status = 'delivered' left join outbox_processors p on p.id = l.processor_id`)
	if want := fmt.Sprint(18, 18, 18-but); got != want {
		return fmt.Errorf("events, delivered to stdout, to webhook: %s, want %s", got, want)
	}
	return nil
}
