package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// trouble is what befalls a destination for a while.
type trouble struct {
	begin, end func(*world)
	answers    bool // it refuses, which uses attempts; else it is away, and uses none
	mild       bool // it need not fail
}

// step is trouble of several destinations at once, by type of sink.
type step struct {
	name string
	at   map[string]trouble
}

var destinations = []string{"kafka", "redis_stream", "webhook", "event_bus"}

// onWire makes a step of what the proxies of all destinations do.
func onWire(name string, begin, end func(*servers.Proxy)) step {
	s := step{name, map[string]trouble{}}
	for _, typ := range destinations {
		s.at[typ] = trouble{
			begin: func(w *world) { begin(w.proxies[typ]) },
			end:   func(w *world) { end(w.proxies[typ]) },
		}
	}
	return s
}

// asMild is the same step, of troubles that are mild.
func asMild(s step) step {
	for typ, trouble := range s.at {
		trouble.mild = true
		s.at[typ] = trouble
	}
	return s
}

// suffer has the trouble begin, wants that the one sink without any does not notice, and has it end.
func (w *world) suffer(c *connector, s step) {
	w.t.Helper()
	began := time.Now()
	sinks := slices.Sorted(maps.Keys(s.at))
	for _, typ := range sinks {
		s.at[typ].begin(w)
	}
	for _, typ := range sinks {
		if !s.at[typ].mild {
			w.parksAtLeast(30*time.Second, typ, 20)
		}
	}
	w.goesOn(15 * time.Second)
	if n := w.ofSink("stdout", "true"); n > 0 {
		w.t.Errorf("%s: %d rows of stdout are parked, which is well", s.name, n)
	}
	for _, typ := range sinks {
		if s.at[typ].answers {
			eventually(w.t, 10*time.Second, s.name+": an attempt of "+typ, func() error {
				if w.ofSink(typ, "k.attempts > 0") == 0 {
					return fmt.Errorf("none was used")
				}
				return nil
			})
		} else if n := w.ofSink(typ, "k.attempts > 0"); n > 0 {
			w.t.Errorf("%s: %d deliveries to %s have used attempts while it was away", s.name, n, typ)
		}
	}
	w.snapshot()
	suffered := time.Since(began)
	for _, typ := range sinks {
		s.at[typ].end(w)
	}
	w.live(c, 60*time.Second)
	w.t.Logf("%s: %.1f s, and %.1f s until all was live", s.name, suffered.Seconds(), (time.Since(began) - suffered).Seconds())
}

// sufferAll runs steps under load, in one world with all destinations.
func sufferAll(t *testing.T, k *servers.Kafka, steps []step) {
	w := newWorld(t, worldOptions{
		kafka: k, sinks: append(slices.Clone(destinations), "stdout"), proxied: true,
		// Attempts enough for a receiver that refuses everything for some seconds.
		delivery: map[string]any{"timeout": "2s", "park_after": "2s", "max_retries": 1000},
	})
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 3, aggregates: 40, rate: 40})
	w.deliveredAtLeast(30*time.Second, 500)
	for _, s := range steps {
		w.suffer(c, s)
	}
	l.stop()
	w.verify(expectation{})
	c.ready("leader")
	c.term()
}

// What a network does to all destinations but one.
func TestNetworksFail(t *testing.T) {
	t.Parallel()
	resume := func(p *servers.Proxy) { p.Resume() }
	sufferAll(t, proxiedKafka(t), []step{
		onWire("cut", func(p *servers.Proxy) { p.Refuse(); p.Cut() }, func(p *servers.Proxy) { p.Accept() }),
		onWire("blackhole", func(p *servers.Proxy) { p.Stall(servers.ToServer, servers.ToClient) }, resume),
		onWire("blackhole of requests", func(p *servers.Proxy) { p.Stall(servers.ToServer) }, resume),
		onWire("blackhole of answers", func(p *servers.Proxy) { p.Stall(servers.ToClient) }, resume),
		asMild(onWire("latency", func(p *servers.Proxy) { p.SetLatency(50 * time.Millisecond) }, func(p *servers.Proxy) { p.SetLatency(0) })),
		asMild(onWire("slow reader", func(p *servers.Proxy) { p.SetRate(20_000, servers.ToServer) }, func(p *servers.Proxy) { p.SetRate(0, servers.ToServer) })),
	})
}

// What destinations themselves do.
func TestDestinationsFail(t *testing.T) {
	t.Parallel()
	killed := map[string]trouble{
		"kafka":     {begin: func(w *world) { w.must(w.kafka.Kill()) }, end: func(w *world) { w.must(w.kafka.Start(context.Background())) }},
		"event_bus": {begin: func(w *world) { w.must(w.nats.Kill()) }, end: func(w *world) { w.must(w.nats.Start(context.Background())) }},
	}
	oom := says("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0")
	readOnly := says("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE")
	with := func(name string, redis trouble, hook trouble, more map[string]trouble) step {
		at := map[string]trouble{"redis_stream": redis, "webhook": hook}
		maps.Copy(at, more)
		return step{name, at}
	}
	sufferAll(t, proxiedKafka(t), []step{
		with("killed, OOM, 401", oom, status(401), killed),
		with("WRONGTYPE, 410", trouble{begin: wrongType, end: rightType}, status(410), nil),
		with("READONLY, 429", readOnly, status(429), nil),
		{"408", map[string]trouble{"webhook": status(408)}},
		{"500", map[string]trouble{"webhook": status(500)}},
		{"302", map[string]trouble{"webhook": status(302)}},
	})
}

// status is a receiver that gives everything the same answer.
func status(code int) trouble {
	return trouble{
		begin:   func(w *world) { w.hook.status.Store(int64(code)) },
		end:     func(w *world) { w.hook.status.Store(0) },
		answers: code == 500,
	}
}

// says is what Redis is told at the beginning and at the end.
func says(begin, end string) trouble {
	say := func(command string) func(*world) {
		return func(w *world) { w.redisDo(command) }
	}
	return trouble{begin: say(begin), end: say(end)}
}

func (w *world) redisDo(command string) {
	w.t.Helper()
	client := redis.NewClient(&redis.Options{Addr: w.redis.Addr()})
	defer client.Close()
	var args []any
	for word := range strings.FieldsSeq(command) {
		args = append(args, word)
	}
	if err := client.Do(w.t.Context(), args...).Err(); err != nil {
		w.t.Fatalf("Redis: %s: %v", command, err)
	}
}

// wrongType puts something else in the streams' places, rightType puts them back; each at once, or what is added between
// two commands would be lost.
func wrongType(w *world) {
	w.eachStream("redis.call('rename', KEYS[1], KEYS[2]) return redis.call('set', KEYS[1], 'x')")
}

func rightType(w *world) {
	w.eachStream("return redis.call('rename', KEYS[2], KEYS[1])")
}

func (w *world) eachStream(script string) {
	w.t.Helper()
	client := redis.NewClient(&redis.Options{Addr: w.redis.Addr()})
	defer client.Close()
	for _, name := range w.topics.names() {
		if err := client.Eval(w.t.Context(), script, []string{name, name + ":away"}).Err(); err != nil {
			w.t.Fatalf("Redis: %s: %v", script, err)
		}
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}
