//go:build linux

package main

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

func TestKafkaCheck(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(process.Partitions, process.Topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	k := kafkaFake{broker: cluster.ListenAddrs()[0]}
	client, err := kgo.NewClient(kgo.SeedBrokers(k.broker))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	for _, n := range troubles {
		record := &kgo.Record{Topic: process.Topic, Key: fmt.Appendf(nil, "order-%d", n%2), Value: payload(n)}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	k.events = 8
	expectTroubles(t, k)
	k.events = 5
	expectStranger(t, k)
}
