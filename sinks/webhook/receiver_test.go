package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// canary is a word in everything that an error must not contain.
const canary = "canary"

// got is a request that the receiver has got.
type got struct {
	header http.Header
	target string // path and query
	body   []byte
}

func (g *got) id() string { return g.header.Get("webhook-id") }

// receiver is a server that remembers what it accepts. It answers 204, unless behave writes another answer.
type receiver struct {
	*httptest.Server
	behave func(w *answer, r *http.Request, g got)

	mu  sync.Mutex
	all []got
}

// answer is a ResponseWriter that knows whether an answer was written.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func newReceiver(behave func(w *answer, r *http.Request, g got)) *receiver {
	rec := &receiver{behave: behave}
	rec.Server = httptest.NewUnstartedServer(rec)
	rec.Config.ErrorLog = nil
	return rec
}

func startReceiver(t testing.TB, behave func(w *answer, r *http.Request, g got)) *receiver {
	t.Helper()
	rec := newReceiver(behave)
	rec.Start()
	t.Cleanup(func() {
		rec.CloseClientConnections()
		rec.Close()
	})
	return rec
}

func (rec *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // it was cut off
	}
	g := got{header: r.Header, target: r.URL.RequestURI(), body: body}
	a := &answer{ResponseWriter: w}
	if rec.behave != nil {
		rec.behave(a, r, g)
	}
	if a.status >= 300 {
		return
	}
	rec.mu.Lock()
	rec.all = append(rec.all, g)
	rec.mu.Unlock()
	if a.status == 0 {
		w.WriteHeader(http.StatusNoContent)
	}
}

func (rec *receiver) requests() []got {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return append([]got(nil), rec.all...)
}

func (rec *receiver) ids() string {
	var ids []string
	for _, g := range rec.requests() {
		ids = append(ids, g.id())
	}
	return strings.Join(ids, " ")
}

// newSink makes a sink that may connect to this host.
func newSink(t testing.TB, c Config) *Sink {
	t.Helper()
	if c.AllowHosts == nil {
		c.AllowHosts = []string{"127.0.0.1"}
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newProxy(t testing.TB, rec *receiver) (p *servers.Proxy, url string) {
	t.Helper()
	p, err := servers.NewProxy(rec.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	scheme, _, _ := strings.Cut(rec.URL, "://")
	return p, scheme + "://" + p.Addr()
}

func message(aggregate, id string) sinks.Message {
	return sinks.Message{
		Event: &outbox.Event{
			ID: id, AggregateType: "Order", AggregateID: aggregate, EventType: "OrderPlaced", EventVersion: 2,
			Payload: fmt.Appendf(nil, `{"id": %q, "note": %q}`, id, canary), Metadata: json.RawMessage(`{"user": "` + canary + `"}`),
			TenantID: "tenant-1", CorrelationID: "correlation-1", CausationID: "causation-1",
			CreatedAt: time.Date(2026, 11, 24, 4, 5, 6, 789_000, time.UTC),
		},
		Topic: "outbox.event.Order", Key: aggregate, LSN: 0x16B374D848, Index: 3, Attempt: 1,
		CommitTime: time.Date(2026, 11, 24, 4, 5, 7, 0, time.UTC),
	}
}

// batchOf makes a message of each word, "aggregate/id".
func batchOf(words ...string) (batch []sinks.Message) {
	for _, w := range words {
		aggregate, _, _ := strings.Cut(w, "/")
		batch = append(batch, message(aggregate, w))
	}
	return batch
}

// deliver calls Deliver with ample time, and checks that no error contains the canary.
func deliver(t testing.TB, s *Sink, batch []sinks.Message) []error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	errs := s.Deliver(ctx, batch)
	if ctx.Err() != nil {
		t.Error("Deliver lasted as long as its deadline")
	}
	for _, err := range errs {
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("an error tells too much: %v", err)
		}
	}
	return errs
}

// payloadOf returns the bytes of the payload, which is the last member if the body is JSON. It returns nil if there is none.
func payloadOf(g *got) []byte {
	contentType := g.header.Get("Content-Type")
	if contentType != "application/cloudevents+json" && !bytes.HasPrefix(g.body, []byte(`{"type":`)) {
		if contentType == "" {
			return nil
		}
		return g.body
	}
	within := bytes.TrimSuffix(g.body, []byte("}"))
	if _, data, ok := bytes.Cut(within, []byte(`,"data":`)); ok {
		return data
	}
	_, encoded, ok := bytes.Cut(within, []byte(`,"data_base64":`))
	if !ok {
		return nil
	}
	decoded := []byte{}
	if err := json.Unmarshal(encoded, &decoded); err != nil {
		return []byte(err.Error())
	}
	return decoded
}
