package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// topics is what the names of the demo's topics begin with.
const topics = "outbox.event."

// broker is the Kafka fake. It keeps its data in a directory, so that it can be started again.
type broker struct {
	cluster *kfake.Cluster
	dir     string
	addr    string
}

// startBroker starts a broker at a free port of 127.0.0.1.
func startBroker(dir string) (*broker, error) {
	b := &broker{dir: dir}
	if err := b.start(); err != nil {
		return nil, err
	}
	b.addr = b.cluster.ListenAddrs()[0]
	return b, nil
}

// start starts the broker, for the first time or after close. Like many real brokers it makes a topic when somebody asks for
// it by name. The connector does not ask a broker to make topics. The demo's broker makes them nevertheless, so that a person
// may insert an event of any aggregate type.
func (b *broker) start() error {
	options := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.DefaultNumPartitions(3),
		kfake.SeedTopics(3, topics+"order", topics+"payment"),
		kfake.AllowAutoTopicCreation(),
		kfake.DataDir(b.dir),
	}
	if b.addr != "" {
		_, port, err := net.SplitHostPort(b.addr)
		if err != nil {
			return err
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			return err
		}
		options = append(options, kfake.Ports(number))
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		return err
	}
	cluster.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		r.(*kmsg.MetadataRequest).AllowAutoTopicCreation = true
		return nil, nil, false // the request goes on as usual
	})
	b.cluster = cluster
	return nil
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
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
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
		for _, e := range fetches.Errors() {
			if !transient(e.Err) {
				return fmt.Errorf("consume: %w", e.Err)
			}
		}
		for r := range fetches.RecordsAll() {
			if err := d.show(d.arrivals.add(r, now)); err != nil {
				return fmt.Errorf("print an event: %w", err)
			}
		}
	}
}

// transient reports whether the client recovers from an error by itself, because the broker is away or has just come back.
func transient(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || kerr.IsRetriable(err) || kgo.IsRetryableBrokerErr(err)
}
