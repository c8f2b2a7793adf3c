package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// broker is the Kafka fake. It keeps everything in memory.
type broker struct {
	cluster *kfake.Cluster
	addr    string
}

// startBroker starts one at any free port of 127.0.0.1. Like many real ones it makes a topic when somebody asks for it
// by name. The connector, which leaves that to people, asks without leave to make it; here the broker takes it, so that
// a person may insert an event of any aggregate type.
func startBroker() (*broker, error) {
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.DefaultNumPartitions(3),
		kfake.SeedTopics(3, "outbox.event.order", "outbox.event.payment"),
		kfake.AllowAutoTopicCreation(),
	)
	if err != nil {
		return nil, err
	}
	cluster.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		r.(*kmsg.MetadataRequest).AllowAutoTopicCreation = true
		return nil, nil, false // and now as usual
	})
	return &broker{cluster: cluster, addr: cluster.ListenAddrs()[0]}, nil
}

func (b *broker) close() { b.cluster.Close() }

// consume prints every event that arrives, until ctx ends. It finds new topics within half a second, which shows in the
// latency of a topic's first event.
func (d *demo) consume(ctx context.Context) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(d.broker.addr),
		kgo.ConsumeRegex(),
		kgo.ConsumeTopics(`outbox\.event\..*`),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMinAge(100*time.Millisecond),
		kgo.MetadataMaxAge(500*time.Millisecond),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		now := time.Now()
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("consume: %w", err)
		}
		for r := range fetches.RecordsAll() {
			if err := d.show(d.arrivals.add(r, now)); err != nil {
				return fmt.Errorf("print an event: %w", err)
			}
		}
	}
}
