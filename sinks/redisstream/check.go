package redisstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/shell"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// probe is one call of Check. It has a client of its own, and nothing of what it finds out is remembered.
//
// To find out whether the server would take an entry, it sends an XADD that cannot be executed: within a MULTI whose EXEC the server
// has to refuse, because a second command is wrong, and with the id 0-0, which no entry can have. The server looks at rights, memory
// and its own role before it queues the command. So a probe needs no other rights than Deliver does. If the user has +type as well,
// the probe also learns whether the key holds something else than a stream.
type probe struct {
	sink *Sink
	main redis.UniversalClient

	mu   sync.Mutex
	down map[string]error // the nodes of a cluster that cannot be used, by their addresses
}

// Check implements sinks.Checker. A stream that does not exist is no error, because XADD makes it.
func (s *Sink) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", sinks.ErrUnavailable, context.Cause(ctx))
	}
	p := &probe{sink: s, main: s.open(&sinks.Away[string]{}), down: map[string]error{}}
	closeClient := sync.OnceFunc(func() { _ = p.main.Close() }) // an error says that it is closed already
	stop := context.AfterFunc(ctx, closeClient)                 // to end a wait for an answer
	defer func() {
		stop()
		s.closing.Go(closeClient)
	}()
	if err := p.destination(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", sinks.ErrUnavailable, advised(readable(ctx, err)))
	}
	found := make([]sinks.TopicCheck, len(topics))
	for i, topic := range topics {
		if err := p.stream(ctx, topic, &found[i]); err != nil {
			return nil, unavailable(sinks.ErrUnavailable, topic, readable(ctx, err))
		}
	}
	return found, nil
}

// readable returns the cause of the end of ctx instead of an error that only says that the client was closed.
func readable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if said, ok := errors.AsType[redis.Error](err); ok {
		return refusal(said.Error())
	}
	return err
}

// destination returns nil if the server accepts the login and answers. Of a cluster one node is enough.
func (p *probe) destination(ctx context.Context) error {
	switch main := p.main.(type) {
	case *redis.Client:
		return p.transacts(ctx, main)
	case *redis.ClusterClient:
		works := false
		err := main.ForEachMaster(ctx, func(ctx context.Context, client *redis.Client) error {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			err := p.transacts(ctx, client)
			p.mu.Lock()
			defer p.mu.Unlock()
			if err != nil {
				p.down[client.Options().Addr] = err
			}
			works = works || err == nil
			return err
		})
		if works {
			return nil
		}
		return err
	}
	return fmt.Errorf("unexpected client %T", p.main)
}

// transacts returns nil if the server executes an empty transaction.
func (p *probe) transacts(ctx context.Context, client *redis.Client) error {
	n := node{client: client}
	multi, exec := n.control("MULTI"), redis.NewRawCmd(ctx, "EXEC")
	broke := n.exchange(ctx, []redis.Cmder{multi, exec})
	a := judge(ctx, multi, nil, exec, broke)
	switch {
	case a.executed && a.each == nil:
		return nil
	case a.err == nil:
		return firstRefusal(multi, nil)
	}
	return a.err
}

// stream checks one stream. It returns an error that concerns the destination as a whole.
func (p *probe) stream(ctx context.Context, topic string, c *sinks.TopicCheck) error {
	c.Kind, c.Topic = "stream", topic
	if c.Err = checkName(topic); c.Err != nil {
		return nil
	}
	client, ofCluster, err := p.find(ctx, topic)
	if err == nil {
		err = p.takes(ctx, client, topic)
	}
	if err == nil {
		err = p.isStream(ctx, client, topic)
		if r, refused := errors.AsType[refusal](err); refused && r.code() == wrongType {
			c.Remedy = p.sink.moveAside(client, topic)
		}
	}
	switch {
	case err == nil:
	case ctx.Err() != nil, !ofCluster && scopeOf(err) == ofNode:
		return err
	default:
		c.Err = unavailable(p.sink.config.Topics.Unavailable(), topic, readable(ctx, err))
	}
	return nil
}

// find returns the server that has a stream.
func (p *probe) find(ctx context.Context, topic string) (client *redis.Client, ofCluster bool, err error) {
	cluster, ofCluster := p.main.(*redis.ClusterClient)
	if !ofCluster {
		return p.main.(*redis.Client), false, nil
	}
	if client, err = cluster.MasterForKey(ctx, topic); err != nil {
		return nil, true, err
	}
	return client, true, p.down[client.Options().Addr]
}

// takes returns nil if the server would take an entry for the stream, as far as it says so without one.
func (p *probe) takes(ctx context.Context, client *redis.Client, topic string) error {
	n := node{client: client}
	multi, exec := n.control("MULTI"), redis.NewRawCmd(ctx, "EXEC")
	impossible, wrong := n.next(), n.control("XADD") // without arguments
	impossible.args = append(impossible.args[:0], "XADD", topic, "0-0", "check", "1")
	broke := n.exchange(ctx, []redis.Cmder{multi, impossible, wrong, exec})
	a := judge(ctx, multi, []*command{impossible, wrong}, exec, broke)
	switch queued := impossible.answered() && impossible.reply[0] == '+'; {
	case queued && exec.Err() == nil && strings.HasPrefix(string(exec.Val()), "-EXECABORT"):
		return nil
	case a.moved != "" && p.isCluster():
		return nil // the stream moves to another node, and Deliver follows it
	case a.err == nil:
		return firstRefusal(multi, []*command{impossible})
	}
	return a.err
}

func (p *probe) isCluster() bool {
	_, ok := p.main.(*redis.ClusterClient)
	return ok
}

const wrongType = "WRONGTYPE"

// isStream returns an error if the key holds something else than a stream. It returns nil if that cannot be found out: the user has
// no right to TYPE, or another node has the key by now.
func (p *probe) isStream(ctx context.Context, client *redis.Client, topic string) error {
	kind, err := client.Type(ctx, topic).Result()
	switch _, said := errors.AsType[redis.Error](err); {
	case err != nil && !said:
		return err
	case err == nil && kind != "none" && kind != "stream":
		return refusal(wrongType + " the type of the key is " + kind)
	}
	return nil
}

// moveAside returns the command that renames the key which is in the way of a stream.
func (s *Sink) moveAside(client *redis.Client, topic string) string {
	host, port, err := net.SplitHostPort(client.Options().Addr)
	if err != nil { // behind Sentinel, which says where the server is
		return ""
	}
	if host == "" && len(s.config.Addresses) > 0 { // a node of a cluster of one does not know its own address
		host, _, _ = net.SplitHostPort(s.config.Addresses[0])
	}
	words := []string{"redis-cli", "-h", host, "-p", port}
	to := topic + ".old"
	if s.options.TLSConfig != nil {
		words = append(words, "--tls")
	}
	if s.options.DB != 0 {
		words = append(words, "-n", strconv.Itoa(s.options.DB))
	}
	if len(s.config.Addresses) > 0 {
		if strings.ContainsAny(topic, "{}") {
			return "" // the new name must have the slot of the old one
		}
		words, to = append(words, "-c"), "{"+topic+"}.old"
	}
	words = append(words, "renamenx", topic, to)
	for i, w := range words {
		words[i] = shell.Quote(w)
	}
	return strings.Join(words, " ")
}
