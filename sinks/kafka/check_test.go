package kafka

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// withWrongLogin returns a sink whose password the cluster refuses, as brokers of Kafka refuse it. (The fake would close the connection.)
func withWrongLogin(t testing.TB) *Sink {
	fake := startFake(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "outbox", "canary"))
	fake.ControlKey(kmsg.SASLAuthenticate.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		answer := r.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		answer.ErrorCode = kerr.SaslAuthenticationFailed.Code
		return answer, nil, true
	})
	s, _ := newSink(t, Config{Brokers: fake.ListenAddrs(), SASL: SASL{Mechanism: "plain", Username: "outbox", Password: "canary"}})
	return s
}

// A topic that this login may only describe, one of which nobody leads a partition, and one whose leader is advertised under an address
// where nobody is.
func TestCheckFindsWhatDeliverWould(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, c Config, options ...kgo.Opt) sinks.TopicCheck {
		t.Helper()
		s, _ := newSink(t, c)
		s.options = append(s.options, options...)
		found, err := s.Check(t.Context(), []string{"t"})
		if err != nil {
			t.Fatal(err)
		}
		return found[0]
	}
	t.Run("no right to write", func(t *testing.T) {
		t.Parallel()
		for op, remedy := range map[kmsg.ACLOperation]string{
			kmsg.ACLOperationDescribe: " --command-config admin.properties --add --allow-principal User:outbox --producer --topic t",
			kmsg.ACLOperationWrite:    "",
			kmsg.ACLOperationAll:      "",
			kmsg.ACLOperationRead:     " --command-config admin.properties --add --allow-principal User:outbox --producer --topic t",
		} {
			fake := startFake(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "admin", "admin"), kfake.SeedTopics(1, "t"),
				kfake.User("PLAIN", "outbox", "canary", kfake.ACL{
					Resource: kmsg.ACLResourceTypeTopic, Name: "t", Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true,
				}))
			got := check(t, Config{Brokers: fake.ListenAddrs(), SASL: SASL{Mechanism: "plain", Username: "outbox", Password: "canary"}})
			if (got.Err == nil) != (remedy == "") || got.Err != nil && got.Err.Error() != "this login has no right to write to it" {
				t.Errorf("%s: %v", op, got.Err)
			}
			if remedy != "" {
				remedy = "kafka-acls.sh --bootstrap-server " + strings.Join(fake.ListenAddrs(), ",") + remedy
			}
			if got.Remedy != remedy {
				t.Errorf("%s: the remedy is %q", op, got.Remedy)
			}
		}
	})
	answer := func(t *testing.T, change func(*kmsg.MetadataResponse)) []string {
		fake := startFake(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "t"))
		fake.ControlKey(kmsg.Metadata.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			fake.KeepControl()
			resp := r.ResponseKind().(*kmsg.MetadataResponse)
			_, port, _ := strings.Cut(fake.ListenAddrs()[0], ":")
			number, err := strconv.Atoi(port)
			if err != nil {
				t.Error(err)
			}
			resp.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 0, Host: "127.0.0.1", Port: int32(number)}}
			name := "t"
			resp.Topics = []kmsg.MetadataResponseTopic{{Topic: &name, Partitions: []kmsg.MetadataResponseTopicPartition{{Partition: 0, Leader: 0}}}}
			change(resp)
			return resp, nil, true
		})
		return fake.ListenAddrs()
	}
	t.Run("no leader", func(t *testing.T) {
		t.Parallel()
		got := check(t, Config{Brokers: answer(t, func(m *kmsg.MetadataResponse) { m.Topics[0].Partitions[0].Leader = -1 })})
		if got.Err == nil || got.Err.Error() != "partition 0 has no leader now" {
			t.Errorf("got %v", got.Err)
		}
	})
	t.Run("another error", func(t *testing.T) {
		t.Parallel()
		got := check(t, Config{Brokers: answer(t, func(m *kmsg.MetadataResponse) { m.Topics[0].ErrorCode = kerr.LeaderNotAvailable.Code })})
		if !errors.Is(got.Err, kerr.LeaderNotAvailable) {
			t.Errorf("got %v", got.Err)
		}
	})
	t.Run("advertised where nobody is", func(t *testing.T) {
		t.Parallel()
		got := check(t, Config{Brokers: answer(t, func(m *kmsg.MetadataResponse) { m.Brokers[0].Port = 1 })})
		if got.Err == nil || !strings.Contains(got.Err.Error(), "advertised as 127.0.0.1:1, and does not answer there: unable to dial: dial tcp 127.0.0.1:1: connect: connection refused") {
			t.Errorf("got %v", got.Err)
		}
	})
	t.Run("all is well", func(t *testing.T) {
		t.Parallel()
		got := check(t, Config{Brokers: answer(t, func(*kmsg.MetadataResponse) {})})
		if got.Err != nil {
			t.Errorf("got %v", got.Err)
		}
	})
}

// What a person can be told of clusters that do not exist, and of topics that no cluster can have.
func TestCheckErrors(t *testing.T) {
	t.Parallel()
	for broker, want := range map[string]string{
		"127.0.0.1:1":         "ask 127.0.0.1:1 for metadata: unable to dial: dial tcp 127.0.0.1:1: connect: connection refused",
		"nowhere.invalid:992": "no such host",
	} {
		s, _ := newSink(t, Config{Brokers: []string{broker}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := s.Check(ctx, nil)
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", broker, err)
		}
	}
	s, _ := newSink(t, Config{Brokers: startFake(t).ListenAddrs()})
	found, err := s.Check(t.Context(), []string{"no name"})
	if err != nil || found[0].Err == nil || found[0].Err.Error() != `"no name" is no name for a topic` || found[0].Remedy != "" {
		t.Errorf("got %+v, %v", found, err)
	}
}
