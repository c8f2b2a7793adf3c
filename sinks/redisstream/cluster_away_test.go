package redisstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// shards is a cluster of three nodes, each with a stream of its own, and a sink that has delivered to all of them. With three, a
// cluster goes on when one is away.
type shards struct {
	testing.TB
	nodes   []*servers.Redis
	clients []*redis.Client
	streams [3]string
	sink    *Sink
	sent    int
}

func newShards(t testing.TB, coverage string) *shards {
	c := &shards{TB: t}
	c.nodes, c.clients = startCluster(t, 3, coverage)
	var addresses []string
	for i := range c.nodes {
		c.streams[i] = newStream()
		give(t, c.clients, c.streams[i], i)
		addresses = append(addresses, c.nodes[i].Addr())
	}
	for _, client := range c.clients {
		eventually(t, "all nodes know who has slots", func() bool {
			info := do(t, client, "CLUSTER", "INFO")
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_size:3")
		})
	}
	c.sink = newSink(t, Config{Addresses: addresses, Topics: sinks.SeveralTopics})
	deliverUntil(t, c.sink, c.batch(0, 1, 2))
	return c
}

// batch makes a message for each of these nodes, each of an aggregate of its own.
func (c *shards) batch(nodes ...int) (batch []sinks.Message) {
	for _, n := range nodes {
		c.sent++
		batch = append(batch, message(c.streams[n], fmt.Sprint("aggregate-", c.sent), fmt.Sprint(c.sent), 10))
	}
	return batch
}

// expect delivers a batch to these nodes, and compares the classes of the errors. It returns the errors.
func (c *shards) expect(what string, nodes []int, want ...string) []error {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), 3*time.Second)
	defer cancel()
	errs := c.sink.Deliver(ctx, c.batch(nodes...))
	if diff := cmp.Diff(want, classes(errs)); diff != "" {
		c.Errorf("%s: %s\n%v", what, diff, errors.Join(errs...))
	}
	return errs
}

// due makes as if the time had come at which nodes that are away may be asked again.
func (c *shards) due() {
	c.Helper()
	longest := time.Duration(0)
	for _, n := range c.nodes {
		longest = max(longest, c.sink.nodes.Wait(n.Addr(), time.Now()))
	}
	<-time.After(longest)
}

// TestNodeIsDown: streams of other nodes go on, and those of the node that is down are put off. The destination is away when no
// node answers.
func TestNodeIsDown(t *testing.T) {
	t.Parallel()
	c := newShards(t, "no")
	kill := func(i int) {
		if err := c.nodes[i].Kill(); err != nil {
			t.Fatal(err)
		}
	}
	kill(1)
	c.expect("alone", []int{1}, "topic")
	c.expect("alone, and put off", []int{1}, "put off")
	c.expect("put off beside others", []int{0, 1, 2, 1}, "accepted", "put off", "accepted", "put off")
	c.due()
	c.expect("asked again", []int{0, 1, 2}, "accepted", "topic", "accepted")
	kill(0)
	kill(2)
	c.expect("all are down", []int{0, 1, 2}, "unavailable", "unavailable", "unavailable")
	c.expect("all are down, one is asked", []int{1}, "unavailable")
	for _, n := range c.nodes {
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	deliverUntil(t, c.sink, c.batch(0, 1, 2))
}

// TestNodeIsSilent: a node that never answers takes the time of one Deliver, and of none after that.
func TestNodeIsSilent(t *testing.T) {
	t.Parallel()
	c := newShards(t, "no")
	if err := c.nodes[1].Pause(); err != nil {
		t.Fatal(err)
	}
	// What goes out in later waves needs time that the silent node must leave.
	batch := c.batch(1, 0, 2)
	for range 3 {
		batch = append(batch, message(c.streams[2], "large", fmt.Sprint("large-", len(batch)), largeBytes+1))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	errs := c.sink.Deliver(ctx, batch)
	if diff := cmp.Diff([]string{"topic", "accepted", "accepted", "accepted", "accepted", "accepted"}, classes(errs)); diff != "" {
		t.Errorf("first: %s\n%v", diff, errors.Join(errs...))
	}
	quick := func(what string, most time.Duration, nodes []int, want ...string) {
		t.Helper()
		began := time.Now()
		c.expect(what, nodes, want...)
		if took := time.Since(began); took > most {
			t.Errorf("%s took %v", what, took)
		}
	}
	c.sink.nodes.Found(c.nodes[1].Addr(), time.Now().Add(time.Second)) // for longer, so that the machine may be slow
	quick("put off", askTimeout+time.Second, []int{0, 1, 2}, "accepted", "put off", "accepted")
	quick("put off alone", askTimeout+time.Second, []int{1}, "put off")
	c.due()
	began := time.Now()
	errs = c.sink.Deliver(context.Background(), c.batch(0, 1, 2)) // without a deadline: what is known to be away has a shorter one
	if diff := cmp.Diff([]string{"accepted", "topic", "accepted"}, classes(errs)); diff != "" {
		t.Errorf("asked again: %s\n%v", diff, errors.Join(errs...))
	}
	if took := time.Since(began); took > 3*askTimeout {
		t.Errorf("asked again: took %v", took)
	}
	if err := c.nodes[1].Resume(); err != nil {
		t.Fatal(err)
	}
	deliverUntil(t, c.sink, c.batch(0, 1, 2))
}

// TestNodeRefusesAll: a node without memory stops its own streams only. If all have none, the destination is away.
func TestNodeRefusesAll(t *testing.T) {
	t.Parallel()
	c := newShards(t, "no")
	for i, n := range c.nodes {
		setConfig(t, n.Addr(), "maxmemory-policy", "noeviction")
		if i == 1 {
			setConfig(t, n.Addr(), "maxmemory", "1mb")
		}
	}
	if errs := c.expect("one has no memory", []int{1, 0}, "topic", "accepted"); !strings.Contains(errors.Join(errs...).Error(), "OOM") {
		t.Error(errs)
	}
	c.expect("it is put off", []int{0, 1, 2}, "accepted", "put off", "accepted")
	for _, n := range c.nodes {
		setConfig(t, n.Addr(), "maxmemory", "1mb")
	}
	c.due()
	c.expect("none has memory", []int{0, 1, 2}, "unavailable", "unavailable", "unavailable")
	for _, n := range c.nodes {
		if _, known := c.sink.nodes.Known(n.Addr()); known {
			t.Error("nodes of a destination that is away as a whole are not put off")
		}
	}
	for _, n := range c.nodes {
		setConfig(t, n.Addr(), "maxmemory", "0")
	}
	deliverUntil(t, c.sink, c.batch(0, 1, 2))
}

// TestClusterIsDown: with cluster-require-full-coverage, slots without a node stop the whole cluster. That is the destination.
func TestClusterIsDown(t *testing.T) {
	t.Parallel()
	c := newShards(t, "yes")
	slot := do(t, c.clients[0], "CLUSTER", "KEYSLOT", "nobody's")
	for _, client := range c.clients {
		do(t, client, "CLUSTER", "DELSLOTS", slot)
	}
	for _, client := range c.clients {
		eventually(t, "the cluster is down", func() bool {
			return strings.Contains(do(t, client, "CLUSTER", "INFO"), "cluster_state:fail")
		})
	}
	if errs := c.expect("one stream", []int{1}, "unavailable"); !strings.Contains(errs[0].Error(), "CLUSTERDOWN The cluster is down") {
		t.Error(errs)
	}
	c.expect("all streams", []int{0, 1, 2}, "unavailable", "unavailable", "unavailable")
	for _, client := range c.clients {
		do(t, client, "CLUSTER", "SETSLOT", slot, "NODE", do(t, c.clients[0], "CLUSTER", "MYID"))
	}
	deliverUntil(t, c.sink, c.batch(0, 1, 2))
}
