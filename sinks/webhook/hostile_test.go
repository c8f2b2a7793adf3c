package webhook

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// TestSlowBody: the status decides, so a body that never ends holds up neither the message nor the connection.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush() // or the connection is gone
		<-r.Context().Done()
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 1})
	began := time.Now()
	expectErrors(t, deliver(t, s, batchOf("a/1", "a/2")))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestMetadataIsNoEvent: a value of the metadata that a header cannot hold is left out.
func TestMetadataIsNoEvent(t *testing.T) {
	t.Parallel()
	for _, body := range []string{bodyRaw, bodyCloudEvents} {
		rec := startReceiver(t, nil)
		s := newSink(t, Config{URL: rec.URL, Body: body, Source: "/outbox"})
		batch := batchOf("a/1", "a/2", "a/3", "a/4")
		batch[0].Event.Metadata = []byte(`{"content_type": "a/b\r\nX: canary"}`)
		batch[1].Event.Metadata = []byte(`{"traceparent": "00\ncanary", "tracestate": "x=1"}`)
		batch[2].Event.Metadata = []byte(`{"traceparent": "00", "tracestate": "\u0000"}`)
		batch[3].Event.Metadata = []byte(`{"traceparent": "` + strings.Repeat("0", maxHeader+1) + `"}`)
		expectErrors(t, deliver(t, s, batch))
		all := rec.requests()
		if len(all) != 4 {
			t.Fatalf("%d requests", len(all))
		}
		for i, want := range []struct{ contentType, traceParent string }{
			{"application/json", ""}, {"application/json", ""}, {"application/json", "00"}, {"application/json", ""},
		} {
			h := all[i].header
			if h.Get("Content-Type") != want.contentType || h.Get("traceparent") != want.traceParent || h.Get("tracestate") != "" {
				t.Errorf("%s, %s: %q, %q, %q", body, all[i].id(), h.Get("Content-Type"), h.Get("traceparent"), h.Get("tracestate"))
			}
		}
	}
}

// TestOneURLAway: all topics that are not URLs lead to the same URL. If that is away, it is tried only once.
func TestOneURLAway(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	rec := startReceiver(t, func(w *answer, _ *http.Request, _ got) {
		asked.Add(1)
		w.WriteHeader(http.StatusForbidden)
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 1})
	batch := batchOf("a/1", "b/1")
	batch[0].Topic, batch[1].Topic = "outbox.event.a", "outbox.event.b"
	expectErrors(t, deliver(t, s, batch), sinks.ErrUnavailable, sinks.ErrUnavailable)
	if n := asked.Load(); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
}

// TestEnvelopeOfOddValues: the envelope is valid JSON by RFC 8259, whatever the values are.
func TestEnvelopeOfOddValues(t *testing.T) {
	t.Parallel()
	m := message("a", "1")
	m.Event.Payload = []byte("{\"a\":\"\xff\"}")
	m.Event.CreatedAt = time.Date(12_026, 1, 1, 0, 0, 0, 0, time.UTC)
	var got struct {
		Timestamp time.Time
		Data      json.RawMessage
		Base64    []byte `json:"data_base64"`
	}
	text := envelope(&m)
	if err := json.Unmarshal(text, &got); err != nil || !utf8.Valid(text) {
		t.Fatalf("%q: %v", text, err)
	}
	if !got.Timestamp.Equal(m.CommitTime) || got.Data != nil || string(got.Base64) != string(m.Event.Payload) {
		t.Errorf("%q", text)
	}
}
