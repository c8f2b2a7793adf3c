package redisstream

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// checkOne checks one stream. It returns the error of the destination, or that of the stream, and which of them it is.
func checkOne(t testing.TB, s *Sink, stream string) (c sinks.TopicCheck, destination error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found, err := s.Check(ctx, []string{stream})
	if ctx.Err() != nil {
		t.Error("Check lasted as long as its deadline")
	}
	if err != nil {
		return c, err
	}
	return found[0], nil
}

func expectText(t testing.TB, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: want an error with %q, got %v", what, want, err)
	case err != nil && strings.Contains(err.Error(), "canary"):
		t.Errorf("%s: tells the password: %v", what, err)
	}
}

// TestCheckRights: a check needs no other rights than Deliver, and finds each one that is missing. It adds nothing, whatever the
// user may do.
func TestCheckRights(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	admin := newClient(t, server.Addr())
	for name, c := range map[string]struct {
		rules               string
		destination, stream string // what the error says; "" is none
	}{
		"enough":          {rules: "~outbox.* +multi +exec +xadd"},
		"all":             {rules: "~* +@all"},
		"no MULTI":        {rules: "~outbox.* +exec +xadd", destination: "the user needs +multi +exec +xadd"},
		"no EXEC":         {rules: "~outbox.* +multi +xadd", destination: "the user needs +multi +exec +xadd"},
		"no XADD":         {rules: "~outbox.* +multi +exec", destination: "the user needs +multi +exec +xadd"},
		"not this stream": {rules: "~other.* +multi +exec +xadd", stream: "the key pattern of the streams"},
		"read only":       {rules: "%R~outbox.* +multi +exec +xadd", stream: "the key pattern of the streams"},
		"write only":      {rules: "%W~outbox.* +multi +exec +xadd +type"},
	} {
		user := strings.ReplaceAll(name, " ", "-")
		arguments := []any{"ACL", "SETUSER", user, "on", ">canary"}
		for rule := range strings.FieldsSeq(c.rules) {
			arguments = append(arguments, rule)
		}
		do(t, admin, arguments...)
		s, stream := newSink(t, Config{URL: server.URL(), Username: user, Password: "canary", ClientName: "outbox-cdc"}), newStream()
		found, err := checkOne(t, s, stream)
		expectText(t, name, err, c.destination)
		expectText(t, name, found.Err, c.stream)
	}
	if n := do(t, admin, "DBSIZE"); n != "0" {
		t.Errorf("the checks have made %s keys", n)
	}
}

// TestCheckAddsNothing: also not to an empty stream, which would take the lowest ids.
func TestCheckAddsNothing(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	client, stream := newClient(t, server.Addr()), newStream()
	do(t, client, "XGROUP", "CREATE", stream, "readers", "0", "MKSTREAM")
	before := do(t, client, "XINFO", "STREAM", stream)
	s := newSink(t, Config{URL: server.URL()})
	for range 3 {
		found, err := checkOne(t, s, stream)
		expectText(t, "check", err, "")
		expectText(t, "check", found.Err, "")
	}
	if after := do(t, client, "XINFO", "STREAM", stream); after != before {
		t.Errorf("the stream was changed: %s, before that %s", after, before)
	}
}

// TestCheckFindsTheKeyInTheWay: the remedy is a command that helps, and that loses nothing.
func TestCheckFindsTheKeyInTheWay(t *testing.T) {
	t.Parallel()
	for name, cluster := range map[string]bool{"one server": false, "cluster": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := startRedis(t, servers.RedisOptions{Cluster: cluster})
			client, stream := newClient(t, server.Addr()), newStream()+" it's"
			c := Config{URL: server.URL(), Username: "default", Password: "canary"}
			if cluster {
				c = Config{Addresses: []string{server.Addr()}, Password: "canary"}
			}
			do(t, client, "ACL", "SETUSER", "default", ">canary")
			do(t, client, "SET", stream, "text")
			s := newSink(t, c)
			found, err := checkOne(t, s, stream)
			expectText(t, "a text", err, "")
			expectText(t, "a text", found.Err, "the key holds something else")
			if strings.Contains(found.Remedy, "canary") {
				t.Fatalf("the remedy tells the password: %s", found.Remedy)
			}
			remedy := exec.CommandContext(t.Context(), "sh", "-c", found.Remedy)
			remedy.Env = append(remedy.Environ(), "REDISCLI_AUTH=canary")
			if out, err := remedy.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "1" {
				t.Fatalf("%s: %v: %s", found.Remedy, err, out)
			}
			found, err = checkOne(t, s, stream)
			expectText(t, "after the remedy", err, "")
			expectText(t, "after the remedy", found.Err, "")
			if errs := deliver(t, s, message(stream, "a", "1", 10)); errs != nil {
				t.Error(errs)
			}
		})
	}
}

// TestCheckOfAServerThatTakesNothing finds that the destination as a whole is away.
func TestCheckOfAServerThatTakesNothing(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{"maxmemory-policy": "noeviction"}})
	s, stream := newSink(t, Config{URL: server.URL()}), newStream()
	setConfig(t, server.Addr(), "maxmemory", "1")
	_, err := checkOne(t, s, stream)
	expectText(t, "no memory", err, "raise maxmemory")
	setConfig(t, server.Addr(), "maxmemory", "0")
	do(t, newClient(t, server.Addr()), "REPLICAOF", "127.0.0.1", "1")
	_, err = checkOne(t, s, stream)
	expectText(t, "a replica", err, "READONLY")
	do(t, newClient(t, server.Addr()), "REPLICAOF", "NO", "ONE")
	found, err := checkOne(t, s, stream)
	expectText(t, "at last", err, "")
	expectText(t, "at last", found.Err, "")
}

// TestCheckOfAClusterWithoutANode: the streams of the other nodes are there.
func TestCheckOfAClusterWithoutANode(t *testing.T) {
	t.Parallel()
	c := newShards(t, "no")
	if err := c.nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found, err := c.sink.Check(ctx, c.streams[:])
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range found {
		if (f.Err != nil) != (i == 2) {
			t.Errorf("stream of node %d: %v", i, f.Err)
		}
	}
	if _, known := c.sink.nodes.Known(c.nodes[2].Addr()); known {
		t.Error("the check has told Deliver that a node is away")
	}
}

// TestCheckOfAMemberOfACluster finds that the configuration names no cluster.
func TestCheckOfAMemberOfACluster(t *testing.T) {
	t.Parallel()
	nodes, clients := startCluster(t, 2, "no")
	stream := newStream()
	give(t, clients, stream, 1)
	s := newSink(t, Config{URL: "redis://" + nodes[0].Addr()})
	found, err := checkOne(t, s, stream)
	expectText(t, "one node", err, "")
	expectText(t, "one node", found.Err, "set addresses")
}
