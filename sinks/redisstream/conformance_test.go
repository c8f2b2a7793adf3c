package redisstream

import (
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// TestConformance runs the suite against a real server, against one that takes little, as a user with few rights, and
// against a cluster.
func TestConformance(t *testing.T) {
	t.Parallel()
	one := startRedis(t, servers.RedisOptions{})
	t.Logf("Redis %s", one.Version())
	small := startRedis(t, servers.RedisOptions{Settings: map[string]string{
		"proto-max-bulk-len": "1048576", "user": "outbox on >canary ~outbox.event.* +multi +exec +xadd +config|get",
	}})
	cluster := startRedis(t, servers.RedisOptions{Cluster: true, Settings: map[string]string{"cluster-require-full-coverage": "no"}})
	long := func(m *sinks.Message) { m.Event.Payload = make([]byte, 4<<20) }
	illegal := func(m *sinks.Message) { m.Topic = "outbox.event.\n" }
	t.Run("one server", func(t *testing.T) {
		runConformance(t, one, harness{permanent: illegal, topicAway: anotherType})
	})
	t.Run("largest message", func(t *testing.T) {
		runConformance(t, one, harness{config: Config{MaxMessageBytes: 3 << 20}, permanent: long})
	})
	t.Run("small server, few rights", func(t *testing.T) {
		runConformance(t, small, harness{
			config: Config{Username: "outbox", Password: "canary"}, maxPayload: 1 << 20, permanent: long, topicAway: noRight,
		})
	})
	t.Run("cluster", func(t *testing.T) {
		runConformance(t, cluster, harness{cluster: true, permanent: illegal, topicAway: noNode})
	})
}

type harness struct {
	config     Config
	cluster    bool
	maxPayload int
	permanent  func(*sinks.Message)
	// topicAway makes the stream unavailable until back is called. Nil means that there is only one stream.
	topicAway func(t testing.TB, client *redis.Client, stream string) (back func())
}

// anotherType gives the key of the stream another type.
func anotherType(t testing.TB, client *redis.Client, stream string) (back func()) {
	do(t, client, "SET", stream, "text")
	return func() { do(t, client, "DEL", stream) }
}

// noRight names a stream to which the user outbox has no right until back is called.
func noRight(t testing.TB, client *redis.Client, stream string) (back func()) {
	return func() { do(t, client, "ACL", "SETUSER", "outbox", "~"+stream) }
}

// noNode leaves the slot of the stream without a node.
func noNode(t testing.TB, client *redis.Client, stream string) (back func()) {
	slot := do(t, client, "CLUSTER", "KEYSLOT", stream)
	do(t, client, "CLUSTER", "DELSLOTS", slot)
	return func() { do(t, client, "CLUSTER", "ADDSLOTS", slot) }
}

func runConformance(t *testing.T, server *servers.Redis, h harness) {
	t.Parallel()
	sinktest.Run(t, func(t testing.TB) *sinktest.Harness {
		proxy := newProxy(t, server.Addr())
		c := h.config
		if h.cluster {
			// The map names the server itself, past the proxy: so it is one more node that is asked for the map only.
			c.Addresses = []string{server.Addr()}
		} else {
			c.URL = "redis://" + proxy.Addr()
		}
		client, stream := newClient(t, server.Addr()), newStream()
		filled := []string{stream}
		if h.topicAway != nil {
			c.Topics = sinks.SeveralTopics
		}
		out := &sinktest.Harness{
			Sink: newSink(t, c), Topic: stream, MaxPayload: h.maxPayload, Permanent: h.permanent,
			Received: func() []sinktest.Received {
				var all []sinktest.Received
				for _, stream := range filled {
					for _, e := range entries(t, client, stream) {
						all = append(all, received(e.Values))
					}
				}
				return all
			},
		}
		if h.topicAway != nil {
			other := "other." + stream
			takeAway := sync.OnceValue(func() (back func()) { return h.topicAway(t, client, other) })
			out.TopicAway = func(m *sinks.Message) (back func()) {
				m.Topic = other
				giveBack := takeAway()
				return func() {
					giveBack()
					filled = append(filled, other)
				}
			}
		}
		if h.topicAway != nil {
			out.MissingTopic = func() (topic string, create func()) {
				return "other." + stream, h.topicAway(t, client, "other."+stream)
			}
		}
		out.WrongLogin = func() sinks.Checker {
			c := c
			c.Username, c.Password = "nobody", "canary"
			return newSink(t, c)
		}
		if !h.cluster {
			out.Away = func() func() {
				proxy.Refuse()
				proxy.Cut()
				return proxy.Accept
			}
			out.Hang = func() func() {
				proxy.Stall(servers.ToServer)
				return proxy.Resume
			}
		}
		return out
	})
}

func received(values map[string]any) sinktest.Received {
	r := sinktest.Received{ID: values["id"].(string), Columns: make(map[string]string)}
	if payload, ok := values["payload"].(string); ok {
		r.Payload = []byte(payload)
	}
	for _, column := range []string{"tenant_id", "correlation_id", "causation_id"} {
		if value, ok := values[column].(string); ok {
			r.Columns[column] = value
		}
	}
	return r
}
