package redisstream

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// eventually waits for something that a server does in its own time.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func do(t testing.TB, c *redis.Client, args ...any) string {
	t.Helper()
	reply, err := c.Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return fmt.Sprint(reply)
}

// startCluster starts a cluster of n nodes, of which the first has all slots. Unless coverage is "yes", nodes go on while slots of
// others are away.
func startCluster(t testing.TB, n int, coverage string) (nodes []*servers.Redis, clients []*redis.Client) {
	t.Helper()
	for i := range n {
		settings := map[string]string{"cluster-require-full-coverage": coverage, "cluster-enabled": "yes"}
		nodes = append(nodes, startRedis(t, servers.RedisOptions{Cluster: i == 0, Settings: settings}))
		clients = append(clients, newClient(t, nodes[i].Addr()))
	}
	for i := 1; i < n; i++ {
		host, port, err := net.SplitHostPort(nodes[i].Addr())
		if err != nil {
			t.Fatal(err)
		}
		bus, err := clients[i].ConfigGet(t.Context(), "cluster-port").Result()
		if err != nil {
			t.Fatal(err)
		}
		do(t, clients[0], "CLUSTER", "MEET", host, port, bus["cluster-port"])
	}
	for _, c := range clients {
		eventually(t, "the nodes know each other", func() bool {
			info := do(t, c, "CLUSTER", "INFO")
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprint("cluster_known_nodes:", n, "\r"))
		})
	}
	return nodes, clients
}

// give gives the slot of a stream to a node.
func give(t testing.TB, clients []*redis.Client, stream string, node int) {
	t.Helper()
	slot, id := do(t, clients[0], "CLUSTER", "KEYSLOT", stream), do(t, clients[node], "CLUSTER", "MYID")
	do(t, clients[node], "CLUSTER", "SETSLOT", slot, "NODE", id)
	for _, c := range clients {
		do(t, c, "CLUSTER", "SETSLOT", slot, "NODE", id)
	}
}

// TestSlotMoves: a stream is followed to another node, at every stage of its way, within one Deliver.
func TestSlotMoves(t *testing.T) {
	t.Parallel()
	nodes, clients := startCluster(t, 2, "no")
	stream, other := newStream(), newStream()
	slot := do(t, clients[0], "CLUSTER", "KEYSLOT", stream)
	known, late := newSink(t, Config{Addresses: []string{nodes[0].Addr()}}), newSink(t, Config{URL: nodes[0].URL(), Addresses: []string{"127.0.0.1:1"}})
	alone := newSink(t, Config{URL: nodes[0].URL()}) // does not know of a cluster
	all := messages(stream, 80, 7)
	for i := range all {
		if i%10 == 9 {
			all[i].Topic = other // of an own aggregate, and on the first node all the time
			all[i].Event.AggregateID = "other"
		}
	}
	for _, s := range []*Sink{known, late, alone} {
		if errs := deliver(t, s, message(other, "z", "z", 10)); errs != nil {
			t.Fatal(errs)
		}
	}
	at := 0
	next := func(s *Sink, stage string) {
		t.Helper()
		if errs := deliver(t, s, all[at:at+20]...); errs != nil {
			t.Fatalf("%s: %v", stage, errs)
		}
		at += 20
	}
	next(known, "before")
	do(t, clients[1], "CLUSTER", "SETSLOT", slot, "IMPORTING", do(t, clients[0], "CLUSTER", "MYID"))
	do(t, clients[0], "CLUSTER", "SETSLOT", slot, "MIGRATING", do(t, clients[1], "CLUSTER", "MYID"))
	next(known, "migrating, the stream is still there")
	host, port, _ := net.SplitHostPort(nodes[1].Addr())
	do(t, clients[0], "MIGRATE", host, port, stream, 0, 5000)
	next(known, "migrating, the stream has gone") // ASK
	for _, c := range []*redis.Client{clients[1], clients[0]} {
		do(t, c, "CLUSTER", "SETSLOT", slot, "NODE", do(t, clients[1], "CLUSTER", "MYID"))
	}
	next(late, "moved, and the map is old") // MOVED
	expectAway(t, deliver(t, alone, all[0]), 1, "part of a cluster; set addresses")

	var here, there []string
	for i, m := range all {
		if i%10 == 9 {
			there = append(there, m.Event.ID)
		} else {
			here = append(here, m.Event.ID)
		}
	}
	if diff := cmp.Diff(here, ids(t, clients[1], stream)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(append([]string{"z", "z", "z"}, there...), ids(t, clients[0], other)); diff != "" {
		t.Error(diff)
	}
}

// TestOneNodeAway: the streams of the other go on, at once, also when it is silent; and all is well when it is back.
func TestOneNodeAway(t *testing.T) {
	t.Parallel()
	nodes, clients := startCluster(t, 2, "no")
	up, down := newStream(), newStream()
	give(t, clients, down, 1)
	s := newSink(t, Config{Addresses: []string{nodes[0].Addr()}})
	batch := func(round string) []sinks.Message {
		return []sinks.Message{
			message(up, "a", round+"1", 10), message(down, "b", round+"2", 10), message(up, "a", round+"3", 10), message(down, "b", round+"4", 10),
		}
	}
	if errs := deliver(t, s, batch("0-")...); errs != nil {
		t.Fatal(errs)
	}
	want := []string{"accepted", "unavailable", "accepted", "not attempted"}
	if err := nodes[1].Pause(); err != nil {
		t.Fatal(err)
	}
	s.rest = time.Hour
	for round, most := range []time.Duration{3 * time.Second, 600 * time.Millisecond, 600 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		began := time.Now()
		got := classes(s.Deliver(ctx, batch(fmt.Sprint(round+1, "-"))))
		cancel()
		if round == 0 && len(got) == 4 && got[3] == "unavailable" { // its outcome is unknown
			got[3] = "not attempted"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("silent, round %d: %s", round, diff)
		}
		if took := time.Since(began); took > most {
			t.Errorf("silent, round %d: took %v", round, took)
		}
	}
	if err := nodes[1].Kill(); err != nil {
		t.Fatal(err)
	}
	s.away = away{}
	if diff := cmp.Diff(want, classes(deliver(t, s, batch("9-")...))); diff != "" {
		t.Errorf("killed: %s", diff)
	}
	if err := nodes[1].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	deliverUntil(t, s, batch("10-"))
}

// TestSentinel: when the master is killed and its replica promoted, a lane goes on there.
func TestSentinel(t *testing.T) {
	t.Parallel()
	master, replica := startRedis(t, servers.RedisOptions{Settings: map[string]string{"repl-diskless-sync-delay": "0"}}),
		startRedis(t, servers.RedisOptions{})
	client, stream := newClient(t, replica.Addr()), newStream()
	host, port, _ := net.SplitHostPort(master.Addr())
	do(t, client, "REPLICAOF", host, port)
	eventually(t, "the replica is in sync", func() bool {
		return strings.Contains(do(t, client, "INFO", "replication"), "master_link_status:up")
	})
	sentinel, err := servers.StartSentinel(t.Context(), "shop", master.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sentinel.Close(); err != nil {
			t.Error(err)
		}
	})
	watcher := redis.NewSentinelClient(&redis.Options{Addr: sentinel.Addr(), Protocol: 2})
	defer watcher.Close()
	eventually(t, "Sentinel knows the replica", func() bool {
		found, err := watcher.Replicas(t.Context(), "shop").Result()
		return err == nil && len(found) == 1
	})

	s := newSink(t, Config{Addresses: []string{sentinel.Addr(), "127.0.0.1:1"}, Master: "shop"})
	all := messages(stream, 60, 7)
	if errs := deliver(t, s, all[:20]...); errs != nil {
		t.Fatal(errs)
	}
	eventually(t, "the replica has it all", func() bool { return len(ids(t, client, stream)) == 20 })
	if err := master.Kill(); err != nil {
		t.Fatal(err)
	}
	expectAway(t, deliver(t, s, all[20:40]...), 20, "")
	deliverUntil(t, s, all[20:40])
	if errs := deliver(t, s, all[40:]...); errs != nil {
		t.Error(errs)
	}
	expectOnce(t, client, stream, all)

	wrong := newSink(t, Config{Addresses: []string{sentinel.Addr()}, Master: "another"})
	expectAway(t, deliver(t, wrong, all[:1]...), 1, "")
	_, err = checkOne(t, s, stream)
	expectText(t, "check by way of Sentinel", err, "")
	if _, err := checkOne(t, wrong, stream); err == nil {
		t.Error("no Sentinel knows this master, and Check says that it can be used")
	}
}
