package webhook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// maxHeader is the most bytes of a header whose value comes from an event. Servers accept about 8 KB of headers in all.
const maxHeader = 8 << 10

// maxNamed is the most bytes of a header that names the event's type or aggregate. It is left out if it were longer, because three
// such headers would be too much for many servers, and body or CloudEvents have the values too.
const maxNamed = 1 << 10

// slot holds what a request needs and the next one can use again. Whoever has the slot may send one request.
type slot struct {
	macs    []hash.Hash // one for each key; computing the key's part is half of the work for the signature of a short body
	scratch []byte
}

func newSlot(keys [][]byte) *slot {
	s := new(slot)
	for _, key := range keys {
		s.macs = append(s.macs, hmac.New(sha256.New, key))
	}
	return s
}

// signature returns the signature of Standard Webhooks, with one part for each key.
func (s *slot) signature(id, timestamp string, body []byte) string {
	var all strings.Builder
	for i, mac := range s.macs {
		s.scratch = append(append(append(append(s.scratch[:0], id...), '.'), timestamp...), '.')
		mac.Reset()
		mac.Write(s.scratch)
		mac.Write(body)
		s.scratch = mac.Sum(s.scratch[:0])
		if i > 0 {
			all.WriteByte(' ')
		}
		all.WriteString("v1,")
		all.WriteString(base64.StdEncoding.EncodeToString(s.scratch))
	}
	return all.String()
}

// headers collects the headers of one request. If a value that comes from an event cannot be sent in a header, err is set.
type headers struct {
	http.Header
	values []string // the memory of the values, each of which is a slice of one string in the header
	err    error
}

func (h *headers) set(name, value string) {
	if h.err == nil && (!isHeaderValue(value) || len(value) > maxHeader) {
		h.err = fmt.Errorf("%w: what would be its header %s has a line end or another control character, or more than %d bytes",
			sinks.ErrPermanent, name, maxHeader)
	}
	h.values = append(h.values, value)
	n := len(h.values)
	h.Header[name] = h.values[n-1 : n : n]
}

// setNamed sets a header to a value of the event in the encoding of CloudEvents, which has only printable ASCII. An empty value, or one
// that is too long, is left out.
func (h *headers) setNamed(name, value string) {
	if encoded := format.HeaderValue(value); encoded != "" && len(encoded) <= maxNamed {
		h.set(name, encoded)
	}
}

// request makes the request for one try of a message, without time, signature and body. It returns the body apart from
// it. The body may be the event's payload itself, and setBody makes sure that nobody reads it later. The URL is that of
// the message's topic or of the sink.
func (s *Sink) request(ctx context.Context, m *sinks.Message) (r *http.Request, body []byte, err error) {
	e := m.Event
	if e.ID == "" {
		return nil, nil, fmt.Errorf("%w: its id is empty", sinks.ErrPermanent)
	}
	id := m.UniqueID()
	to, err := s.target(m.Topic)
	if err != nil {
		return nil, nil, err
	}
	c := format.ContextOf(e.Metadata).Plain()
	room := 9 // the exact number: too large a map would be the most expensive part of a request
	if s.body == bodyCloudEvents {
		room += 15
	}
	h := headers{Header: make(http.Header, room+len(s.headers)+2), values: make([]string, 0, room)}
	h.set("webhook-id", id)
	h.set("Idempotency-Key", id) // net/http knows the name in this spelling
	h.set("X-Outbox-Attempt", strconv.Itoa(max(m.Attempt, 1)))
	h.setNamed("X-Outbox-Event-Type", e.EventType)
	h.setNamed("X-Outbox-Aggregate-Type", e.AggregateType)
	h.setNamed("X-Outbox-Aggregate-Id", e.AggregateID)
	if c.TraceParent != "" {
		h.set("traceparent", c.TraceParent)
	}
	if c.TraceState != "" {
		h.set("tracestate", c.TraceState)
	}
	contentType := s.cloudEvents.ContentType(e, c)
	switch s.body {
	case bodyEnvelope:
		contentType, body = "application/json", envelope(m)
	case bodyCloudEventsStructured:
		contentType, body = "application/cloudevents+json", s.cloudEvents.JSON(m, c)
	case bodyCloudEvents:
		for name, value := range s.cloudEvents.Attributes(m, c) {
			h.set("ce-"+name, format.HeaderValue(value))
		}
		fallthrough
	default:
		if body = e.Payload; len(body) < largeBody {
			body = bytes.Clone(body)
		}
		if e.Payload == nil { // there is no data, which is not the same as empty data
			contentType = ""
		}
	}
	if contentType != "" {
		h.set("Content-Type", contentType)
	}
	if h.err != nil {
		return nil, nil, h.err
	}
	maps.Copy(h.Header, s.headers)
	r = s.base.WithContext(ctx)
	r.URL, r.Header = to, h.Header
	return r, body, nil
}

// sign adds the time and the signature.
func (s *slot) sign(r *http.Request, id string, body []byte, now time.Time) {
	timestamp := strconv.FormatInt(now.Unix(), 10)
	r.Header["webhook-timestamp"] = []string{timestamp}
	if len(s.macs) > 0 {
		r.Header["webhook-signature"] = []string{s.signature(id, timestamp, body)}
	}
}

// largeBody is the size from which on a body is taken away from net/http when the request has ended. net/http may still
// read a body after it has returned an error, and each idle connection keeps its last request in memory. release takes
// the bytes away from both. A smaller body stays with the request, and net/http sends it together with the headers in
// one write.
const largeBody = 64 << 10

// bodies makes readers of the body of one request: one for sending it, and one that net/http may use to send it again.
type bodies struct {
	mu    sync.Mutex
	bytes []byte
	sent  int // how many readers were made
}

var (
	errSentTwice = errors.New("sent twice")
	errReleased  = errors.New("the request has ended")
)

// setBody sets the body of a request, and lets net/http send it only once more on another connection. By itself
// net/http sends a request again for each idle connection that turns out to be closed, so a receiver that a message
// crashes would get it that often. (For a request without a body this cannot be prevented.) After release no byte of a
// large body is read.
func setBody(r *http.Request, b []byte) (release func()) {
	if len(b) == 0 {
		r.Body = http.NoBody // net/http takes any other empty body for one of unknown length
		return func() {}
	}
	all := &bodies{bytes: b}
	r.ContentLength = int64(len(b))
	r.GetBody = all.reader
	r.Body, _ = all.reader() // the first reader is never refused
	if len(b) < largeBody {
		return func() {}
	}
	return all.release
}

func (b *bodies) reader() (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sent++; b.sent > 2 {
		return nil, errSentTwice
	}
	if len(b.bytes) > 0 && len(b.bytes) < largeBody {
		return io.NopCloser(bytes.NewReader(b.bytes)), nil // net/http knows this type
	}
	return &bodyReader{all: b}, nil
}

func (b *bodies) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes = nil
}

type bodyReader struct {
	all *bodies
	at  int
}

func (r *bodyReader) Read(p []byte) (int, error) {
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	switch {
	case r.all.bytes == nil:
		return 0, errReleased
	case r.at == len(r.all.bytes):
		return 0, io.EOF
	}
	n := copy(p, r.all.bytes[r.at:])
	r.at += n
	return n, nil
}

func (r *bodyReader) Close() error { return nil }

// envelope makes the body that Standard Webhooks recommends. A payload that is JSON is written as data, byte for byte.
// Any other is written as data_base64, as in CloudEvents.
func envelope(m *sinks.Message) []byte {
	e := m.Event
	text := func(dst []byte, v any) []byte {
		t, err := json.Marshal(v)
		if err != nil {
			panic("texts and bytes are always JSON: " + err.Error())
		}
		return append(dst, t...)
	}
	out := make([]byte, 0, len(e.Payload)+len(e.EventType)+100)
	out = text(append(out, `{"type":`...), e.EventType)
	out = text(append(out, `,"timestamp":`...), cmp.Or(format.Time(e.CreatedAt), format.Time(m.CommitTime)))
	switch {
	case e.Payload == nil:
	case json.Valid(e.Payload) && utf8.Valid(e.Payload):
		out = append(append(out, `,"data":`...), e.Payload...)
	default:
		out = text(append(out, `,"data_base64":`...), e.Payload)
	}
	return append(out, '}')
}
