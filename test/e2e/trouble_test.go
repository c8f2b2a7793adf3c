package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// The publication changes under the connector: what is missing shows nowhere on the stream, so it looks.
func TestPublicationDrifts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(20)
	w.deliveredAtLeast(10*time.Second, 20)
	w.exec("alter publication " + w.publication + " drop table event_outbox")
	c.exits(45*time.Second, exitcode.Config)
	c.says("does not publish table public.event_outbox", "alter publication")
	stands := w.confirmed()
	c.refuses(exitcode.Config, "does not publish table public.event_outbox", "alter publication")
	w.stands(stands)
	w.exec("alter publication " + w.publication + " add table event_outbox")
	w.insert(20)
	c.start()
	w.verify(expectation{})
	c.term()
}

// The publication is gone: rows written meanwhile cannot be decoded any more, and nothing may pass them.
func TestPublicationDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.streaming(20)
	w.exec("drop publication " + w.publication)
	w.insert(20)
	c.exits(45*time.Second, exitcode.Config)
	c.says("publication", "does not exist", "outbox-cdc init")
	w.before(20)
	w.owed(20)
}

// A column that is needed gets another name while events are written: the session stops with the cause, and goes on
// once the configuration knows the name.
func TestColumnRenamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.streaming(20)
	w.exec("alter table event_outbox rename event_type to kind")
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, kind, payload) select 'order', i % 3, 'renamed', '{}' from generate_series(1, 10) i")
	c.exits(45*time.Second, exitcode.Config)
	c.says("event_type", "is missing", "kind", "source.columns")
	w.before(20)
	w.snapshot()
	w.source["columns"] = map[string]any{"event_type": "kind"}
	w.writeConfig(c)
	c.start()
	w.verify(expectation{})
	c.term()
}

// A column got another name while the connector was away, and rows of before are still in the WAL: the configuration fits
// the table, and not the rows. They are not passed, and delivered once the change is undone.
func TestRowThatCannotBeDecoded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.insert(20)
	w.exec("alter table event_outbox rename event_type to kind")
	c := w.connector()
	w.source["columns"] = map[string]any{"event_type": "kind"}
	w.writeConfig(c)
	c.start()
	c.failed("session", "event_outbox drifted", `"kind" (event_type) is missing`, "undo the change", "source.columns")
	c.isWithin(30*time.Second, isFailed, "session", "3 times in a row", "outbox-cdc skip --lsn", "docs/slot.md#skip") // where the change cannot be undone
	// A session that brings nothing is not repeated at once.
	eventually(t, 30*time.Second, "a longer wait", func() error {
		if log := tail(c.last().stderr, 1000); !regexp.MustCompile(`"wait":"[3-9](\.\d+)?s"`).MatchString(log) {
			return errors.New(tail(c.last().stderr, 3))
		}
		return nil
	})
	w.before(0)
	w.owed(20)
	c.term()
	w.exec("alter table event_outbox rename kind to event_type")
	delete(w.source, "columns")
	w.writeConfig(c)
	c.start()
	w.verify(expectation{})
	c.term()
}

// A right is taken away under a running connector: nothing can be recorded, and nothing moves, until it is given back.
func TestPrivilegeRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	role := w.role()
	w.source["dsn"], w.source["replication_dsn"] = asRole(t, w.dsn, role, "secret"), w.dsn
	w.exec("grant all on all tables in schema public to " + role + "; grant all on all functions in schema public to " + role)
	c := w.streaming(20)
	w.exec("revoke insert on outbox_delivery_log from " + role)
	w.insert(20)
	c.failed("recorder", "permission denied", "outbox_delivery_log")
	w.before(20)
	w.exec("grant insert on outbox_delivery_log to " + role)
	c.ready("leader")
	w.verify(expectation{})
	c.term()
}

// A topic that does not exist is a destination that is away: degraded, nothing dead, and delivered once it exists.
func TestUnknownTopic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{never: true})
	right := w.topics
	w.topics = topics{prefix: right.prefix + "_late"}
	w.sinks[0]["topic"] = w.topics.prefix + ".{aggregate_type}"
	c := w.connector()
	c.start()
	w.insert(20)
	c.degraded("sink:kafka", w.topics.prefix, "UNKNOWN_TOPIC", "create it")
	w.before(0)
	w.createTopics()
	w.log = newKafkaLog(t, w.kafka.Brokers(), w.topics.names())
	c.ready("leader")
	w.verify(expectation{})
	c.term()
}

func TestBrokerThatIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{never: true})
	proxy, err := servers.NewProxy(w.kafka.Brokers()[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	proxy.Refuse()
	w.sinks[0]["brokers"] = []string{proxy.Addr()}
	c := w.connector()
	c.start()
	c.degraded("sink:kafka", proxy.Addr()) // before the first event
	w.insert(20)
	w.before(0)
	w.owed(20)
	proxy.Accept()
	c.ready("leader")
	w.verify(expectation{})
	c.term()
}

// What can never be delivered is a dead letter, and its aggregate goes on.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{delivery: map[string]any{"max_event_bytes": "100KiB"}})
	small := topics{prefix: w.topics.prefix + "_small"}
	w.topics = small
	for _, name := range small.names() {
		if err := w.kafka.CreateTopic(t.Context(), name, partitions, map[string]string{"max.message.bytes": "20000"}); err != nil {
			t.Fatal(err)
		}
	}
	w.log = newKafkaLog(t, w.kafka.Brokers(), small.names())
	w.sinks[0]["topic"] = small.prefix + ".{aggregate_type}"
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(30)
	big := "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'b-2', 'big', to_json(repeat('x', %s))) returning id::text"
	status := map[string]string{
		ask[string](w, fmt.Sprintf(big, "30000")):  "dead",    // more than the topic takes
		ask[string](w, fmt.Sprintf(big, "200000")): "invalid", // more than we take
	}
	w.insert(30)
	w.verify(expectation{status: status})
	if n := ask[int](w, "select count(*) from outbox_parked where status = 'dead'"); n != 2 {
		t.Errorf("%d dead letters are kept, want 2", n)
	}
	c.ready("leader")
	c.term()
}

// Somebody's open transaction holds the checkpoint's row: the recorder waits, says so, and goes on.
func TestLedgerLocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(20)
	w.deliveredAtLeast(10*time.Second, 20)
	conn := connect(t, w.dsn)
	defer conn.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from outbox_checkpoints for update"); err != nil {
		t.Fatal(err)
	}
	w.insert(20)
	c.failed("recorder", "lock")
	w.snapshot()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.ready("leader")
	w.verify(expectation{})
	c.term()
}

// All connections to PostgreSQL break under load, again and again.
func TestConnectionsCut(t *testing.T) {
	t.Parallel()
	const cuts = 6
	w := newWorld(t, worldOptions{})
	proxy, err := servers.NewProxy(w.pg.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	w.source["dsn"] = through(t, w.dsn, proxy.Addr())
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 3, aggregates: 10, rate: 150})
	for range cuts {
		w.deliveredAtLeast(30*time.Second, w.delivered()+50)
		w.snapshot()
		proxy.Cut()
	}
	w.deliveredAtLeast(30*time.Second, w.delivered()+50)
	l.stop()
	w.verify(expectation{faults: cuts})
	c.ready("leader")
	c.term()
}
