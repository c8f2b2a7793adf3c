package redisstream

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// link holds what one Deliver at a time uses: buffers, and a client of its own, so that its connections can be closed
// while it waits for them.
type link struct {
	sink     *Sink
	delivery delivery
	clients  *clients // nil if there are none yet
	broken   bool     // the clients are given up when Deliver ends
	nodes    []*node
}

// clients are the clients of a link. When something breaks, they are closed and new ones are made. These look for the
// master again, read the map of the cluster again, and log in again.
type clients struct {
	main redis.UniversalClient

	mu     sync.Mutex
	closed bool
	direct map[string]*redis.Client // by address, for nodes that the map of the cluster does not contain yet
}

func (c *clients) close() {
	c.mu.Lock()
	c.closed = true
	direct := c.direct
	c.mu.Unlock()
	_ = c.main.Close() // an error says that it is closed already
	for _, d := range direct {
		_ = d.Close()
	}
}

// to returns a client for one node of a cluster.
func (c *clients) to(address string, options redis.Options) *redis.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	client := c.direct[address]
	if client == nil {
		options.Addr = address
		client = redis.NewClient(&options)
		if c.closed { // the context of Deliver has ended
			_ = client.Close()
			return client
		}
		if c.direct == nil {
			c.direct = make(map[string]*redis.Client)
		}
		c.direct[address] = client
	}
	return client
}

// hold makes the clients if there are none, and closes them when ctx ends, so that nobody waits for an answer any
// longer. (If ctx ends by its deadline, the wait would end by itself, but not if it is cancelled.) The caller calls
// release when it no longer uses the clients.
func (l *link) hold(ctx context.Context) (release func()) {
	if l.clients == nil {
		l.clients = &clients{main: l.sink.open(&l.sink.nodes)}
	}
	held, closed := l.clients, make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		held.close()
	})
	return func() {
		if !stop() {
			l.broken = true
			l.sink.closing.Go(func() { <-closed })
		}
		if l.broken {
			l.giveUp()
		}
	}
}

// giveUp closes the clients. Only the sink's Close waits for that, because a client that looks for its master does not
// close at once.
func (l *link) giveUp() {
	if l.clients == nil {
		return
	}
	l.sink.closing.Go(l.clients.close)
	l.clients, l.broken = nil, false
	for _, n := range l.nodes {
		n.client, n.transacts = nil, false
	}
}

// cluster reports whether this is a cluster, where streams are on several nodes.
func (l *link) cluster() bool {
	_, ok := l.clients.main.(*redis.ClusterClient)
	return ok
}

// node is a server, with the pipeline that is sent to it in the present wave.
type node struct {
	client    *redis.Client
	name      string // its name in away
	transacts bool   // it was shown that the user may use MULTI and EXEC
	failed    bool   // it did not answer in this Deliver, or refused everything
	down      error  // why it is not tried again in this Deliver

	streams  []*stream
	commands []*command
	used     int // how many of commands this wave uses
	most     int // how many of commands a wave of this Deliver has used at most
	execs    []*redis.RawCmd
	pipeline []redis.Cmder
}

// send sends a wave to all nodes at the same time. After that each stream of the wave has an answer.
func (l *link) send(ctx context.Context, d *delivery) {
	for _, n := range l.nodes {
		n.streams = n.streams[:0]
	}
	ctx, cancel := l.patience(ctx, d)
	defer cancel()
	for _, s := range d.wave {
		client, name, err := l.find(ctx, s)
		s.node = name
		if err != nil {
			s.answer = judgeFirstError(ctx, err)
			s.answer.unknown = false
			continue
		}
		if s.answer.wait = l.sink.nodes.Wait(name, time.Now()); s.answer.wait > 0 {
			continue
		}
		n := l.node(client, name)
		n.streams = append(n.streams, s)
	}
	var others sync.WaitGroup
	first := true
	var own *node
	for _, n := range l.nodes {
		switch {
		case len(n.streams) == 0:
		case first:
			first, own = false, n
		default:
			others.Go(func() { n.send(ctx, l.sink, d) })
		}
	}
	if own != nil {
		own.send(ctx, l.sink, d)
	}
	others.Wait()
}

// patience returns the context for one wave. As long as nothing has answered in a Deliver to several nodes, the wave has half of
// the time that is left. If a node is silent then, there is time to ask whether others answer, and to send them later waves.
func (l *link) patience(ctx context.Context, d *delivery) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || d.answered || !l.sink.several() || !l.cluster() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/2))
}

// otherNodeAnswers reports whether the cluster works, by the word of a node that has not failed in this Deliver and is not known
// to be away. It asks all of them at the same time, and reads the map of the cluster before.
func (l *link) otherNodeAnswers(ctx context.Context) bool {
	var works atomic.Bool
	_ = l.clients.main.(*redis.ClusterClient).ForEachMaster(ctx, func(ctx context.Context, client *redis.Client) error {
		address := client.Options().Addr
		if _, isAway := l.sink.nodes.Known(address); isAway ||
			slices.ContainsFunc(l.nodes, func(n *node) bool { return n.name == address && n.failed }) {
			return nil
		}
		if info, err := client.ClusterInfo(ctx).Result(); err == nil && strings.Contains(info, "cluster_state:ok") {
			works.Store(true)
		}
		return nil
	}) // an error says that there is no map
	return works.Load()
}

// reread makes the client read the map of the cluster again, in the background. The slots of a node that is away may get another.
func (l *link) reread(ctx context.Context) { l.clients.main.(*redis.ClusterClient).ReloadState(ctx) }

// find returns a client for the server that has a stream.
func (l *link) find(ctx context.Context, s *stream) (client *redis.Client, name string, err error) {
	switch main := l.clients.main.(type) {
	case *redis.Client: // a single server, or the master behind Sentinel
		return main, "", nil
	case *redis.ClusterClient:
		if s.moved != "" {
			return l.clients.to(s.moved, *l.sink.options), s.moved, nil
		}
		if err := l.sink.away.resting(""); err != nil {
			return nil, "", err
		}
		client, err := main.MasterForKey(ctx, s.name)
		if err != nil {
			return nil, "", err
		}
		return client, client.Options().Addr, nil
	}
	return nil, "", fmt.Errorf("unexpected client %T", l.clients.main)
}

func (l *link) node(client *redis.Client, name string) *node {
	var free *node
	for _, n := range l.nodes {
		if n.client == client {
			return n
		}
		if n.client == nil {
			free = n
		}
	}
	if free == nil {
		free = &node{}
		l.nodes = append(l.nodes, free)
	}
	free.client, free.name = client, name
	return free
}

// forget drops all references to a batch, and frees buffers that an unusually large one has needed.
func (l *link) forget() {
	const keptCommands = 4096
	for _, n := range l.nodes {
		clear(n.streams)
		clear(n.execs)
		clear(n.pipeline)
		n.streams, n.execs, n.pipeline = n.streams[:0], n.execs[:0], n.pipeline[:0]
		for _, c := range n.commands[:n.most] {
			c.release()
		}
		n.used, n.most = 0, 0
		if len(n.commands) > keptCommands {
			n.commands, n.pipeline = nil, nil
		}
		n.failed, n.down = false, nil
	}
}

// next returns a command for use in this wave.
func (n *node) next() *command {
	if n.used == len(n.commands) {
		n.commands = append(n.commands, newCommand())
	}
	c := n.commands[n.used]
	n.used++
	n.most = max(n.most, n.used)
	c.reset()
	return c
}

// control returns a command without arguments: MULTI or ASKING.
func (n *node) control(word string) *command {
	c := n.next()
	c.args = append(c.args[:0], word)
	return c
}

// send sends the transactions of n.streams in one pipeline, and judges the replies.
func (n *node) send(ctx context.Context, s *Sink, d *delivery) {
	if a := n.ready(ctx, s); !a.executed {
		for _, stream := range n.streams {
			stream.answer = a
		}
		return
	}
	n.used, n.execs, n.pipeline = 0, n.execs[:0], n.pipeline[:0]
	sent := n.streams[:0]
	for _, stream := range n.streams {
		if stream.alone {
			if err := n.tooLong(ctx, &d.entries[stream.members[0]]); err != nil {
				stream.answer = answer{err: err, tooLarge: true}
				continue
			}
		}
		sent = append(sent, stream)
		if stream.asking {
			n.pipeline = append(n.pipeline, n.control("ASKING"))
		}
		n.pipeline = append(n.pipeline, n.control("MULTI"))
		for _, i := range stream.members {
			c := n.next()
			c.add(&d.entries[i], &d.trimming)
			n.pipeline = append(n.pipeline, c)
		}
		exec := redis.NewRawCmd(ctx, "EXEC")
		n.execs, n.pipeline = append(n.execs, exec), append(n.pipeline, exec)
	}
	broke := n.exchange(ctx, n.pipeline)
	at := 0
	for i, stream := range sent {
		if stream.asking {
			at++
		}
		end := at + 1 + len(stream.members)
		stream.answer = judge(ctx, n.commands[at], n.commands[at+1:end], n.execs[i], broke)
		at = end
		n.note(&stream.answer)
	}
}

func (n *node) exchange(ctx context.Context, commands []redis.Cmder) error {
	if len(commands) == 0 {
		return nil
	}
	pipe := n.client.Pipeline()
	_ = pipe.BatchProcess(ctx, commands...) // this only adds them to the pipeline
	_, err := pipe.Exec(ctx)
	return err
}

// ready finds out whether entries may be sent to n: n has not just failed, and the user may use MULTI. If entries
// were sent after a MULTI that is refused, each would be added by itself, and once more with every try.
func (n *node) ready(ctx context.Context, s *Sink) answer {
	if n.down != nil {
		return answer{err: n.down}
	}
	if err := s.away.resting(n.name); err != nil {
		n.failed = true
		return answer{err: err}
	}
	_, wasAway := s.nodes.Known(n.name)
	if n.transacts && !wasAway {
		return answer{executed: true}
	}
	if wasAway { // no entry is sent before it has answered, and nothing waits for it for long
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, askTimeout)
		defer cancel()
	}
	n.used = 0
	multi, exec := n.control("MULTI"), redis.NewRawCmd(ctx, "EXEC")
	broke := n.exchange(ctx, []redis.Cmder{multi, exec})
	a := judge(ctx, multi, nil, exec, broke)
	n.transacts = a.executed && a.each == nil && !a.broken
	if !n.transacts {
		a.executed, a.unknown, a.broken = false, false, true // no entry was sent
		if a.err == nil {
			a.err = firstRefusal(multi, nil)
		}
	}
	n.note(&a)
	return a
}

// note notes for this Deliver that n has failed.
func (n *node) note(a *answer) {
	if a.executed || a.answered() || a.tooLarge {
		return
	}
	n.failed = true
	if a.down() {
		n.down = a.err
	}
}

// tooLong returns an error if a field of e is longer than the server accepts. If the field is so long that not every
// server accepts it, tooLong asks the server. A server that gets too long a field closes the connection, which looks
// like any other failure. If the user may not ask, only MaxMessageBytes limits the field.
func (n *node) tooLong(ctx context.Context, e *entry) error {
	const setting = "proto-max-bulk-len"
	values, err := n.client.ConfigGet(ctx, setting).Result()
	if err != nil {
		return nil //nolint:nilerr // see above; if the connection is broken, the pipeline fails
	}
	if most, err := strconv.Atoi(values[setting]); err == nil && e.large > most {
		return fmt.Errorf("a field of %d bytes, and %s is %d", e.large, setting, most)
	}
	return nil
}
