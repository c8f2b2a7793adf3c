package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// These tests check the LSN rules of docs/design.md that only a real server can show to be kept. See test/mutants.

// streaming reports whether the connector has begun to stream.
func (r *running) streaming() bool {
	report := r.health.Report()
	return report.Ready && report.Role == monitoring.RoleLeader
}

// wantRefusal waits for Run to end by itself without ever streaming, with this exit code and text.
func (r *running) wantRefusal(code exitcode.Code, text string) {
	r.b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		select {
		case err := <-r.ended:
			r.ended <- err
			r.wantExit(code, text)
			return
		case <-time.After(10 * time.Millisecond): // between two checks
		}
		if r.streaming() || time.Now().After(deadline) {
			r.b.t.Fatalf("the start was not refused: %+v", r.health.Report())
		}
	}
}

// onLane returns the name of the n-th aggregate, from 0, that goes to this lane.
func (b *connectorBench) onLane(lane, n int) string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("l%d-%d", lane, i)
		if router.Lane(router.AggregateHash("t", name), b.cfg.Delivery.Lanes) != lane {
			continue
		}
		if n--; n < 0 {
			return name
		}
	}
}

// holdBack makes the sink hold back deliveries of events of this type until the test lets go, which ends with the test at the
// latest.
func (b *connectorBench) holdBack(eventType string) (held <-chan struct{}, release func()) {
	begun, gone := make(chan struct{}), make(chan struct{})
	begin, release := sync.OnceFunc(func() { close(begun) }), sync.OnceFunc(func() { close(gone) })
	b.t.Cleanup(release)
	b.setSink(func(ctx context.Context, batch []sinks.Message) []error {
		if !slices.ContainsFunc(batch, func(m sinks.Message) bool { return m.Event.EventType == eventType }) {
			return nil
		}
		begin()
		select {
		case <-gone:
			return nil
		case <-ctx.Done():
			return slices.Repeat([]error{sinks.ErrUnavailable}, len(batch))
		}
	})
	return begun, release
}

// If there are no events, but others write to the database, keepalives let the slot follow the WAL.
func TestIdleOutboxLetsTheSlotFollow(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	r := b.run()
	b.exec("create table busy (filler text)")
	b.exec("alter table busy alter filler set storage external")
	for range 3 {
		b.exec("insert into busy select string_agg(md5(i::text), '') from generate_series(1, 32768) i")
	}
	behind := b.query("select pg_current_wal_lsn()")
	b.eventually("select ("+confirmedQuery+") > '"+behind+"'::pg_lsn - 1048576 - 65536", "true")
	r.stop()
	// The checkpoint covers it, and stands before the first event of a commit record that begins there.
	if got := b.query("select prefix_index || ' ' || (prefix_lsn = confirmed_lsn and confirmed_lsn >= (" + confirmedQuery + ")) from outbox_checkpoints"); got != "-1 true" {
		t.Errorf("checkpoint: %s, want -1 true", got)
	}
}

// The stream starts where the slot stands, and not at the checkpoint's LSN, which may be ahead of the server after a failover.
func TestStoredLSNIsNotWhereTheStreamStarts(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.event("a", "one")
	b.exec("update outbox_checkpoints set confirmed_lsn = pg_current_wal_insert_lsn()")
	r := b.run()
	b.event("a", "two")
	b.eventually("select count(*) > 0 from outbox_delivery_log where event_id = (select id from event_outbox where event_type = 'two')", "true")
	r.stop()
	if got := b.received(); got != "one two" {
		t.Errorf("received %q, want %q", got, "one two")
	}
}

// While the window is full the reader waits. It goes on reporting to the server meanwhile.
func TestProgressIsReportedWhileTheWindowIsFull(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	const window = 5
	b.cfg.Delivery.MaxInFlight, b.cfg.Delivery.BatchSize = window, 1
	// All of it is there before the start, so that the reader has much more than the window in its buffer. Lane 0 is held at
	// "first", lane 1 at "second", which never ends.
	b.event(b.onLane(0, 0), "first")
	b.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 't', $1, 'second', '{}' from generate_series(1, 500)`, b.onLane(1, 0))
	letGo := map[string]chan struct{}{"first": make(chan struct{}), "second": make(chan struct{})}
	began := map[string]chan struct{}{"first": make(chan struct{}, 1), "second": make(chan struct{}, 1)}
	t.Cleanup(func() { close(letGo["second"]) })
	b.setSink(func(_ context.Context, batch []sinks.Message) []error {
		which := batch[0].Event.EventType
		began[which] <- struct{}{}
		<-letGo[which]
		return nil
	})
	b.cfg.Delivery.DrainTimeout = 100 * time.Millisecond
	b.run()
	// The reader hands over when its buffer is empty, which it is not, or when the window is full.
	<-began["first"]
	<-began["second"]
	held := b.query(confirmedQuery)
	close(letGo["first"])
	// Known from the ledger: other tests write into the same WAL, so a position asked for is not the event's.
	const commit = "(select commit_lsn from outbox_delivery_log where tx_index = 0)"
	b.eventually("select ("+confirmedQuery+") > "+commit, "true")
	if got := b.query("select '" + held + "'::pg_lsn <= " + commit); got != "true" {
		t.Errorf("the slot stood at %s before the first event was settled, past it", held)
	}
}

// An event may have the id of another one that was delivered. Settled events are recognised by their positions, so it is delivered too.
func TestSameIDIsAnotherEvent(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.cfg.Delivery.DrainTimeout = 100 * time.Millisecond
	held, _ := b.holdBack("stuck")
	r := b.run()
	b.event(b.onLane(0, 0), "stuck")
	<-held
	b.event(b.onLane(1, 0), "one")
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "1")
	r.cancel()
	if err := <-r.ended; !errors.Is(err, errDrainTimeout) {
		t.Errorf("ended with %v, want that the drain timed out", err)
	}
	b.exec("with gone as (delete from event_outbox where event_type = 'one' returning id, aggregate_id) " +
		"select set_config('test.id', id::text, false) from gone")
	b.exec(`insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload) values (current_setting('test.id')::uuid, 't', $1, 'two', '{}')`, b.onLane(1, 0))
	b.setSink(func(context.Context, []sinks.Message) []error { return nil })
	r = b.run()
	b.eventually("select count(*) = 3 and max(commit_lsn) < ("+confirmedQuery+") from outbox_delivery_log where status = 'delivered'", "true")
	r.stop()
	got := strings.Fields(b.received())
	slices.Sort(got)
	if !slices.Equal(got, []string{"one", "stuck", "two"}) {
		t.Errorf("received %q, want one, stuck and two, once each", got)
	}
}

// A role's or the server's synchronous_commit = off would let a crash keep the slot's position and lose the rows before it.
func TestTheLedgerWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.exec("do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$")
	conn, err := (&postgres{source: b.cfg.Source, logins: newLogins(b.cfg.Source)}).connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var got string
	if err := conn.QueryRow(t.Context(), "show synchronous_commit").Scan(&got); err != nil || got != "on" {
		t.Errorf("synchronous_commit is %s, want on: %v", got, err)
	}
}

// A server that shuts down waits until we have confirmed everything, which is impossible once it has ended the SQL sessions. So the connector closes
// the stream at once, and does not wait for a sink that hangs before that.
func TestServerIsLetGo(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, servers.PostgresOptions{Settings: servers.NoSync()})
	dsn := pg.DSN("postgres")
	if err := migrations.Apply(t.Context(), dsn, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	b := newConnectorBenchIn(t, &pgtest.Database{Name: "postgres", DSN: dsn, Admin: dsn})
	b.cfg.Delivery.DrainTimeout, b.cfg.Delivery.Timeout = time.Minute, time.Minute
	held, _ := b.holdBack("stuck")
	r := b.run()
	b.event("a", "stuck")
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := pg.Stop(ctx, servers.Fast); err != nil {
		t.Fatalf("the server waits for us: %v", err)
	}
	r.stop()
}

// A recorder whose session was ended, by a person or a time-out, connects again: ours goes on, and nothing is delivered
// twice.
func TestRecorderThatIsEndedComesBack(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	r := b.run()
	b.event("a", "one")
	b.eventually("select count(*) from outbox_delivery_log", "1")
	epoch := b.query("select epoch from outbox_checkpoints")
	b.exec("select pg_terminate_backend(recorder_pid, 5000) from outbox_checkpoints")
	b.event("a", "two")
	b.eventually("select count(*) from outbox_delivery_log", "2")
	r.stop()
	if got := b.query("select epoch from outbox_checkpoints"); got != epoch {
		t.Errorf("epoch %s, want still %s", got, epoch)
	}
	if got := b.received(); got != "one two" {
		t.Errorf("received %q, want %q", got, "one two")
	}
}
