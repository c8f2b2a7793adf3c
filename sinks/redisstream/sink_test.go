package redisstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// TestTrimming: streams are kept short by number or by age, about.
func TestTrimming(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{"stream-node-max-entries": "10"}})
	client := newClient(t, server.Addr())
	t.Run("MAXLEN", func(t *testing.T) {
		stream := newStream()
		s := newSink(t, Config{URL: server.URL(), MaxLen: 100})
		for range 5 {
			if errs := deliver(t, s, messages(stream, 200, 7)...); errs != nil {
				t.Fatal(errs)
			}
		}
		if n := len(entries(t, client, stream)); n < 100 || n > 120 {
			t.Errorf("want about 100 entries, got %d", n)
		}
	})
	t.Run("MINID", func(t *testing.T) {
		stream := newStream()
		s := newSink(t, Config{URL: server.URL(), MinIDAge: time.Hour})
		for i := range 200 {
			if err := client.Do(t.Context(), "XADD", stream, time.Now().Add(-2*time.Hour).UnixMilli()+int64(i), "id", "old").Err(); err != nil {
				t.Fatal(err)
			}
		}
		if errs := deliver(t, s, messages(stream, 200, 7)...); errs != nil {
			t.Fatal(errs)
		}
		if n := len(entries(t, client, stream)); n < 200 || n > 220 {
			t.Errorf("want about 200 entries, got %d", n)
		}
	})
}

// TestWaves: more than fits into one wave goes out in several, in order, and a large message by itself.
func TestWaves(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	client, stream := newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: server.URL()})
	var batch []sinks.Message
	for i := range 100 {
		size := 400_000
		if i%20 == 7 {
			size = 3 << 20
		}
		batch = append(batch, message(stream, fmt.Sprint("o-", i%7), fmt.Sprint(i), size))
	}
	if errs := deliver(t, s, batch...); errs != nil {
		t.Fatal(errs)
	}
	stats, err := client.InfoMap(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	calls := stats["Commandstats"]["cmdstat_exec"]
	var n int
	if _, err := fmt.Sscanf(calls, "calls=%d,", &n); err != nil || n < 6 || n > 25 {
		t.Errorf("53 MB, 5 large messages among them, went out as %d transactions (%v)", n, err)
	}
	expectOnce(t, client, stream, batch)
}

// TestLargerThanTheServerTakes, where the user may not ask for its limit: others go on, and it is never accepted.
func TestLargerThanTheServerTakes(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{
		"proto-max-bulk-len": "1048576", "user": "outbox on >canary ~* +multi +exec +xadd",
	}})
	client, stream := newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: server.URL(), Username: "outbox", Password: "canary"})
	for size, want := range map[int][]string{
		1<<20 + 1: {"permanent", "unavailable"}, // it depends on whether all of it was written before the server hung up
		20 << 20:  {"permanent", "unavailable"},
		1 << 20:   {"accepted"},
	} {
		got := "accepted"
		if errs := deliver(t, s, message(stream, "large", fmt.Sprint(size), size)); errs != nil {
			got = classes(errs)[0]
		}
		if !strings.Contains(strings.Join(want, " "), got) {
			t.Errorf("%d bytes: want %v, got %v", size, want, got)
		}
		if errs := deliver(t, s, message(stream, "small", fmt.Sprint("behind ", size), 10)); errs != nil {
			t.Errorf("behind %d bytes: %v", size, errs)
		}
	}
	limited := newSink(t, Config{URL: server.URL(), Username: "outbox", Password: "canary", MaxMessageBytes: 1 << 20})
	errs := deliver(t, limited, message(stream, "large", "limited", 1<<20), message(stream, "small", "beside", 10))
	if len(errs) != 2 || !errors.Is(errs[0], sinks.ErrPermanent) || errs[1] != nil {
		t.Errorf("want it to be permanently refused, got %v", errs)
	}
	if n := len(entries(t, client, stream)); n != 5 {
		t.Errorf("want 5 entries, got %d", n)
	}
}

// TestNothingIsLeft of a sink that was closed, not even when a Deliver had to give up. It runs alone, as it counts
// goroutines.
func TestNothingIsLeft(t *testing.T) {
	one, cluster := startRedis(t, servers.RedisOptions{}), startRedis(t, servers.RedisOptions{Cluster: true})
	sentinel, err := servers.StartSentinel(t.Context(), "shop", one.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer sentinel.Close()
	before := goleak.IgnoreCurrent()
	for name, c := range map[string]struct {
		config Config
		server *servers.Redis
	}{
		"one server": {Config{URL: one.URL()}, one},
		"cluster":    {Config{Addresses: []string{cluster.Addr()}}, cluster},
		"Sentinel":   {Config{Addresses: []string{sentinel.Addr()}, Master: "shop"}, one},
	} {
		s, err := New(c.config)
		if err != nil {
			t.Fatal(err)
		}
		s.rest = 0
		batch := messages(newStream(), 50, 5)
		if errs := deliver(t, s, batch...); errs != nil {
			t.Fatalf("%s: %v", name, errs)
		}
		if err := c.server.Pause(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // with connections that are up, and with new ones
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			began := time.Now()
			expectAway(t, s.Deliver(ctx, batch), len(batch), "")
			if took := time.Since(began); took > 600*time.Millisecond {
				t.Errorf("%s: took %v", name, took)
			}
			cancel()
		}
		if err := c.server.Resume(); err != nil {
			t.Fatal(err)
		}
		deliverUntil(t, s, batch)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	goleak.VerifyNone(t, before)
}
