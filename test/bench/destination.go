//go:build linux

package main

import (
	"context"
	"slices"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// destination is what a sink delivers to: a process of its own, started anew for each run.
type destination interface {
	// sink is the keys of the sink's configuration that say where it is, in YAML's flow style.
	sink() string
	PID() int
	// check tells what has arrived, and what has not.
	check(ctx context.Context) (counts, error)
	// kill ends the process and removes what it kept.
	Kill()
}

// kinds are the sinks that can be measured, and what their destinations are called.
var kinds = []struct{ sink, destination string }{
	{config.SinkKafka, "Kafka fake"},
	{config.SinkRedis, "redis-server"},
	{config.SinkWebhook, "receiver"},
	{config.SinkEventBus, "nats-server"},
}

func isSink(name string) bool { return destinationOf(name) != "" }

func destinationOf(sink string) string {
	i := slices.IndexFunc(kinds, func(k struct{ sink, destination string }) bool { return k.sink == sink })
	if i < 0 {
		return ""
	}
	return kinds[i].destination
}

// start starts an empty destination of a sink, to which events are to be delivered.
func (b *bench) start(ctx context.Context, sink string, events int) (destination, error) {
	switch sink {
	case config.SinkRedis:
		return b.startRedis(ctx, events)
	case config.SinkWebhook:
		return b.startReceiver(ctx, events)
	case config.SinkEventBus:
		return b.startNATS(ctx, events)
	}
	return b.startKafka(ctx, events)
}
