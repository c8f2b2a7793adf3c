package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// asAsked answers as the payload asks.
func asAsked(w *answer, _ *http.Request, g got) {
	for _, status := range []int{http.StatusBadRequest, http.StatusInternalServerError} {
		if bytes.Contains(g.body, askFor(status)) {
			http.Error(w, string(g.body), status) // which nobody must quote
		}
	}
}

func askFor(status int) []byte {
	return []byte(`{"answer ":"` + http.StatusText(status) + `"}`)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config Config
		tls    bool
	}{
		"raw":         {config: Config{Body: bodyRaw}},
		"envelope":    {config: Config{Body: bodyEnvelope, Topics: sinks.SeveralTopics}},
		"cloudevents": {config: Config{Body: bodyCloudEvents, Source: "/outbox/{aggregate_type}", Secrets: []string{standardSecret, "plain"}}},
		"structured":  {config: Config{Body: bodyCloudEventsStructured, Source: "/outbox"}, tls: true},
		"one connection": {
			config: Config{Body: bodyCloudEvents, Source: "/outbox", Connections: 1, Topics: sinks.SeveralTopics},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sinktest.Run(t, func(t testing.TB) *sinktest.Harness {
				var back atomic.Bool // the URL that is missing
				rec := newReceiver(func(w *answer, r *http.Request, g got) {
					if r.URL.Path == "/missing" && !back.Load() {
						http.Error(w, string(g.body), http.StatusNotFound)
						return
					}
					asAsked(w, r, g)
				})
				config := c.config
				if c.tls {
					config.TLS = serveTLS(t, rec, nil)
				} else {
					rec.Start()
				}
				t.Cleanup(func() {
					rec.CloseClientConnections()
					rec.Close()
				})
				proxy, url := newProxy(t, rec)
				config.URL = url
				s := &columnsAside{sink: newSink(t, config)}
				h := &sinktest.Harness{
					Sink: s, Topic: "orders", Received: func() []sinktest.Received { return s.received(rec) },
					Away: func() func() {
						proxy.Refuse()
						proxy.Cut()
						return proxy.Accept
					},
					Hang: func() func() {
						proxy.Stall(servers.ToServer, servers.ToClient)
						return proxy.Resume
					},
					Permanent: func(m *sinks.Message) { m.Event.Payload = askFor(http.StatusBadRequest) },
					Refuse:    func(m *sinks.Message) { m.Event.Payload = askFor(http.StatusInternalServerError) },
				}
				if c.tls { // without TLS a check cannot tell a receiver that hangs from one that waits for a request
					h.Sink = checkedAside{s}
				}
				if config.Topics == sinks.SeveralTopics {
					h.TopicAway = func(m *sinks.Message) func() {
						m.Topic = url + "/missing"
						return func() { back.Store(true) }
					}
				}
				return h
			})
		})
	}
}

// columnsAside remembers columns for the two forms of the body that cannot contain them, so that the rule about columns
// does not apply to them.
type columnsAside struct {
	sink    *Sink
	mu      sync.Mutex
	columns map[string]map[string]string
}

func (s *columnsAside) Deliver(ctx context.Context, batch []sinks.Message) []error {
	s.mu.Lock()
	if s.columns == nil {
		s.columns = make(map[string]map[string]string)
	}
	for i := range batch {
		e := batch[i].Event
		columns := make(map[string]string)
		for name, value := range map[string]string{
			"tenant_id": e.TenantID, "correlation_id": e.CorrelationID, "causation_id": e.CausationID,
		} {
			if value != "" {
				columns[name] = value
			}
		}
		s.columns[e.ID] = columns
	}
	s.mu.Unlock()
	return s.sink.Deliver(ctx, batch)
}

func (s *columnsAside) Close() error { return s.sink.Close() }
func (s *columnsAside) AskNow()      { s.sink.AskNow() }

// checkedAside is one that is also a Checker.
type checkedAside struct{ *columnsAside }

func (s checkedAside) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	return s.sink.Check(ctx, topics)
}

func (s *columnsAside) received(rec *receiver) (all []sinktest.Received) {
	for _, g := range rec.requests() {
		r := sinktest.Received{ID: g.id(), Payload: payloadOf(&g), Columns: make(map[string]string)}
		var structured map[string]json.RawMessage
		_ = json.Unmarshal(g.body, &structured) // of other bodies nobody asks
		for attribute, column := range map[string]string{
			"tenantid": "tenant_id", "correlationid": "correlation_id", "causationid": "causation_id",
		} {
			switch s.sink.body {
			case bodyCloudEvents:
				if values := g.header.Values("ce-" + attribute); len(values) > 0 {
					r.Columns[column] = values[0]
				}
			case bodyCloudEventsStructured:
				if value, ok := structured[attribute]; ok {
					var text string
					_ = json.Unmarshal(value, &text) // else it is empty, and wrong
					r.Columns[column] = text
				}
			default:
				s.mu.Lock()
				r.Columns = s.columns[r.ID]
				s.mu.Unlock()
			}
		}
		all = append(all, r)
	}
	return all
}
