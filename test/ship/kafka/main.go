// Command kafka starts an Apache Kafka without topics at port 9092 of 127.0.0.1. It prints "ready", and then each record of the topic that
// it is given, which may be made later: the key, the headers and the value, in a line. SIGTERM ends it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, topic string) (err error) {
	broker, err := servers.StartKafka(ctx, servers.KafkaOptions{Own: true, Port: 9092})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	fmt.Println("ready")
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.ConsumeTopics(topic),
		kgo.MetadataMinAge(time.Second), kgo.MetadataMaxAge(time.Second), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	for ctx.Err() == nil {
		client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			fmt.Printf("%s", r.Key)
			for _, h := range r.Headers {
				fmt.Printf(" %s=%s", h.Key, h.Value)
			}
			fmt.Printf(" %s\n", r.Value)
		})
	}
	return nil
}
