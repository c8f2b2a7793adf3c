package servers

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func kafkaClient(t *testing.T, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic("greetings"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func TestKafkaKeepsWhatItAccepted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	k, err := StartKafka(ctx, KafkaOptions{Proxy: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("Apache Kafka %s at %s", k.Version(), k.Brokers())
	if err := k.CreateTopic(ctx, "greetings", 1, map[string]string{"max.message.bytes": "2000"}); err != nil {
		t.Fatal(err)
	}

	// All of a client's connections go through the proxy, not just its first.
	proxied := kafkaClient(t, []string{k.Proxy().Addr()})
	if err := proxied.ProduceSync(ctx, kgo.StringRecord("one")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	k.Proxy().Refuse()
	k.Proxy().Cut()
	cut, cancelCut := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancelCut()
	if err := proxied.Ping(cut); err == nil {
		t.Error("a client reached the broker past its proxy")
	}
	k.Proxy().Accept()

	if err := k.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.Start(ctx); err != nil {
		t.Fatal(err)
	}

	direct := kafkaClient(t, k.Brokers(), kgo.RequestTimeoutOverhead(500*time.Millisecond))
	if err := k.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := direct.Ping(ctx); err == nil {
		t.Error("a paused broker answers")
	}
	if err := k.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := direct.ProduceSync(ctx, kgo.StringRecord("two")).FirstErr(); err != nil {
		t.Fatal(err)
	}

	consumer := kafkaClient(t, k.Brokers(), kgo.ConsumeTopics("greetings"))
	var got []string
	for len(got) < 2 {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		for _, r := range fetches.Records() {
			got = append(got, string(r.Value))
		}
	}
	if got[0] != "one" || got[1] != "two" {
		t.Errorf("consumed %q, want one and two", got)
	}
	if err := k.Stop(ctx); err != nil {
		t.Error(err)
	}
}
