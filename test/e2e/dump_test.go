package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// dump writes a dump of the database with pg_dump.
func (w *world) dump() (file string) {
	w.t.Helper()
	program := filepath.Join(w.pg.BinDir(), "pg_dump")
	if _, err := os.Stat(program); err != nil {
		w.t.Skip("these programs of PostgreSQL lack pg_dump")
	}
	file = filepath.Join(w.t.TempDir(), "dump")
	if out, err := exec.CommandContext(w.t.Context(), program, "-Fc", "-f", file, w.dsn).CombinedOutput(); err != nil {
		w.t.Fatalf("pg_dump: %v\n%s", err, out)
	}
	return file
}

// restored is a world whose database was restored from the dump of another one, and whose connector has the same configuration but for
// source.dsn and the destinations.
func (w *world) restored(t *testing.T, pg *servers.Postgres, file string) (*world, *connector) {
	t.Helper()
	r := newWorld(t, worldOptions{pg: pg, sinks: []string{"stdout", "webhook"}, bare: true})
	out, err := exec.CommandContext(t.Context(), filepath.Join(pg.BinDir(), "pg_restore"), "--exit-on-error", "-d", r.dsn, file).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_restore: %v\n%s", err, out)
	}
	r.slot, r.publication = w.slot, w.publication
	r.source["slot"], r.source["publication"] = r.slot, r.publication
	return r, r.connector()
}

// gets waits until a sink was given so many events, and wants them to be no more.
func (w *world) gets(typ string, n int) {
	w.t.Helper()
	eventually(w.t, 30*time.Second, fmt.Sprintf("%d delivered to %s", n, typ), func() error {
		if got := len(w.received(typ)); got != n {
			return fmt.Errorf("it has %d", got)
		}
		return nil
	})
}

// What was restored from a dump delivers nothing of what its original has delivered or owes, until a person has said what it is. What the
// message says for a copy, and what docs/restore.md says for one that takes the place of its original, works.
func TestRestoredDump(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout", "webhook"}, delivery: map[string]any{"park_after": "200ms"}})
	c := w.connector()
	c.start()
	w.hook.status.Store(503)
	w.insert(10)
	w.gets("stdout", 10)
	w.parksAtLeast(20*time.Second, "webhook", 10)
	c.term()
	w.insert(5) // nobody has read these
	file := w.dump()
	another := ownPostgres(t, nil)

	beside := func(r *world, c *connector) {
		r.t.Helper()
		c.start()
		c.ready("leader")
		r.insert(3)
		r.gets("stdout", 3)
		r.gets("webhook", 3)
		c.does("verify")
		c.term()
		c.does("destroy", "--yes")
	}
	t.Run("beside its original", func(t *testing.T) {
		r, c := w.restored(t, another, file)
		c.refuses(exitcode.SlotLost, "system identifier", "outbox-cdc resync --backlog none --parked discard")
		c.does("resync", "--backlog", "none", "--parked", "discard", "--yes")
		beside(r, c)
	})
	t.Run("on the same server", func(t *testing.T) {
		r, c := w.restored(t, w.pg, file)
		c.refuses(exitcode.SlotLost, "with oid", "set source.slot to another name", "outbox-cdc init --backlog none --parked discard")
		if out, code := c.command(nil, "resync", "--backlog", "none", "--parked", "discard", "--yes", "--config", c.config); code != exitcode.SlotLost || !containsAll(out, []string{"belongs to database", "set source.slot to another name"}) {
			t.Errorf("resync: exit code %d\n%s", code, out)
		}
		r.source["slot"] = w.slot + "_copy"
		r.writeConfig(c)
		c.does("init", "--backlog", "none", "--parked", "discard")
		r.exec("delete from outbox_checkpoints where slot_name = $1", w.slot)
		beside(r, c)
	})
	t.Run("instead of its original", func(t *testing.T) {
		r, c := w.restored(t, another, file)
		c.refuses(exitcode.SlotLost, "system identifier")
		c.does("resync", "--parked", "keep", "--yes")
		c.start()
		c.ready("leader")
		r.gets("stdout", 5)
		r.gets("webhook", 15)
		r.insert(2)
		r.gets("stdout", 7)
		r.gets("webhook", 17)
		c.does("verify")
		c.term()
	})
	// The original has noticed nothing.
	w.hook.status.Store(0)
	c.start()
	w.verify(expectation{})
	c.term()
}
