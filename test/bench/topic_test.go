//go:build linux

package main

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestCheckTopic(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	b := &bench{broker: cluster.ListenAddrs()[0]}
	client, err := kgo.NewClient(kgo.SeedBrokers(b.broker))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)

	// Two aggregates; 4 comes before 2, 3 twice, and 7 and 8 never.
	for _, n := range []int{1, 4, 2, 3, 3, 5, 6} {
		record := &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "order-%d", n%2), Value: fmt.Appendf(nil, `{"seq": %d, "data": ""}`, n)}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := b.checkTopic(t.Context(), 8)
	if want := (counts{Missing: 2, Misordered: 1, Duplicated: 1}); got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := b.checkTopic(t.Context(), 5); err == nil {
		t.Error("an event that was never written is no error")
	}
}
