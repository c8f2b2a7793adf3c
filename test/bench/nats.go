//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// natsServer keeps its stream in files, with the server's own defaults: it syncs the files every two minutes, and recognises
// repeated messages within two minutes.
type natsServer struct {
	*servers.NATS
	events int
}

const natsStream = "events"

func (b *bench) startNATS(ctx context.Context, events int) (destination, error) {
	server, err := servers.StartNATS(ctx, servers.NATSOptions{SyncInterval: "2m", Dir: b.options.dir})
	if err != nil {
		return nil, err
	}
	n := natsServer{server, events}
	if err := n.createStream(ctx); err != nil {
		n.Kill()
		return nil, err
	}
	return n, nil
}

func (n natsServer) createStream(ctx context.Context) error {
	conn, err := nats.Connect(n.URL())
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: natsStream, Subjects: []string{process.Topic + ".>"}})
	return err
}

func (n natsServer) sink() string { return fmt.Sprintf("type: event_bus, url: %q", n.URL()) }
func (n natsServer) PID() int     { return n.Pid() }
func (n natsServer) Kill()        { _ = n.Close() } // what it leaves is removed by the next that starts one

// check reads the stream.
func (n natsServer) check(ctx context.Context) (counts, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the stream cannot be read to its end"))
	defer cancel()
	conn, err := nats.Connect(n.URL())
	if err != nil {
		return counts{}, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return counts{}, err
	}
	stream, err := js.Stream(ctx, natsStream)
	if err != nil {
		return counts{}, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return counts{}, err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return counts{}, err
	}
	defer messages.Stop()
	t := newTally(n.events)
	for left := stream.CachedInfo().State.Msgs; left > 0; left-- {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return counts{}, fmt.Errorf("read the stream: %w", err)
		}
		if err := t.add(m.Headers().Get("ce-subject"), m.Data()); err != nil {
			return counts{}, err
		}
	}
	return t.counts(), nil
}
