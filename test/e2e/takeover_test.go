package e2e

import (
	"context"
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

var takeover = flag.Bool("takeover", false, "lock the ledger for 20 s under two instances, a minute")

// pair are two instances of one configuration, of which the first one streams. A receiver can tell their messages apart. Each Deliver is one
// request.
type pair struct {
	*world
	first, second *connector
	proxy         *servers.Proxy // through which the first one reaches PostgreSQL
	load          *loader
}

// The paths to which the two of a pair send.
const (
	firstPath  = "/events/first"
	secondPath = "/events/second"
)

func newPair(t *testing.T) *pair {
	p := &pair{world: newWorld(t, worldOptions{sinks: []string{"webhook"}, delivery: map[string]any{"batch_size": 1}})}
	var err error
	if p.proxy, err = servers.NewProxy(p.pg.Addr()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, p.proxy) })
	url, direct := "http://"+p.hook.server.Listener.Addr().String(), p.source["dsn"]
	p.sinks[0]["url"], p.source["dsn"] = url+firstPath, through(t, p.dsn, p.proxy.Addr())
	p.first = p.connector()
	p.sinks[0]["url"], p.source["dsn"] = url+secondPath, direct
	p.second = p.connector()
	p.first.start()
	p.first.ready("leader")
	p.second.start()
	p.second.ready("standby")
	p.load = p.world.load(load{writers: 3, aggregates: 10, rate: 50})
	p.deliveredAtLeast(20*time.Second, 50)
	return p
}

// takenOver waits for the first message of the second instance, and checks how long after the end of the first one it came.
func (p *pair) takenOver(ended time.Time, bound time.Duration) (at time.Time) {
	p.t.Helper()
	eventually(p.t, bound+10*time.Second, "a message of the second instance", func() error {
		all := p.hook.requests(secondPath)
		if len(all) == 0 {
			return fmt.Errorf("it has sent none")
		}
		at = all[0]
		return nil
	})
	took := at.Sub(ended)
	p.t.Logf("the second instance has sent its first message %s after the end of the first one, %s are promised", took.Round(time.Millisecond), bound)
	if took > bound {
		p.t.Errorf("that is too late")
	}
	return at
}

// sentNothingSince checks that the first instance has sent no message after this time.
func (p *pair) sentNothingSince(at time.Time) {
	p.t.Helper()
	late := 0
	for _, came := range p.hook.requests(firstPath) {
		if came.After(at) {
			late++
		}
	}
	if late > 0 {
		p.t.Errorf("the first instance has sent %d messages after the second one had begun", late)
	}
}

// How long a takeover takes, from the end of the one process to the first message of the other: docs/instances.md promises it. A process that is
// only cut off from PostgreSQL sends nothing more when the other one has begun.
func TestTakeover(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		end    func(p *pair)
		bound  time.Duration
		faults int
		lives  bool // the first instance does
	}{
		"clean":      {end: func(p *pair) { p.first.term() }, bound: 2 * time.Second},
		"kill":       {end: func(p *pair) { p.first.kill() }, bound: 4 * time.Second, faults: 1},
		"cut, there": {end: func(p *pair) { p.proxy.Stall(servers.ToServer) }, bound: 19 * time.Second, faults: 1, lives: true},
		"cut, back":  {end: func(p *pair) { p.proxy.Stall(servers.ToClient) }, bound: 19 * time.Second, faults: 1, lives: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			tt.end(p)
			began := p.takenOver(time.Now(), tt.bound)
			p.deliveredAtLeast(20*time.Second, p.delivered()+50)
			if tt.lives {
				p.proxy.Stall(servers.ToServer, servers.ToClient)
				passes(t, time.Second)
				p.proxy.Resume()
				p.first.ready("standby")
			}
			p.load.stop()
			p.verify(expectation{faults: tt.faults})
			p.sentNothingSince(began)
			p.second.term()
		})
	}
}

// A process is frozen while each of its lanes waits for an answer, and thaws after another one has taken over. The answers are there then, and
// much waits behind them. It sends nothing more. Frozen for some seconds without a successor, it goes on as if nothing had happened.
func TestFrozenThroughATakeover(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	freeze := func() {
		t.Helper()
		p.must(servers.Freeze(p.first.last().cmd.Process.Pid))
	}
	thaw := func() {
		t.Helper()
		p.must(p.first.last().cmd.Process.Signal(syscall.SIGCONT))
	}
	epoch := func() int { return ask[int](p.world, "select epoch from outbox_checkpoints") }

	before := epoch()
	freeze()
	passes(t, 3*time.Second)
	thaw()
	p.deliveredAtLeast(20*time.Second, p.delivered()+100)
	if now, parked := epoch(), p.first.metric("parked_total"); now != before || parked > 0 {
		t.Errorf("after 3 s the epoch is %d, it was %d; %g events were parked", now, before, parked)
	}

	var waiting atomic.Int64
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	p.hook.meet(func(string, string) answer {
		waiting.Add(1)
		<-gate
		return answer{}
	})
	eventually(t, 20*time.Second, "a request of each lane", func() error {
		if n := waiting.Load(); n < int64(p.lanes) {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
	passes(t, 200*time.Millisecond) // events pile up behind them
	freeze()
	stopped := len(p.hook.requests(firstPath))
	open()
	p.hook.meet(nil)
	p.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1", p.slot)
	p.takenOver(time.Now(), 4*time.Second)
	p.deliveredAtLeast(20*time.Second, p.delivered()+100)
	thaw()
	p.first.ready("standby")
	p.load.stop()
	p.verify(expectation{faults: 1})
	if n := len(p.hook.requests(firstPath)) - stopped; n > 0 {
		t.Errorf("after the thaw %d requests were sent", n)
	}
	p.first.term()
	p.second.term()
}

// A ledger that is locked for 20 s costs no session. If only the checkpoint's row is locked, the lease goes on. If the whole table is, nothing is
// sent, /readyz says why, and no other instance takes over, because it could not raise the epoch either.
func TestLedgerLockedForLong(t *testing.T) {
	t.Parallel()
	if !*takeover {
		t.Skip("it takes a minute: make test-takeover")
	}
	for name, sql := range map[string]string{"row": "select from outbox_checkpoints for update", "table": "lock table outbox_checkpoints"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			before := ask[int](p.world, "select epoch from outbox_checkpoints")
			conn := connect(t, p.dsn)
			defer conn.Close(context.Background())
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
			unlocked := time.Now().Add(20 * time.Second)
			told := false
			for time.Now().Before(unlocked) {
				h, err := p.first.health()
				if err != nil {
					t.Fatal(err)
				}
				c := h.Components["lease"]
				told = told || c.Status == isFailed && containsAll(c.Detail, []string{"no message is sent", "lock timeout"})
				passes(t, 200*time.Millisecond)
			}
			if told != (name == "table") {
				t.Errorf("/readyz has said that there is no lease: %t", told)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.first.ready("leader")
			p.deliveredAtLeast(20*time.Second, p.delivered()+50)
			if now := ask[int](p.world, "select epoch from outbox_checkpoints"); now != before {
				t.Errorf("the epoch is %d, it was %d", now, before)
			}
			p.load.stop()
			p.verify(expectation{})
			p.first.term()
			p.second.term()
		})
	}
}
