//go:build linux

package main

import (
	"context"
	"slices"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// destination is the server that a sink delivers to. It is a process of its own, started anew for each run.
type destination interface {
	// sink returns the part of a sink's configuration that says where the destination is, in YAML's flow style.
	sink() string
	PID() int
	// check compares what has arrived with what was written.
	check(ctx context.Context) (counts, error)
	// Kill ends the process and removes its data.
	Kill()
}

// kinds lists the sinks that can be measured, with the names of their destinations.
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

// start starts an empty destination for a sink. It expects the given number of events.
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
