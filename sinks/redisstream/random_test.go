package redisstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// world is a server behind a proxy, and a sink.
type world struct {
	*testing.T
	server *servers.Redis
	proxy  *servers.Proxy
	client *redis.Client
	sink   *Sink
	topics []string
}

// TestRandomFaults puts lanes that try again in place through faults of every kind, and looks at what the streams hold:
// nothing lost, each aggregate in order, and no copy but where an outcome was unknown. That shows also that nothing
// behind a failure was accepted: it would be there twice.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			w := &world{T: t, server: startRedis(t, servers.RedisOptions{})}
			w.proxy, w.client = newProxy(t, w.server.Addr()), newClient(t, w.server.Addr())
			c := Config{URL: "redis://" + w.proxy.Addr()}
			var allowed []error
			if seed%2 == 1 { // and a stream may be away by itself
				c.Topics, allowed = sinks.SeveralTopics, []error{sinks.ErrTopicUnavailable}
			}
			w.sink, w.topics = newSink(t, c), []string{newStream(), newStream()}
			over := make(chan struct{})
			var world, lanes sync.WaitGroup
			world.Go(func() { w.harass(rand.New(rand.NewPCG(seed, 0)), over) })
			all := make([][]sinks.Message, 3)
			copies := make([]map[string]int, len(all))
			for lane := range all {
				r := rand.New(rand.NewPCG(seed, uint64(lane)+1))
				for i := range 400 {
					aggregate := fmt.Sprintf("lane %d, %d", lane, r.IntN(12))
					all[lane] = append(all[lane], message(w.topics[r.IntN(2)], aggregate, fmt.Sprintf("%d-%d", lane, i), r.IntN(6000)))
				}
				lanes.Go(func() { copies[lane] = sinktest.RandomLane(t, w.sink, r, all[lane], allowed...) })
			}
			lanes.Wait()
			close(over)
			world.Wait()

			arrived := slices.Concat(ids(t, w.client, w.topics[0]), ids(t, w.client, w.topics[1]))
			sinktest.CheckLanes(t, all, copies, arrived)
		})
	}
}

// harass does something nasty to the server again and again.
func (w *world) harass(r *rand.Rand, over chan struct{}) {
	pause := func(most int) { <-time.After(time.Duration(r.IntN(most)) * time.Millisecond) }
	say := func(args ...any) {
		if err := w.client.Do(w.Context(), args...).Err(); err != nil {
			w.Errorf("%v: %v", args, err)
		}
	}
	defer w.proxy.Accept()
	defer w.proxy.Resume()
	for {
		select {
		case <-over:
			return
		case <-time.After(time.Duration(r.IntN(15)) * time.Millisecond):
		}
		troubles := 7
		if w.sink.several() {
			troubles++
		}
		switch r.IntN(troubles) {
		case 0:
			w.proxy.Cut()
		case 1:
			w.proxy.Refuse()
			w.proxy.Cut()
			pause(30)
			w.proxy.Accept()
		case 2:
			w.proxy.Stall(servers.Direction(r.IntN(2)))
			pause(100)
			w.proxy.Resume()
		case 3: // and between EXEC and its answer
			w.proxy.Stall(servers.ToClient)
			pause(20)
			w.proxy.Cut()
			w.proxy.Resume()
		case 4:
			say("CONFIG", "SET", "maxmemory", "1mb")
			pause(20)
			say("CONFIG", "SET", "maxmemory", "0")
		case 5: // of a master that does not exist: what it holds stays
			say("REPLICAOF", "127.0.0.1", "1")
			pause(20)
			say("REPLICAOF", "NO", "ONE")
		case 6:
			say("ACL", "SETUSER", "default", "-xadd")
			pause(20)
			say("ACL", "SETUSER", "default", "+xadd")
		case 7: // one stream is forbidden, and may be asked again at once
			say("ACL", "SETUSER", "default", "resetkeys", "~"+w.topics[0])
			pause(20)
			say("ACL", "SETUSER", "default", "allkeys")
			w.sink.streams.Answered(w.topics[1])
		}
	}
}

// TestKilledAndPaused: a lane goes on while the server is killed, started, paused and resumed; nothing that was accepted
// is lost, and each aggregate is in order.
func TestKilledAndPaused(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	client, stream := newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: server.URL()})
	all := messages(stream, 3000, 50)
	for i := range all {
		all[i].Event.ID = fmt.Sprintf("%04d", i)
	}
	troubles := []func() error{
		server.Kill,
		func() error { return server.Start(t.Context()) },
		server.Pause,
		server.Resume,
		func() error { return server.Stop(t.Context()) },
		func() error { return server.Start(t.Context()) },
	}
	deadline := time.Now().Add(time.Minute)
	rounds := 0
	for rest := all; len(rest) > 0; rounds++ {
		n := min(100, len(rest))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		errs := s.Deliver(ctx, rest[:n])
		cancel()
		rest = slices.Concat(sinktest.NotAccepted(t, rest[:n], errs), rest[n:])
		if len(troubles) > 0 && rounds%4 == 3 {
			if err := troubles[0](); err != nil {
				t.Fatal(err)
			}
			troubles = troubles[1:]
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events are left: %v", len(rest), errors.Join(errs...))
		}
	}
	if len(troubles) > 0 {
		t.Errorf("%d troubles are left: the load was too small", len(troubles))
	}
	first := make(map[string][]string)
	seen := make(map[string]bool)
	for _, e := range entries(t, client, stream) {
		if id := e.Values["id"].(string); !seen[id] {
			seen[id] = true
			aggregate := e.Values["aggregate_id"].(string)
			first[aggregate] = append(first[aggregate], id)
		}
	}
	if len(seen) != len(all) {
		t.Errorf("%d of %d events arrived", len(seen), len(all))
	}
	for aggregate, ids := range first {
		if !slices.IsSorted(ids) {
			t.Errorf("aggregate %s: %v", aggregate, ids)
		}
	}
}
