package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// kill -9 and crashes of PostgreSQL at random moments while lanes catch up, arrivals coming in. When little is left to catch
// up with, the destination goes away again.
func TestCrashesWhileCatchingUp(t *testing.T) {
	t.Parallel()
	const kills, crashes = 20, 4
	pg := ownPostgres(t, nil)
	w := newWorld(t, worldOptions{pg: pg, sinks: []string{"redis_stream"}, proxied: true})
	proxy := w.proxies["redis_stream"]
	proxy.SetLatency(10 * time.Millisecond)
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(20)
	w.deliveredAtLeast(20*time.Second, 20)
	l := w.load(load{writers: 2, aggregates: 30, rate: 20})
	random := testrand.New(t)
	left := 0 // parked
	for i := range kills + crashes {
		if left < 600 {
			proxy.Refuse()
			proxy.Cut()
			for n := range 3 {
				w.insertEach(fmt.Sprintf("more%d", n), 500) // the same aggregates each time
			}
			w.parksAtLeast(30*time.Second, "redis_stream", 1500)
			proxy.Accept()
		}
		left = w.parked()
		eventually(t, 30*time.Second, "catching up", func() error {
			if n := w.parked(); n >= left {
				return fmt.Errorf("%d are parked, as before", n)
			}
			return nil
		})
		passes(t, time.Duration(random.IntN(100))*time.Millisecond)
		if i%6 == 5 {
			w.must(pg.Stop(context.Background(), servers.Immediate))
			w.must(pg.Start(context.Background()))
		} else {
			c.kill()
			c.start()
		}
		left = w.parked()
		w.snapshot()
		c.ready("leader")
	}
	l.stop()
	w.verify(expectation{faults: kills + crashes})
	c.ready("leader")
	c.term()
}

// A person's open transaction holds what the recorder writes to, while a destination is away: everything waits, for as long
// as that takes, and then goes on.
func TestLedgerLockedWhileParking(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"parked": "lock table outbox_parked in access exclusive mode",
		"rows":   "select from outbox_parked for update; lock table outbox_delivery_log in share mode",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{"redis_stream", "stdout"}, proxied: true})
			proxy := w.proxies["redis_stream"]
			c := w.connector()
			c.start()
			c.ready("leader")
			l := w.load(load{writers: 2, aggregates: 20, rate: 50})
			w.deliveredAtLeast(20*time.Second, 100)
			proxy.Refuse()
			proxy.Cut()
			w.parksAtLeast(20*time.Second, "redis_stream", 50)
			conn := connect(t, w.dsn)
			defer conn.Close(context.Background())
			if _, err := conn.Exec(t.Context(), "begin; "+sql); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			c.failed("recorder", "lock")
			w.mustNotMove(conn.PgConn().PID())
			passes(t, 10*time.Second-time.Since(began))
			proxy.Accept() // and back, with the ledger still locked
			passes(t, 20*time.Second-time.Since(began))
			if _, err := conn.Exec(t.Context(), "rollback"); err != nil {
				t.Fatal(err)
			}
			c.ready("leader")
			w.live(c, 30*time.Second)
			l.stop()
			w.verify(expectation{})
			if n := c.metric("sessions_total"); n != 1 {
				t.Errorf("%v sessions, want the first to have survived", n)
			}
			c.term()
		})
	}
}

// mustNotMove checks that it is us whom the lock's owner holds up. A slot that another test makes waits for all transactions.
func (w *world) mustNotMove(owner uint32) {
	w.t.Helper()
	waiting := ask[string](w, `select coalesce(string_agg(query, '; '), '') from pg_stat_activity
		where $1 = any (pg_blocking_pids(pid)) and application_name like 'outbox-cdc%' and backend_type <> 'walsender'`, int32(owner))
	if waiting != "" && !strings.Contains(waiting, "outbox_") {
		w.t.Errorf("what waits for the lock is %q", waiting)
	}
}
