package redisstream

import (
	"testing"

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
	cluster := startRedis(t, servers.RedisOptions{Cluster: true})
	long := func(m *sinks.Message) { m.Event.Payload = make([]byte, 4<<20) }
	illegal := func(m *sinks.Message) { m.Topic = "outbox.event.\n" }
	t.Run("one server", func(t *testing.T) {
		runConformance(t, one, harness{permanent: illegal})
	})
	t.Run("largest message", func(t *testing.T) {
		runConformance(t, one, harness{config: Config{MaxMessageBytes: 3 << 20}, permanent: long})
	})
	t.Run("small server, few rights", func(t *testing.T) {
		runConformance(t, small, harness{config: Config{Username: "outbox", Password: "canary"}, maxPayload: 1 << 20, permanent: long})
	})
	t.Run("cluster", func(t *testing.T) {
		runConformance(t, cluster, harness{cluster: true, permanent: illegal})
	})
}

type harness struct {
	config     Config
	cluster    bool
	maxPayload int
	permanent  func(*sinks.Message)
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
		out := &sinktest.Harness{
			Sink: newSink(t, c), Topic: stream, MaxPayload: h.maxPayload, Permanent: h.permanent,
			Received: func() []sinktest.Received {
				var all []sinktest.Received
				for _, e := range entries(t, client, stream) {
					all = append(all, received(e.Values))
				}
				return all
			},
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
