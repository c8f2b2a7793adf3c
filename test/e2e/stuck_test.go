package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// goOn takes the steps of docs/slot.md#lost-slot, after which nothing is owed any more.
func (w *world) goOn(c *connector) {
	w.t.Helper()
	c.does("resync", "--yes")
	c.start()
	eventually(w.t, 30*time.Second, "all delivered", func() error {
		n := ask[int](w, "select count(*) from event_outbox o where not exists (select from outbox_delivery_log l where l.event_id = o.id and l.status = 'delivered')")
		if n != 0 {
			return fmt.Errorf("%d are not", n)
		}
		return nil
	})
	c.ready("leader")
	c.term()
}

// A publication that was dropped and made again does not help what was written in between.
func TestPublicationMadeAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.streaming(20)
	again := "create publication " + w.publication + " for table event_outbox with (publish = 'insert')"

	// While it runs, between two looks at the publication.
	w.exec("drop publication " + w.publication)
	w.insert(10)
	w.exec(again)
	w.insert(10)
	c.exits(25*time.Second, exitcode.SlotLost)
	tells := []string{`publication \"` + w.publication, "exists now", "transaction", "outbox-cdc resync", "#lost-slot"}
	c.says(tells...)
	w.before(20)
	stands := w.confirmed()

	// At a start.
	c.refuses(exitcode.SlotLost, tells...)
	w.stands(stands)
	w.owed(20)

	// Where it is missing now as well, making it is the first thing to do.
	w.exec("drop publication " + w.publication)
	c.refuses(exitcode.Config, "does not exist", "outbox-cdc init")
	w.exec(again)
	c.refuses(exitcode.SlotLost, tells...)
	w.stands(stands)
	w.goOn(c)
}

// The slot reads a publication of another name from before that was made.
func TestPublicationRenamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.insert(10)
	c := w.connector()
	w.exec("create publication " + w.publication + "_b for table event_outbox with (publish = 'insert')")
	w.source["publication"] = w.publication + "_b"
	w.writeConfig(c)
	c.refuses(exitcode.SlotLost, "source.publication has another name than before")
	w.before(0)
	w.exec("drop publication " + w.publication + "_b")
	w.source["publication"] = w.publication
	w.writeConfig(c)
	c.start()
	w.verify(expectation{})
	c.term()
}

// An encoding that takes any bytes takes some that can never be sent.
func TestBytesThatAreNoUTF8(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{encoding: "SQL_ASCII", bare: true})
	c := w.connector()
	if out, code := c.command(nil, "init", "--config", c.config, "--backlog", "none"); code != 0 || !containsAll(out, []string{"SQL_ASCII", "UTF8"}) {
		t.Errorf("init: exit code %d, and it does not warn of the encoding:\n%s", code, out)
	}
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'order', i, 'made', '{}' from generate_series(1, 10) i")
	c.start()
	c.ready("leader")
	c.says("SQL_ASCII", "docs/encodings.md")
	w.deliveredAtLeast(10*time.Second, 10)
	conn := connect(t, inEncoding(t, w.dsn, "SQL_ASCII"))
	defer conn.Close(context.Background())
	var xid string
	err := conn.QueryRow(t.Context(), `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
		select 'order', convert_from('\x4dfc6c6c6572', 'SQL_ASCII'), 'made', '{}' returning xmin::text`).Scan(&xid)
	if err != nil {
		t.Fatal(err)
	}
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'fine', 'made', '{}')")
	c.exits(20*time.Second, exitcode.SlotLost)
	tells := []string{"in transaction " + xid + " (commit LSN ", "22021", "where xmin = '" + xid + "'", "cannot be converted", "outbox-cdc skip --lsn "}
	c.says(tells...)
	stands := w.confirmed()
	c.refuses(exitcode.SlotLost, tells...)
	w.stands(stands)

	// The command that the message names passes the transaction, and the stream goes on behind it.
	command := regexp.MustCompile(`outbox-cdc (skip) (--lsn) ([0-9A-F/]+)`).FindStringSubmatch(tail(c.last().stderr, 1000))
	if command == nil {
		t.Fatal("no command")
	}
	out, code := c.command(nil, append(command[1:], "--config", c.config, "--yes")...)
	if code != 0 || !containsAll(out, []string{"will not be delivered", "SKIPPED transaction " + xid}) {
		t.Errorf("skip: exit code %d\n%s", code, out)
	}
	c.start()
	w.deliveredAtLeast(10*time.Second, 11)
	if n := ask[int](w, "select count(*) from event_outbox o where not exists (select from outbox_delivery_log l where l.event_id = o.id and l.status in ('delivered', 'discarded'))"); n != 0 {
		t.Errorf("of %d events the log says nothing", n)
	}
	// The row that the message leads to is mended, and written once more.
	w.exec("with gone as (delete from event_outbox where xmin = '" + xid + "' returning id) insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload) select id, 'order', 'Mueller', 'made', '{}' from gone")
	w.deliveredAtLeast(10*time.Second, 12)
	c.ready("leader")

	// What a start finds in front of such a transaction is delivered before the start ends.
	c.term()
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'in front', 'made', '{}')")
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'order', convert_from('\\x4dfc', 'SQL_ASCII'), 'made', '{}'")
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'fine too', 'made', '{}')")
	c.refuses(exitcode.SlotLost, "cannot be converted")
	if n := w.delivered(); n != 13 {
		t.Errorf("%d events are delivered, want 13", n)
	}

	// A skip that was killed has moved the checkpoint and not the slot. A connector moves the slot.
	at := regexp.MustCompile(`outbox-cdc skip --lsn ([0-9A-F/]+)`).FindStringSubmatch(tail(c.last().stderr, 1000))
	w.exec("update outbox_checkpoints set prefix_lsn = $1::text::pg_lsn + 1, prefix_index = -1, confirmed_lsn = $1::text::pg_lsn + 1", at[1])
	c.start()
	w.deliveredAtLeast(20*time.Second, 14)
	c.term()
}

// A database of another encoding: what is delivered, at once or from outbox_parked, is UTF8.
func TestOtherEncoding(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{encoding: "LATIN1", sinks: []string{"webhook"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	conn := connect(t, inEncoding(t, w.dsn, "UTF8"))
	defer conn.Close(context.Background())
	insert := func() {
		t.Helper()
		_, err := conn.Exec(t.Context(), `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'Müller', 'made', '{"text": "ü"}')`)
		if err != nil {
			t.Fatal(err)
		}
	}
	insert()
	w.allPassed(20 * time.Second)
	w.hook.status.Store(http.StatusBadRequest)
	insert()
	eventually(t, 20*time.Second, "a dead letter", func() error {
		if n := w.ofSink("webhook", "k.status = 'dead' and convert_to(event->>'aggregate_id', 'LATIN1') = '\\x4dfc6c6c6572'"); n != 1 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	w.hook.status.Store(0)
	c.does("dlq", "retry", "--all")
	eventually(t, 20*time.Second, "both delivered", func() error {
		if n := w.deliveredTo("webhook"); n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	for _, d := range w.received("webhook") {
		if d.payload != `{"text": "ü"}` || d.key != "M%C3%BCller" {
			t.Errorf("delivered %+v", d)
		}
	}
	c.term()
}

// Nobody can talk UTF8 with a database of this encoding.
func TestEncodingWithoutUTF8(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{encoding: "MULE_INTERNAL", sinks: []string{"stdout"}, bare: true})
	c := w.connector()
	out, code := c.command(nil, "init", "--config", c.config)
	if code != exitcode.Config || !containsAll(out, []string{"MULE_INTERNAL", "docs/encodings.md"}) {
		t.Errorf("init: exit code %d, %s", code, out)
	}
	c.refuses(exitcode.Config, "MULE_INTERNAL", "docs/encodings.md")
}

// inEncoding is a DSN of sessions that talk in another encoding.
func inEncoding(t testing.TB, dsn, encoding string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("client_encoding", encoding)
	u.RawQuery = q.Encode()
	return u.String()
}

// A COMMIT that waits for a standby which is away: degraded, then failed, with the cause, the lag grows, and all goes on once it is over.
func TestCommitThatHangs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{pg: ownPostgres(t, nil)})
	c := w.streaming(20)

	w.exec("alter system set synchronous_standby_names = 'far_away'")
	w.exec("select pg_reload_conf()")
	away := time.Now()
	conn := connect(t, w.dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "set synchronous_commit = local"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'order', i % 3, 'made', '{}' from generate_series(1, 20) i"); err != nil {
		t.Fatal(err)
	}
	c.failed("postgres", "SyncRep", "far_away", "synchronous_standby_names")
	if took := time.Since(away); took > 13*time.Second {
		t.Errorf("failed after %s, want 10 s, and 3 s at most to say so", took)
	}
	grows := func() {
		t.Helper()
		from := c.metric("slot_lag_seconds")
		eventually(t, 20*time.Second, "a lag that grows", func() error {
			if lag := c.metric("slot_lag_seconds"); lag < from+5 {
				return fmt.Errorf("%g s after %g s", lag, from)
			}
			return nil
		})
	}
	grows()
	w.before(20)

	// A start meanwhile hangs as well, and says so.
	c.kill()
	c.start()
	c.failed("postgres", "taking over the ledger", "SyncRep")
	grows()

	local := connect(t, w.dsn)
	defer local.Close(context.Background())
	if _, err := local.Exec(t.Context(), "alter system reset synchronous_standby_names"); err != nil {
		t.Fatal(err)
	}
	w.exec("select pg_reload_conf()")
	c.ready("leader")
	w.verify(expectation{faults: 1})
	log := tail(c.last().stderr, 1000)
	if n := strings.Count(log, `"waiting for PostgreSQL"`); n != 1 {
		t.Errorf("the log says %d times that a step waits:\n%s", n, log)
	}
	c.says("no longer waiting for PostgreSQL")
	c.term()
}

// Processes of the server that do not run, of the stream and of the ledger, are told and waited for.
func TestFrozenProcesses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{pg: ownPostgres(t, nil)})
	c := w.streaming(20)
	for _, frozen := range []struct {
		pid       string
		status    string
		component string
		tells     string
	}{
		{"select recorder_pid from outbox_checkpoints", isFailed, "postgres", "the transaction that records outcomes"},
		{"select active_pid from pg_replication_slots where slot_name = '" + w.slot + "'", isDegraded, "keeper:slot lag", "sends the stream"},
	} {
		pid := ask[int](w, frozen.pid)
		if err := servers.Freeze(pid); err != nil {
			t.Fatal(err)
		}
		goOn := sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // it may have ended with the test
		t.Cleanup(goOn)
		w.insert(10)
		c.isWithin(time.Minute, frozen.status, frozen.component, frozen.tells)
		eventually(t, 10*time.Second, "a lag", func() error {
			if lag := c.metric("slot_lag_seconds"); lag < 4 {
				return fmt.Errorf("%g s", lag)
			}
			return nil
		})
		goOn()
		c.ready("leader")
	}
	w.verify(expectation{faults: 1})
	c.term()
}
