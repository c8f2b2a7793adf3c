//go:build !containers

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

var failover = flag.Bool("failover", false, "promote standbys of several versions of PostgreSQL, some minutes in all")

// hotPair is a primary with a standby, and an outbox whose DSN names both.
type hotPair struct {
	*world
	primary, standby *servers.Postgres
	c                *connector
	number           int             // of the last event
	written          map[string]bool // ids that were committed on the primary before it was lost
	settled          map[string]bool // sink/id that the standby knows to be delivered, when it is promoted
}

type hotPairOptions struct {
	version string // of PostgreSQL; "" is any
	hasSlot bool   // the slot is a failover slot
}

// own starts a server that ends with the test.
func own(t *testing.T, start func(context.Context) (*servers.Postgres, error)) *servers.Postgres {
	t.Helper()
	p, err := start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of PostgreSQL's log:\n%s", p.Log())
		}
		closes(t, p)
	})
	return p
}

// newHotPair starts a connector that delivers to stdout and to a webhook.
func newHotPair(t *testing.T, o hotPairOptions) *hotPair {
	t.Helper()
	if !*failover {
		t.Skip("it takes a minute: make test-failover")
	}
	p := &hotPair{primary: own(t, func(ctx context.Context) (*servers.Postgres, error) {
		return servers.StartPostgres(ctx, servers.PostgresOptions{Version: o.version, Settings: map[string]string{"wal_keep_size": "256MB", "wal_log_hints": "on"}})
	})}
	if err := p.primary.MakeStandbySlot(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.standby = own(t, func(ctx context.Context) (*servers.Postgres, error) {
		return servers.StartReplica(ctx, p.primary, servers.StandbySettings(p.primary))
	})
	p.world = newWorld(t, worldOptions{pg: p.primary, sinks: []string{"stdout", "webhook"}, delivery: map[string]any{"park_after": "200ms"}, bare: true})
	u, err := url.Parse(p.dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = p.primary.Addr() + "," + p.standby.Addr()
	u.RawQuery += "&target_session_attrs=read-write&connect_timeout=5"
	p.dsn = u.String()
	p.source["dsn"], p.source["failover"] = p.dsn, o.hasSlot
	p.c = p.connector()
	p.c.does("init")
	p.c.start()
	p.c.ready("leader")
	p.write(40)
	p.arrive("stdout", "webhook")
	return p
}

// write commits n events, one after the other, each in a transaction of its own.
func (p *hotPair) write(n int) {
	p.t.Helper()
	conn := connect(p.t, p.dsn)
	defer conn.Close(context.Background())
	for range n {
		p.number++
		_, err := conn.Exec(p.t.Context(), `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
			values ('order', 'o-' || $1::int % 5, 'made', json_build_object('n', $1::int))`, p.number)
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// arrive waits until these sinks were given each event that the database has.
func (p *hotPair) arrive(sinks ...string) {
	p.t.Helper()
	for _, sink := range sinks {
		eventually(p.t, time.Minute, "all events at "+sink, func() error {
			if lost := p.lost(sink); len(lost) > 0 {
				return fmt.Errorf("%d are missing, the first is number %d", len(lost), lost[0])
			}
			return nil
		})
	}
}

type numberedEvent struct {
	aggregate string
	n         int
}

// events are those of the database, by id.
func (p *hotPair) events() map[string]numberedEvent {
	p.t.Helper()
	conn := connect(p.t, p.dsn)
	defer conn.Close(context.Background())
	rows, err := conn.Query(p.t.Context(), "select id::text, aggregate_id, (payload ->> 'n')::int from event_outbox")
	if err != nil {
		p.t.Fatal(err)
	}
	all := map[string]numberedEvent{}
	var id string
	var e numberedEvent
	if _, err := pgx.ForEachRow(rows, []any{&id, &e.aggregate, &e.n}, func() error { all[id] = e; return nil }); err != nil {
		p.t.Fatal(err)
	}
	return all
}

func (p *hotPair) lost(sink string) (numbers []int) {
	p.t.Helper()
	events := p.events()
	for _, d := range p.received(sink) {
		delete(events, d.id)
	}
	for _, e := range events {
		numbers = append(numbers, e.n)
	}
	slices.Sort(numbers)
	return numbers
}

// synced waits until the standby has a copy of the slot that outlives a promotion.
func (p *hotPair) synced() {
	p.t.Helper()
	p.exec("select pg_log_standby_snapshot()") // the server does so every 15 s; the slot can move then
	p.standbySays(fmt.Sprintf(`select exists (select from pg_replication_slots
		where slot_name = '%s' and synced and not temporary and invalidation_reason is null)`, p.slot))
}

// standbySays waits until the standby's answer to a question is yes.
func (p *hotPair) standbySays(sql string) {
	p.t.Helper()
	conn := connect(p.t, p.standby.DSN("postgres"))
	defer conn.Close(context.Background())
	eventually(p.t, time.Minute, "yes to "+sql, func() error {
		var yes bool
		if err := conn.QueryRow(p.t.Context(), sql).Scan(&yes); err != nil || yes {
			return err
		}
		return errors.New("the standby says no")
	})
}

// caughtUp waits until the standby has replayed what the primary has written so far.
func (p *hotPair) caughtUp() {
	p.t.Helper()
	p.standbySays(fmt.Sprintf("select coalesce(pg_last_wal_replay_lsn() >= '%s', false)", ask[string](p.world, "select pg_current_wal_flush_lsn()::text")))
}

// fail crashes the primary and promotes the standby.
func (p *hotPair) fail() {
	p.t.Helper()
	p.written = map[string]bool{}
	for id := range p.events() {
		p.written[id] = true
	}
	p.stop(servers.Immediate)
	p.promote()
}

func (p *hotPair) stop(mode servers.StopMode) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	if err := p.primary.Stop(ctx, mode); err != nil {
		p.t.Fatal(err)
	}
}

// promote makes the standby the primary. It notes before what the standby knows to be delivered.
func (p *hotPair) promote() {
	p.t.Helper()
	p.standbySays("select pg_last_wal_replay_lsn() >= coalesce(pg_last_wal_receive_lsn(), '0/0')")
	conn := connect(p.t, p.standby.DSN(p.database))
	defer conn.Close(context.Background())
	rows, err := conn.Query(p.t.Context(), `select processor_name || '/' || event_id from outbox_delivery_log l join outbox_processors p on p.id = processor_id
		where status = 'delivered'`)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.settled == nil {
		p.settled = map[string]bool{}
	}
	var key string
	if _, err := pgx.ForEachRow(rows, []any{&key}, func() error { p.settled[key] = true; return nil }); err != nil {
		p.t.Fatal(err)
	}
	if err := p.standby.Promote(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	p.primary, p.standby = p.standby, p.primary
	p.pg = p.primary
}

// rejoin makes a standby of the former primary.
func (p *hotPair) rejoin() {
	p.t.Helper()
	if err := p.primary.MakeStandbySlot(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	if err := p.standby.Rejoin(p.t.Context(), p.primary, servers.StandbySettings(p.primary)); err != nil {
		p.t.Fatal(err)
	}
	p.caughtUp()
}

// judge wants nothing lost, each aggregate in order, nothing repeated that the promoted standby knew to be delivered, and returns how many
// events were delivered that its database does not have, and how many came twice.
func (p *hotPair) judge() (phantoms, repeated int) {
	p.t.Helper()
	events := p.events()
	unknown := map[string]bool{}
	for _, sink := range []string{"stdout", "webhook"} {
		if lost := p.lost(sink); len(lost) > 0 {
			p.t.Errorf("%s was never given the events %v", sink, lost)
		}
		times, last := map[string]int{}, map[string]int{}
		for _, d := range p.received(sink) {
			if times[d.id]++; times[d.id] > 1 {
				repeated++
				if p.settled[sink+"/"+d.id] {
					p.t.Errorf("%s was given event %d again, of which the standby knew that it was delivered", sink, events[d.id].n)
				}
				continue
			}
			e, known := events[d.id]
			switch {
			case known && e.n < last[e.aggregate]:
				p.t.Errorf("%s was given event %d of %s after %d", sink, e.n, e.aggregate, last[e.aggregate])
			case known:
				last[e.aggregate] = e.n
			case !p.written[d.id]:
				p.t.Errorf("%s was given event %s, which was never committed", sink, d.id)
			default:
				unknown[d.id] = true
			}
		}
	}
	p.t.Logf("%d events, %d phantoms, %d repeated", len(events), len(unknown), repeated)
	return len(unknown), repeated
}

// A standby that lags is promoted while a sink is away. It has the slot, so the connector goes on by itself.
func TestFailoverWithTheSlot(t *testing.T) {
	t.Parallel()
	for name, withheld := range map[string]bool{"synchronized_standby_slots": true, "phantoms": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newHotPair(t, hotPairOptions{version: "17", hasSlot: true})
			if withheld {
				p.exec("alter system set synchronized_standby_slots = 'standby'")
				p.exec("select pg_reload_conf()")
			}
			p.synced()
			eventually(t, time.Minute, "the standby is counted", func() error {
				if n := p.c.metric("slot_sync_standbys"); n != 1 {
					return fmt.Errorf("slot_sync_standbys is %v", n)
				}
				return nil
			})
			p.hook.status.Store(503)
			p.write(20)
			p.parksAtLeast(20*time.Second, "webhook", 20)
			p.caughtUp()
			if err := p.standby.Unfollow(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.write(15)
			if !withheld {
				p.arrive("stdout")
			} else {
				p.c.degraded("keeper:slot lag", "holds the stream back", "(standby)")
				if lag := p.c.metric("slot_lag_seconds"); lag < 5 {
					t.Errorf("slot_lag_seconds is %v", lag)
				}
			}
			p.fail()
			p.write(20)
			p.arrive("stdout")
			p.hook.status.Store(0)
			p.arrive("webhook")
			p.c.ready("leader")
			phantoms, _ := p.judge()
			if withheld && phantoms > 0 {
				t.Errorf("%d phantoms, although the standby was to have all first", phantoms)
			}
			if !withheld && phantoms != 15 {
				t.Errorf("%d phantoms, want the 15 events that the standby never had", phantoms)
			}
			if n := len(p.c.runs); n != 1 {
				t.Errorf("the connector was started %d times", n)
			}
			p.c.term()
		})
	}
}

// Before PostgreSQL 17 a promoted standby has no slot. The connector ends and says what to do, which is what docs/failover.md says.
func TestFailoverWithoutASlot(t *testing.T) {
	t.Parallel()
	p := newHotPair(t, hotPairOptions{version: "15"})
	p.hook.status.Store(503)
	p.write(20)
	p.parksAtLeast(20*time.Second, "webhook", 20)
	p.caughtUp()
	if err := p.standby.Unfollow(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.write(15)
	p.arrive("stdout")
	p.fail()
	p.c.exits(time.Minute, exitcode.SlotLost)
	p.write(20) // nobody streams yet
	p.c.does("resync", "--yes")
	p.c.start()
	p.write(5)
	p.arrive("stdout")
	p.hook.status.Store(0)
	p.arrive("webhook")
	p.c.ready("leader")
	if phantoms, _ := p.judge(); phantoms != 15 {
		t.Errorf("%d phantoms, want the 15 events that the standby never had", phantoms)
	}
	p.c.term()
}

// A switchover: the primary is stopped, the standby has all of it, and the former primary follows. Nothing is repeated, and back again.
func TestFailoverBySwitchover(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"15", "17"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			hasSlot := version >= "17"
			p := newHotPair(t, hotPairOptions{version: version, hasSlot: hasSlot})
			for range 2 {
				if hasSlot {
					p.synced()
				}
				p.hook.status.Store(503)
				p.write(10)
				p.parksAtLeast(20*time.Second, "webhook", 10)
				p.stop(servers.Fast)
				p.promote()
				if !hasSlot {
					p.c.exits(time.Minute, exitcode.SlotLost)
					p.c.does("resync", "--yes")
					p.c.start()
				}
				p.write(10)
				p.arrive("stdout")
				p.hook.status.Store(0)
				p.arrive("webhook")
				p.c.ready("leader")
				p.rejoin()
				p.dropOldSlot()
			}
			if phantoms, repeated := p.judge(); phantoms > 0 || repeated > 0 {
				t.Errorf("%d phantoms, %d repeated, want none", phantoms, repeated)
			}
			p.c.term()
		})
	}
}

// dropOldSlot drops the slot that the former primary has of its own, as docs/failover.md says: it keeps WAL for ever, and no copy of the new
// one can be made in its place.
func (p *hotPair) dropOldSlot() {
	p.t.Helper()
	conn := connect(p.t, p.standby.DSN("postgres"))
	defer conn.Close(context.Background())
	if _, err := conn.Exec(p.t.Context(), `select pg_drop_replication_slot(slot_name) from pg_replication_slots s
		where slot_name = $1 and to_jsonb(s) ->> 'synced' is distinct from 'true'`, p.slot); err != nil {
		p.t.Fatal(err)
	}
}

// The primary crashes, is rewound, follows, and is promoted in its turn.
func TestFailoverAndRewind(t *testing.T) {
	t.Parallel()
	p := newHotPair(t, hotPairOptions{})
	p.caughtUp()
	if err := p.standby.Unfollow(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.write(10)
	p.arrive("stdout", "webhook")
	p.fail()
	p.c.exits(time.Minute, exitcode.SlotLost)
	p.c.does("resync", "--yes")
	p.c.start()
	p.c.ready("leader")
	p.write(10)
	p.arrive("stdout", "webhook")
	if err := p.standby.Rewind(t.Context(), p.primary); errors.Is(err, servers.ErrNoRewind) {
		t.Skip("these programs of PostgreSQL lack pg_rewind")
	} else if err != nil {
		t.Fatal(err)
	}
	p.rejoin()
	p.write(10)
	p.arrive("stdout", "webhook")
	p.caughtUp()
	p.stop(servers.Fast)
	p.promote()
	p.c.exits(time.Minute, exitcode.SlotLost)
	p.c.does("resync", "--yes")
	p.c.start()
	p.c.ready("leader")
	p.write(10)
	p.arrive("stdout", "webhook")
	if phantoms, _ := p.judge(); phantoms != 10 {
		t.Errorf("%d phantoms, want the 10 events that were rewound", phantoms)
	}
	p.c.term()
}
