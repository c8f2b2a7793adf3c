package redisstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func setConfig(t testing.TB, address, name, value string) {
	t.Helper()
	if err := newClient(t, address).ConfigSet(t.Context(), name, value).Err(); err != nil {
		t.Fatal(err)
	}
}

// TestOutOfMemory: without eviction a full server takes nothing until somebody gives it more; nothing is lost.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{"maxmemory-policy": "noeviction"}})
	client, stream := newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: server.URL()})
	before := messages(stream, 50, 7)
	if errs := deliver(t, s, before...); errs != nil {
		t.Fatal(errs)
	}
	setConfig(t, server.Addr(), "maxmemory", "1mb")
	batch := messages(stream, 120, 7)[50:]
	for range 3 {
		expectAway(t, deliver(t, s, batch...), len(batch), "OOM")
	}
	expectOnce(t, client, stream, before)
	setConfig(t, server.Addr(), "maxmemory", "0")
	if errs := deliver(t, s, batch...); errs != nil {
		t.Errorf("it has memory again: %v", errs)
	}
	expectOnce(t, client, stream, append(before, batch...))
}

// TestMemoryRunsOut while a lane delivers: what is accepted of each aggregate is a prefix, and goes on once there is more.
func TestMemoryRunsOut(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{"maxmemory": "5mb"}})
	client, stream := newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: server.URL()})
	all := messages(stream, 10_000, 40)
	rest := all
	for len(rest) > 0 {
		n := min(500, len(rest))
		errs := deliver(t, s, rest[:n]...)
		if errs != nil {
			expectAway(t, errs, n, "OOM") // a transaction is taken as a whole or not at all
			break
		}
		rest = rest[n:]
	}
	if len(rest) == 0 || len(rest) == len(all) {
		t.Fatalf("memory did not run out on the way: %d of %d are left", len(rest), len(all))
	}
	expectOnce(t, client, stream, all[:len(all)-len(rest)])
	setConfig(t, server.Addr(), "maxmemory", "0")
	deliverUntil(t, s, rest)
	expectOnce(t, client, stream, all)
}

// TestWrongType: a key of another type is an operator's mistake. It is away until the key is, and other streams go on.
func TestWrongType(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	client, wrong, right := newClient(t, server.Addr()), newStream(), newStream()
	if err := client.Set(t.Context(), wrong, "text", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s := newSink(t, Config{URL: server.URL()})
	batch := []sinks.Message{
		message(wrong, "a", "a1", 10), message(right, "b", "b1", 10), message(wrong, "a", "a2", 10), message(right, "b", "b2", 10),
		message(wrong, "c", "c1", 10),
	}
	errs := deliver(t, s, batch...)
	want := []string{"unavailable", "accepted", "not attempted", "accepted", "unavailable"}
	if diff := cmp.Diff(want, classes(errs)); diff != "" {
		t.Fatal(diff)
	}
	if !strings.Contains(errs[0].Error(), "delete or rename it") {
		t.Errorf("names no remedy: %v", errs[0])
	}
	if err := client.Del(t.Context(), wrong).Err(); err != nil {
		t.Fatal(err)
	}
	if errs := deliver(t, s, batch[0], batch[2], batch[4]); errs != nil {
		t.Error(errs)
	}
	expectOnce(t, client, wrong, []sinks.Message{batch[0], batch[2], batch[4]})
	expectOnce(t, client, right, []sinks.Message{batch[1], batch[3]})
}

// TestStreamAway: where there are several streams, one that is away does not count against the destination. It is put off, others
// go on meanwhile, and when its time has come it is asked again.
func TestStreamAway(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{"user": "outbox on >canary ~outbox.* +multi +exec +xadd"}})
	client := newClient(t, server.Addr())
	for name, c := range map[string]struct {
		stream     string
		away, back []any
		reason     string
	}{
		"another type": {
			stream: newStream(), away: []any{"SET", "$", "text"}, back: []any{"DEL", "$"},
			reason: "WRONGTYPE",
		},
		"no right": {
			stream: "forbidden", back: []any{"ACL", "SETUSER", "outbox", "~forbidden"},
			reason: "the key pattern of the streams",
		},
		"exhausted": {
			stream: newStream(), away: []any{"XADD", "$", "18446744073709551615-18446744073709551615", "id", "last"}, back: []any{"DEL", "$"},
			reason: "exhausted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			say := func(args []any) {
				if args = slices.Clone(args); len(args) > 0 {
					if args[1] == "$" {
						args[1] = c.stream
					}
					do(t, client, args...)
				}
			}
			say(c.away)
			good := newStream()
			s := newSink(t, Config{URL: server.URL(), Username: "outbox", Password: "canary", Topics: sinks.SeveralTopics})
			batch := func(round string) []sinks.Message {
				return []sinks.Message{
					message(c.stream, "a", round+"a1", 10), message(good, "b", round+"b1", 10), message(c.stream, "a", round+"a2", 10),
					message(good, "c", round+"c1", 10), message(c.stream, "c", round+"c2", 10), message(good, "b", round+"b2", 10),
				}
			}
			errs := deliver(t, s, batch("1")...)
			want := []string{"topic", "accepted", "not attempted", "accepted", "topic", "accepted"}
			if diff := cmp.Diff(want, classes(errs)); diff != "" {
				t.Fatal(diff)
			}
			if !strings.Contains(errs[0].Error(), c.reason) {
				t.Errorf("want %q in the reason, got %v", c.reason, errs[0])
			}
			s.streams.Found(c.stream, time.Now().Add(time.Second)) // for longer, so that the machine may be slow
			want = []string{"put off", "accepted", "not attempted", "accepted", "put off", "accepted"}
			errs = deliver(t, s, batch("2")...)
			if diff := cmp.Diff(want, classes(errs)); diff != "" {
				t.Fatal(diff)
			}
			say(c.back)
			<-time.After(sinks.RetryAfter(errs[0]))
			if errs := deliver(t, s, batch("3")...); errs != nil {
				t.Error(errs)
			}
			if _, known := s.streams.Known(c.stream); known {
				t.Error("it has accepted messages, and is still known to be away")
			}
			if got, want := ids(t, client, c.stream), []string{"3a1", "3a2", "3c2"}; !slices.Equal(got, want) {
				t.Errorf("want %v, got %v", want, got)
			}
			if n := len(entries(t, client, good)); n != 9 {
				t.Errorf("want 9 entries in the good stream, got %d", n)
			}
		})
	}
}

// TestManyStreamsAway: thousands of events of a stream that is away delay nobody, and are asked about a few times only.
func TestManyStreamsAway(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	client, wrong, good := newClient(t, server.Addr()), newStream(), newStream()
	do(t, client, "SET", wrong, "text")
	s := newSink(t, Config{URL: server.URL(), Topics: sinks.SeveralTopics})
	all := messages(wrong, 5000, 500)
	all = append(all, messages(good, 500, 50)...)
	for i := range all[5000:] {
		all[5000+i].Event.AggregateID += " good"
	}
	asked := 0
	for batch := range slices.Chunk(all, 500) {
		asked += strings.Count(strings.Join(classes(deliver(t, s, batch...)), " "), "topic")
	}
	if asked == 0 || asked > 2000 {
		t.Errorf("%d of 5,000 messages were tried", asked)
	}
	expectOnce(t, client, good, all[5000:])
}

// TestAggregateInTwoStreams: what is accepted together is known only within a stream, so the second stream waits for the
// first, and gets nothing when that fails.
func TestAggregateInTwoStreams(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	client, good, other, wrong := newClient(t, server.Addr()), newStream(), newStream(), newStream()
	if err := client.Set(t.Context(), wrong, "text", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s := newSink(t, Config{URL: server.URL()})
	batch := []sinks.Message{
		message(good, "a", "a1", 10), message(other, "a", "a2", 10), message(good, "a", "a3", 10), message(good, "a", "a4", 10),
		message(wrong, "b", "b1", 10), message(good, "b", "b2", 10), message(wrong, "b", "b3", 10),
		message(other, "c", "c1", 10), message(wrong, "c", "c2", 10), message(other, "c", "c3", 10),
		message("", "d", "d1", 10), message(good, "d", "d2", 10),
		message(good, "e", "e1", 10), message("", "e", "e2", 10), message(good, "e", "e3", 10),
	}
	want := []string{
		"accepted", "accepted", "accepted", "accepted",
		"unavailable", "not attempted", "not attempted",
		"accepted", "unavailable", "not attempted",
		"permanent", "not attempted",
		"accepted", "permanent", "not attempted",
	}
	if diff := cmp.Diff(want, classes(deliver(t, s, batch...))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"a1", "e1", "a3", "a4"}, ids(t, client, good)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"c1", "a2"}, ids(t, client, other)); diff != "" {
		t.Error(diff)
	}
}

// TestReadOnly: a server that has become a replica is left, and found again when it is the master.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	master, server := startRedis(t, servers.RedisOptions{}), startRedis(t, servers.RedisOptions{})
	client, stream := newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: server.URL()})
	first, second := messages(stream, 20, 5), messages(stream, 40, 5)[20:]
	if errs := deliver(t, s, first...); errs != nil {
		t.Fatal(errs)
	}
	host, port, _ := strings.Cut(master.Addr(), ":")
	if err := client.ReplicaOf(t.Context(), host, port).Err(); err != nil {
		t.Fatal(err)
	}
	expectAway(t, deliver(t, s, second...), len(second), "READONLY")
	if s.free[0].clients != nil {
		t.Error("the connection to a replica is kept")
	}
	if err := client.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	deliverUntil(t, s, second)
	for _, m := range second {
		if !slices.Contains(ids(t, client, stream), m.Event.ID) {
			t.Errorf("%s is missing", m.Event.ID)
		}
	}
}

// TestServersState: what only the destination is to blame for uses up no attempt. Where there are several streams, what
// concerns one of them does not count against the destination.
func TestServersState(t *testing.T) {
	t.Parallel()
	ofStream := []string{
		"CLUSTERDOWN Hash slot not served", "TRYAGAIN Multiple keys request during rehashing of slot",
		"MOVED 1 127.0.0.1:1", "ASK 1 127.0.0.1:1", "CROSSSLOT Keys in request don't hash to the same slot",
		"WRONGTYPE Operation against a key holding the wrong kind of value",
		"NOPERM this user has no permissions to access one of the keys used as arguments", "NOPERM No permissions to access a key",
		"ERR The stream has exhausted the last possible ID, unable to add more items",
	}
	ofServer := []string{
		"LOADING Redis is loading the dataset in memory",
		"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
		"OOM command not allowed when used memory > 'maxmemory'.",
		"CLUSTERDOWN The cluster is down", "CLUSTERDOWN The cluster is down and only accepts read commands",
		"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
		"NOREPLICAS Not enough good replicas to write.",
		"READONLY You can't write against a read only replica.", "NOAUTH Authentication required.",
		"WRONGPASS invalid username-password pair or user is disabled.",
		"NOPERM this user has no permissions to run the 'xadd' command", "NOPERM User access has no permissions to run the 'xadd' command",
		"BUSY Redis is busy running a script.",
		"ERR max number of clients reached", "ERR something that we do not know",
	}
	for _, said := range slices.Concat(ofStream, ofServer) {
		for topics, want := range map[sinks.Topics]string{sinks.OneTopic: "unavailable", sinks.SeveralTopics: "topic"} {
			if slices.Contains(ofServer, said) {
				want = "unavailable"
			}
			t.Run(fmt.Sprint(strings.ReplaceAll(said, " ", "_"), topics), func(t *testing.T) {
				t.Parallel()
				fake := miniredis.RunT(t)
				s := newSink(t, Config{URL: "redis://" + fake.Addr(), Topics: topics})
				batch := messages("s", 20, 20)
				for _, known := range []bool{false, true} { // with connections that are new, and with one that is up
					fake.SetError(said)
					errs := deliver(t, s, batch...)
					if got := slices.Compact(classes(errs)); !slices.Equal(got, []string{want}) || !strings.Contains(errs[0].Error(), said) {
						t.Errorf("known %t: want %s, got %v: %v", known, want, got, errs[0])
					}
					fake.SetError("")
					s.streams.Answered("s") // as if its time had come
					if errs := deliver(t, s, batch...); errs != nil {
						t.Errorf("known %t: %v", known, errs)
					}
				}
			})
		}
	}
}

// TestUnknownOutcome: the connection is lost between EXEC and its answer. All of the transaction may be there, and comes
// again.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	proxy, client, stream := newProxy(t, server.Addr()), newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: "redis://" + proxy.Addr()})
	if errs := deliver(t, s, message(stream, "z", "first", 10)); errs != nil {
		t.Fatal(errs)
	}
	batch := messages(stream, 10, 3)
	proxy.SetHook(func(dir servers.Direction, _ int, _ []byte) servers.Verdict {
		if dir == servers.ToClient {
			return servers.Cut
		}
		return servers.Forward
	})
	errs := deliver(t, s, batch...)
	if len(errs) != len(batch) || slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, sinks.ErrUnavailable) }) {
		t.Errorf("want ErrUnavailable for all, got %v", errs)
	}
	if n := len(entries(t, client, stream)); n != 11 {
		t.Errorf("want all to be there, got %d", n)
	}
	proxy.SetHook(nil)
	deliverUntil(t, s, batch)
	if n := len(entries(t, client, stream)); n != 21 {
		t.Errorf("want all to be there twice, got %d", n)
	}
}

// TestCutBeforeExec: a transaction that has not arrived as a whole is none.
func TestCutBeforeExec(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	proxy, client, stream := newProxy(t, server.Addr()), newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: "redis://" + proxy.Addr()})
	if errs := deliver(t, s, message(stream, "z", "first", 10)); errs != nil {
		t.Fatal(errs)
	}
	batch := messages(stream, 3000, 3)
	var seen atomic.Int64
	proxy.SetHook(func(dir servers.Direction, _ int, data []byte) servers.Verdict {
		if dir == servers.ToServer && seen.Add(int64(len(data))) > 200_000 {
			return servers.Cut
		}
		return servers.Forward
	})
	if errs := deliver(t, s, batch...); !slices.Contains(classes(errs), "unavailable") {
		t.Errorf("want ErrUnavailable, got %v", errs)
	}
	if got := ids(t, client, stream); len(got) != 1 {
		t.Errorf("%d entries were added", len(got)-1)
	}
	proxy.SetHook(nil)
	deliverUntil(t, s, batch)
	expectOnce(t, client, stream, append(batch, message(stream, "z", "first", 10)))
}

// TestCancelled: Deliver returns when its context is cancelled, not only at its deadline, whatever it waits for.
func TestCancelled(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	proxy, client, stream := newProxy(t, server.Addr()), newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: "redis://" + proxy.Addr()})
	batch := messages(stream, 10, 3)
	reason := errors.New("the drain is over")
	for _, known := range []bool{false, true} {
		waits := make(chan struct{}, 100)
		proxy.SetHook(func(dir servers.Direction, _ int, _ []byte) servers.Verdict {
			if dir == servers.ToServer {
				waits <- struct{}{}
				return servers.Hold
			}
			return servers.Forward
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			<-waits
			cancel(reason)
		}()
		began := time.Now()
		errs := s.Deliver(ctx, batch)
		if took := time.Since(began); took > time.Second {
			t.Errorf("connected %t: took %v", known, took)
		}
		expectAway(t, errs, len(batch), reason.Error())
		proxy.SetHook(nil)
		proxy.Cut()
		deliverUntil(t, s, batch)
	}
	if n := len(entries(t, client, stream)); n != 20 {
		t.Errorf("want 20 entries, got %d", n)
	}
}

// TestSilentServer: a time-out is not repeated by the next Delivers.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	s := newSink(t, Config{URL: server.URL()})
	s.rest = time.Hour
	batch := messages(newStream(), 10, 3)
	if errs := deliver(t, s, batch...); errs != nil {
		t.Fatal(errs)
	}
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	for i, most := range []time.Duration{3 * time.Second, 500 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		began := time.Now()
		errs := s.Deliver(ctx, batch)
		cancel()
		if took := time.Since(began); took > most {
			t.Errorf("Deliver %d took %v", i, took)
		}
		expectAway(t, errs, len(batch), "")
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
}

// TestRepliesAreSearched: no error but the server's own words, and none of ours that stand in them.
func TestRepliesAreSearched(t *testing.T) {
	t.Parallel()
	r := refusalOf([]byte("-ERR unknown command 'XADD', with args beginning with: 'stream' '*' 'payload' 'canary' "))
	if strings.Contains(r.Error(), "canary") || r.scope() != ofNode {
		t.Errorf("got %q", r)
	}
	if r := refusalOf(bytes.Repeat([]byte("x"), 1000)); len(r) > 200 {
		t.Errorf("%d bytes", len(r))
	}
}
