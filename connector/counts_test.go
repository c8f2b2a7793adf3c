package connector

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// countsBench is a connector whose sink is away, or refuses what is called poison, or accepts everything.
type countsBench struct {
	*connectorBench
	*running
	client  *ledger.Client
	refuses atomic.Bool
	away    atomic.Bool
}

func newCountsBench(t *testing.T) *countsBench {
	db := pgtest.New(t)
	b := &countsBench{connectorBench: newConnectorBenchIn(t, db)}
	b.cfg.Delivery.ParkAfter, b.cfg.Delivery.MaxRetries = 2*time.Second, 1
	b.cfg.Breaker = BreakerConfig{Enabled: true, MaxFailures: 3, ResetTimeout: 300 * time.Millisecond}
	b.answerByType(func(eventType string) error {
		switch {
		case b.away.Load():
			return fmt.Errorf("dial: %w", sinks.ErrUnavailable)
		case b.refuses.Load() && eventType == "poison":
			return errRefused
		}
		return nil
	})
	b.running = b.run()
	b.waitFor("a first count", func() bool { return !b.sink().CountedAt.IsZero() })
	var err error
	if b.client, err = ledger.NewClient(pgtest.Context(t), db.Conn(t), "public", "test"); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *countsBench) sink() monitoring.SinkStatus { return b.connector.Status().Sinks[0] }

// change lets a person change some of the rows with this status.
func (b *countsBench) change(action ledger.Action, n int) {
	b.t.Helper()
	status := map[ledger.Action]string{ledger.Kill: "parked"}[action]
	if status == "" {
		status = "dead"
	}
	rows, err := b.client.ReadParkedPage(pgtest.Context(b.t), ledger.ParkedPageQuery{
		Processor: b.client.Sinks[0].Processor, After: checkpoint.MinPosition, Status: status, Limit: n,
	})
	var keys []checkpoint.Key
	for _, r := range rows {
		keys = append(keys, r.Key)
	}
	if err == nil {
		_, err = b.client.Change(pgtest.Context(b.t), ledger.Change{Action: action, Slot: b.cfg.Source.Slot}, keys)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// right waits until Status is what the tables are, for three seconds.
func (b *countsBench) right(after string) monitoring.SinkStatus {
	b.t.Helper()
	const table = `select concat(count(*) filter (where status = 'parked'), ' parked, ', count(*) filter (where status = 'dead'), ' dead, ',
		count(distinct agg_hash) filter (where next_attempt_at is not null), ' held, ',
		round(coalesce(extract(epoch from clock_timestamp() - min(parked_at) filter (where status = 'parked')), 0))) from outbox_parked`
	deadline := time.Now().Add(3 * time.Second)
	for {
		st := b.sink()
		got := fmt.Sprintf("%d parked, %d dead, %d held, %.0f", st.Parked, st.DeadLetters, st.Held(), st.OldestParked.Seconds())
		want := b.query(table)
		if got == want {
			return st
		}
		if time.Now().After(deadline) {
			b.t.Errorf("after %s: Status has %s, the table %s", after, got, want)
			return st
		}
		time.Sleep(20 * time.Millisecond) // between two checks
	}
}

// Whoever changes rows of outbox_parked, Status has the right numbers within 3 s, without a count.
func TestCountsAreRightAtOnce(t *testing.T) {
	t.Parallel()
	b := newCountsBench(t)
	counted := b.sink().CountedAt
	b.away.Store(true)
	for i := range 20 {
		b.event(fmt.Sprintf("a%d", i%5), "poison")
	}
	b.eventually("select count(*) from outbox_parked", "20")
	b.right("an outage begins")
	b.change(ledger.Kill, 6)
	b.right("events are killed")
	b.change(ledger.Discard, 2)
	b.right("dead letters are discarded")
	b.change(ledger.Retry, 1)
	b.right("a dead letter is retried")
	b.event("b", "good")
	b.eventually("select count(*) from outbox_parked", "19")
	b.right("another event is parked")
	b.refuses.Store(true)
	b.away.Store(false)
	b.eventually("select count(*) > 5 from outbox_parked where status = 'dead'", "true") // then the sink is suspect
	b.right("the sink is back, and refuses")
	b.refuses.Store(false)
	b.waitFor("all dead letters are retried, also those that have just died", func() bool {
		b.change(ledger.Retry, 100)
		return b.query("select count(*) from outbox_parked") == "0"
	})
	if st := b.right("all dead letters are retried"); st.CountedAt != counted && st.CountedAt.Sub(counted) < countEvery {
		t.Errorf("the rows were counted again after %s", st.CountedAt.Sub(counted))
	}
	// Plain SQL tells nobody. A new connection with LISTEN counts, because it may have missed something.
	b.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event)
		select $1, '0/1', n, gen_random_uuid(), n, 'dead', '{}' from generate_series(1, 7) n`, b.client.Sinks[0].Processor)
	b.exec("select pg_terminate_backend(pid) from pg_stat_activity where query like '%is_active%' and pid <> pg_backend_pid() and datname = current_database()")
	b.waitFor("another count", func() bool { return b.sink().CountedAt != counted })
	b.right("plain SQL, and the listener's connection is lost")
	b.exec("select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = $1", b.cfg.Source.Slot)
	b.waitFor("the next session", func() bool { return b.connector.Status().Sessions == 2 })
	b.right("a session is lost")
	b.stop()
}

// After random changes of all kinds the numbers are those of the table.
func TestCountsAfterRandomChanges(t *testing.T) {
	t.Parallel()
	b := newCountsBench(t)
	b.refuses.Store(true)
	random := rand.New(rand.NewPCG(3, 5))
	for step := range 60 {
		switch x := random.IntN(12); {
		case x < 4:
			for range random.IntN(20) {
				b.event(fmt.Sprintf("a%d", random.IntN(6)), []string{"good", "poison"}[random.IntN(2)])
			}
		case x < 6:
			b.away.Store(random.IntN(2) == 0)
		case x == 6:
			b.change(ledger.Retry, 1+random.IntN(5))
		case x == 7:
			b.change(ledger.Discard, 1+random.IntN(5))
		case x == 8:
			b.change(ledger.Kill, 1+random.IntN(5))
		case x == 9 && step%4 == 0: // the COMMIT's answer may be lost
			b.exec("select pg_terminate_backend(recorder_pid) from outbox_checkpoints")
		case x == 10 && step%4 == 0:
			b.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1", b.cfg.Source.Slot)
		default:
			b.query(fmt.Sprintf("select pg_sleep(%g)", random.Float64()/10))
		}
	}
	b.away.Store(true)
	for range 3 {
		b.event("a", "last")
	}
	b.eventually("select count(*) > 0 from outbox_parked where event ->> 'event_type' = 'last'", "true")
	b.right("random changes")
	b.stop()
}

// With park_after: never the lanes hold the aggregates of what they try again.
func TestHeldInPlace(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	away := b.takeSinkAway()
	r := b.run()
	for i := range 9 {
		b.event(fmt.Sprintf("a%d", i%3), "e")
	}
	held := func(want int) func() bool {
		return func() bool { return r.connector.Status().Sinks[0].Held() == want }
	}
	b.waitFor("three aggregates held", held(3))
	away.Store(false)
	b.waitFor("nothing held", held(0))
	r.stop()
}

// A process that stands by does not know the numbers, because another one changes the rows.
func TestCountsOfAStandby(t *testing.T) {
	t.Parallel()
	b := newCountsBench(t)
	b.away.Store(true)
	b.event("a", "a1")
	b.eventually("select count(*) from outbox_parked", "1")
	b.right("an event is parked")
	second := b.run()
	b.waitFor("standing by", func() bool { return second.connector.Status().Role == monitoring.RoleStandby })
	if st := second.connector.Status(); !st.Sinks[0].CountedAt.IsZero() || st.LagBytes != 0 {
		t.Errorf("the standby has %+v, lag %d", st.Sinks[0], st.LagBytes)
	}
	b.stop()
	b.running = second
	b.waitFor("a takeover", func() bool { return second.connector.Status().Streaming })
	b.waitFor("a count", func() bool { return !b.sink().CountedAt.IsZero() })
	b.right("a takeover")
	b.stop()
}

// The lag in bytes follows the server while the outbox is idle, while the walsender decodes a large transaction, and under load.
func TestLagBytes(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	r := b.run()
	b.waitFor("streaming", func() bool { return r.connector.Status().Streaming })
	b.exec("create table other (t text)")
	lag := func() int64 { return r.connector.Status().LagBytes }
	right := func(when string) {
		t.Helper()
		deadline := time.Now().Add(3 * time.Second)
		for {
			before := lag()
			want := b.query("select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint from pg_replication_slots where slot_name = '" + b.cfg.Source.Slot + "'")
			var n int64
			if _, err := fmt.Sscan(want, &n); err != nil {
				t.Fatal(err)
			}
			if near := func(got int64) bool { return max(got-n, n-got) <= 256<<10 }; near(before) || near(lag()) {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: the lag is %d bytes, the server says %d", when, lag(), n)
				return
			}
			time.Sleep(20 * time.Millisecond) // between two checks
		}
	}
	right("idle")
	for range 5 {
		b.exec("insert into other select repeat(md5(n::text), 10) from generate_series(1, 3000) n")
		right("another table is written")
	}
	b.event("a", "a1")
	right("an event")
	tx, err := b.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := tx.Exec(t.Context(), "insert into other select repeat(md5(n::text), 20) from generate_series(1, 10000) n"); err != nil {
			t.Fatal(err)
		}
		right("a large transaction is open")
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	right("a large transaction was committed")
	r.stop()
}

// Keepalives that stand still, because the walsender is at work or frozen, do not hide how far the server has written.
func TestLagBytesOfAFrozenWalsender(t *testing.T) {
	t.Parallel()
	tracker := checkpoint.NewTracker(10, 1<<20, checkpoint.Position{}, 1000)
	var got []string
	lag := func() { got = append(got, fmt.Sprint(tracker.Snapshot(time.Now()).LagBytes)) }
	lag()
	tracker.Idle(1500) // a keepalive
	lag()
	tracker.Written(9000) // the query
	lag()
	tracker.Idle(1600)
	lag()
	tracker.Publish(tracker.Settled()) // what the keepalive allows
	lag()
	tracker.Commit(checkpoint.Transaction{LSN: 9900, EndLSN: 10_000})
	tracker.Publish(tracker.Settled())
	lag()
	if text := strings.Join(got, " "); text != "0 500 8000 8000 7400 0" {
		t.Errorf("the lag is %s", text)
	}
}
