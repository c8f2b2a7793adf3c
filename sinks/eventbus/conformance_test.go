package eventbus

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// TestConformance runs the suite against a real server. Nothing that an event can do makes JetStream refuse it once and
// not for ever: that rule of the suite is skipped.
func TestConformance(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{SyncInterval: "1m", Config: "max_payload: 8MB"})
	locked := startServer(t, servers.NATSOptions{Config: `authorization { users = [{user: outbox, password: "another"}] }`})
	t.Logf("NATS %s at %s", n.Version(), n.URL())
	poison := func(size int) func(m *sinks.Message) {
		return func(m *sinks.Message) { m.Event.Payload = []byte(strings.Repeat("poison", size/6)) }
	}
	for name, c := range map[string]struct {
		stream     jetstream.StreamConfig
		maxPayload int
		permanent  func(m *sinks.Message)
		topics     sinks.Topics
		topicAway  func(t testing.TB, n *servers.NATS, stream *stream) func(m *sinks.Message) (back func())
	}{
		"more than the server takes": {permanent: poison(9 << 20), topics: sinks.SeveralTopics, topicAway: withoutStream},
		"more than the stream takes": {jetstream.StreamConfig{MaxMsgSize: 100_000}, 90_000, poison(200_000), sinks.SeveralTopics, withoutAnswer},
		"illegal subject":            {permanent: func(m *sinks.Message) { m.Topic += ".*" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sinktest.Run(t, func(t testing.TB) *sinktest.Harness {
				proxy := newProxy(t, n)
				stream := newStream(t, n.URL(), c.stream)
				h := &sinktest.Harness{
					Sink: newSink(t, Config{URL: "nats://" + proxy.Addr(), Topics: c.topics}), Topic: stream.subject, MaxPayload: c.maxPayload,
					Received: stream.received, Away: goAway(proxy), Hang: hang(proxy), Permanent: c.permanent,
				}
				h.MissingTopic = func() (string, func()) {
					subject := "missing." + stream.subject
					return subject, func() { stream.addSubject(subject) }
				}
				h.WrongLogin = func() sinks.Checker {
					return newSink(t, Config{URL: "nats://outbox:canary@" + locked.Addr(), Topics: c.topics})
				}
				if c.topicAway != nil {
					h.TopicAway = c.topicAway(t, n, stream)
				}
				return h
			})
		})
	}
}

// withoutStream gives messages a subject that no stream takes until back is called.
func withoutStream(_ testing.TB, _ *servers.NATS, stream *stream) func(m *sinks.Message) (back func()) {
	subject := "away." + stream.subject
	return func(m *sinks.Message) func() {
		m.Topic = subject
		return func() { stream.addSubject(subject) }
	}
}

// withoutAnswer gives messages a subject that somebody takes who says nothing, until back is called.
func withoutAnswer(t testing.TB, n *servers.NATS, stream *stream) func(m *sinks.Message) (back func()) {
	subject := "silent." + stream.subject
	silent := respond(t, n, subject, "")
	return func(m *sinks.Message) func() {
		m.Topic = subject
		return func() {
			if err := silent.Unsubscribe(); err != nil {
				t.Error(err)
			}
			stream.addSubject(subject)
		}
	}
}

func (s *stream) received() (all []sinktest.Received) {
	s.t.Helper()
	for _, m := range s.messages() {
		r := sinktest.Received{ID: m.Header.Get(headerID), Payload: m.Data, Columns: make(map[string]string)}
		switch hasType := m.Header.Get(headerContentType) != ""; {
		case !hasType && len(m.Data) == 0:
			r.Payload = nil
		case hasType && m.Data == nil:
			r.Payload = []byte{}
		}
		for name, column := range map[string]string{
			"tenantid": "tenant_id", "correlationid": "correlation_id", "causationid": "causation_id",
		} {
			if values := m.Header[attributePrefix+name]; len(values) > 0 {
				r.Columns[column] = values[0]
			}
		}
		all = append(all, r)
	}
	return all
}
