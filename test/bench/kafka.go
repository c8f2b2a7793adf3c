//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// kafkaFake keeps its records in memory.
type kafkaFake struct {
	*process.Child
	broker string
	events int
}

// startKafka starts an empty Kafka fake with our topic.
func (b *bench) startKafka(ctx context.Context, events int) (destination, error) {
	fake, broker, err := process.StartKafkaFake(ctx, b.fake, filepath.Join(b.dir, "kafkafake.log"))
	return kafkaFake{Child: fake, broker: broker, events: events}, err
}

func (k kafkaFake) sink() string { return fmt.Sprintf("type: kafka, brokers: [%q]", k.broker) }

// check reads the topic from its beginning.
func (k kafkaFake) check(ctx context.Context) (counts, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the topic cannot be read to its end"))
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(k.broker), kgo.ConsumeTopics(process.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return counts{}, err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, process.Topic)
	if err := errors.Join(err, ends.Error()); err != nil {
		return counts{}, fmt.Errorf("ask how much is in the topic: %w", err)
	}
	var left int64
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })

	t := newTally(k.events)
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return counts{}, fmt.Errorf("read the topic: %w", err)
		}
		for record := range fetches.RecordsAll() {
			left--
			if err := t.add(string(record.Key), record.Value); err != nil {
				return counts{}, err
			}
		}
	}
	return t.counts(), nil
}
