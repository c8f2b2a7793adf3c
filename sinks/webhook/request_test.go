package webhook

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	standardSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	nextSecret     = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
)

// wire returns the bytes of the request for a message.
func wire(t *testing.T, s *Sink, m sinks.Message) string {
	t.Helper()
	r, body, err := s.request(t.Context(), &m)
	if err != nil {
		t.Fatal(err)
	}
	newSlot(s.keys).sign(r, m.Event.ID, body, time.Unix(1_795_500_000, 0))
	setBody(r, body)
	var out bytes.Buffer
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestGolden(t *testing.T) {
	t.Parallel()
	full := message("o-1", "0190f5a0-0000-7000-8000-000000000001")
	full.Attempt = 3
	full.Event.AggregateID, full.Event.TenantID = "Ø-1 \"a\"", "50% – off"
	full.Event.Payload = []byte("{\"a\":  \"<é>\",\n \"b\": 1e400}")
	full.Event.Metadata = []byte(`{"user": "u", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", ` +
		`"tracestate": "vendor=1", "content_type": "application/vnd.shop+json"}`)
	null := message("o-1", "2")
	null.Event.Payload, null.Event.Metadata, null.Event.CreatedAt = nil, nil, time.Time{}
	null.Event.TenantID, null.Event.CorrelationID, null.Event.CausationID = "", "", ""
	bytesOnly := message("o-1", "3")
	bytesOnly.Event.Payload = []byte{0xff, 0, '\n'}
	bytesOnly.Event.Metadata = []byte(`{"content_type": "application/octet-stream"}`)
	routed := message("o-1", "4")
	routed.Topic = "https://Partner.example:443/hooks/Order?v=2#x"

	for _, body := range []string{bodyRaw, bodyEnvelope, bodyCloudEvents, bodyCloudEventsStructured} {
		t.Run(body, func(t *testing.T) {
			t.Parallel()
			s := newSink(t, Config{
				URL: "https://partner.example/hooks", Body: body, Source: "/outbox/shop/{aggregate_type}",
				Secrets: []string{standardSecret, nextSecret}, Headers: map[string]string{"authorization": "Bearer t", "X-Shop": "1"},
			})
			var out strings.Builder
			for i, m := range []sinks.Message{full, null, bytesOnly, routed} {
				if i > 0 {
					out.WriteString("\n--------\n")
				}
				out.WriteString(strings.ReplaceAll(wire(t, s, m), "\r\n", "\n"))
			}
			path := filepath.Join("testdata", body+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(out.String(), "\n")); diff != "" {
				t.Errorf("run with -update and read the difference:\n%s", diff)
			}
		})
	}
}

// TestContentType: what the metadata say, then what is configured, then what the type of the column stands for. What has a form of
// its own has its own type.
func TestContentType(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ body, configured, column, want string }{
		{bodyRaw, "", "", "application/json"},
		{bodyRaw, "", "application/octet-stream", "application/octet-stream"},
		{bodyRaw, "application/avro", "application/octet-stream", "application/avro"},
		{bodyCloudEvents, "", "text/plain; charset=utf-8", "text/plain; charset=utf-8"},
		{bodyEnvelope, "", "application/octet-stream", "application/json"},
		{bodyCloudEventsStructured, "", "application/octet-stream", "application/cloudevents+json"},
	} {
		s := newSink(t, Config{URL: "https://partner.example/hooks", Body: c.body, ContentType: c.configured, Source: "/outbox"})
		m := message("o-1", "1")
		m.Event.ContentType, m.Event.Metadata = c.column, nil
		if request := wire(t, s, m); !strings.Contains(request, "Content-Type: "+c.want+"\r\n") {
			t.Errorf("%+v: %s", c, request)
		}
		if c.body == bodyCloudEventsStructured && !strings.Contains(wire(t, s, m), `"datacontenttype":"application/octet-stream"`) {
			t.Errorf("%+v: the structured event has another content type", c)
		}
	}
	if _, err := New(Config{URL: "https://partner.example", ContentType: "a/b\r\nX-Evil: 1"}); err == nil {
		t.Error("a content type with a line end is taken")
	}
}

// net/http may still write the body after a Deliver has returned at its deadline, and an idle connection keeps its last
// request. After Deliver, neither of them reads the payload of an event, or keeps it in memory.
func TestReleasedBody(t *testing.T) {
	t.Parallel()
	r := &http.Request{}
	payload := bytes.Repeat([]byte("0123456789"), largeBody/10+1)
	release := setBody(r, payload)
	again, err := r.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.GetBody(); !errors.Is(err, errSentTwice) {
		t.Errorf("a third body: %v", err)
	}
	begun := make([]byte, 4)
	if n, err := again.Read(begun); n != 4 || err != nil || string(begun) != "0123" {
		t.Errorf("%q, %v", begun[:n], err)
	}
	release()
	for name, body := range map[string]io.Reader{"first": r.Body, "again": again} {
		if n, err := body.Read(begun); n != 0 || !errors.Is(err, errReleased) {
			t.Errorf("%s: %d bytes after the release, %v", name, n, err)
		}
	}
	// A small body belongs to the request.
	setBody(r, []byte("small"))()
	if n, err := r.Body.Read(begun); n != 4 || err != nil {
		t.Errorf("%d bytes of a small body, %v", n, err)
	}
	// An empty payload makes no body.
	setBody(r, nil)()
	if r.Body != http.NoBody {
		t.Error("an empty body has a reader")
	}
}

// TestSpecificationVector checks the example in the specification of Standard Webhooks.
func TestSpecificationVector(t *testing.T) {
	t.Parallel()
	key, err := keyOf(standardSecret)
	if err != nil {
		t.Fatal(err)
	}
	got := newSlot([][]byte{key}).signature("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestSignatures: the library of the specification verifies what a receiver gets, with every secret.
func TestSignatures(t *testing.T) {
	t.Parallel()
	verifiers := make(map[string]*standardwebhooks.Webhook)
	for _, secret := range []string{standardSecret, nextSecret} {
		verifier, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		verifiers[secret] = verifier
	}
	plain, err := standardwebhooks.NewWebhookRaw([]byte("a plain secret"))
	if err != nil {
		t.Fatal(err)
	}
	verifiers["a plain secret"] = plain
	strange, err := standardwebhooks.NewWebhookRaw([]byte("another"))
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{bodyRaw, bodyEnvelope, bodyCloudEvents, bodyCloudEventsStructured} {
		rec := startReceiver(t, nil)
		s := newSink(t, Config{
			URL: rec.URL, Body: body, Source: "/outbox", Secrets: []string{standardSecret, nextSecret, "a plain secret"},
			Connections: 1, // which signs them all
		})
		batch := batchOf("a/1", "a/2", "b/1")
		batch[1].Event.Payload = nil
		batch[2].Event.Payload = bytes.Repeat([]byte{0xff}, 100_000)
		if errs := deliver(t, s, batch); errs != nil {
			t.Fatal(errs)
		}
		if n := len(rec.requests()); n != 3 {
			t.Fatalf("%d requests", n)
		}
		for _, g := range rec.requests() {
			for secret, verifier := range verifiers {
				if err := verifier.Verify(g.body, g.header); err != nil {
					t.Errorf("%s: %s with %s: %v", body, g.id(), secret, err)
				}
			}
			if strange.Verify(g.body, g.header) == nil {
				t.Errorf("%s: %s: another's secret verifies it", body, g.id())
			}
			if g.header.Get("Idempotency-Key") != g.id() {
				t.Errorf("%s: %s: Idempotency-Key %q", body, g.id(), g.header.Get("Idempotency-Key"))
			}
		}
	}
}

// TestCloudEventsSDK: the official SDK decodes both modes to the same event.
func TestCloudEventsSDK(t *testing.T) {
	t.Parallel()
	m := message("order 1", "0190f5a0-0000-7000-8000-000000000001")
	m.Event.AggregateID = "o-1"
	m.Event.Metadata = []byte(`{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}`)
	want := map[string]string{
		"specversion": "1.0", "id": m.Event.ID, "source": "/outbox/Order", "type": "OrderPlaced", "subject": "o-1",
		"time": "2026-11-24T04:05:06.000789Z", "datacontenttype": "application/json",
		"partitionkey": "o-1", "aggregatetype": "Order", "dataversion": "2", "tenantid": "tenant-1",
		"correlationid": "correlation-1", "causationid": "causation-1", "sequence": "00000016B374D848-00000003",
		"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	for _, body := range []string{bodyCloudEvents, bodyCloudEventsStructured} {
		for _, payload := range []string{string(m.Event.Payload), "\xff\x00"} {
			m.Event.Payload = []byte(payload)
			s := newSink(t, Config{URL: "https://partner.example/", Body: body, Source: "/outbox/{aggregate_type}"})
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(wire(t, s, m))))
			if err != nil {
				t.Fatal(err)
			}
			e, err := cehttp.NewEventFromHTTPRequest(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Validate(); err != nil {
				t.Errorf("%s: %v", body, err)
			}
			got := map[string]string{
				"specversion": e.SpecVersion(), "id": e.ID(), "source": e.Source(), "type": e.Type(), "subject": e.Subject(),
				"time": e.Time().Format(time.RFC3339Nano), "datacontenttype": e.DataContentType(),
			}
			for name, value := range e.Extensions() {
				got[name], _ = value.(string)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", body, diff)
			}
			if string(e.Data()) != payload {
				t.Errorf("%s: data %q", body, e.Data())
			}
		}
	}
}

func TestEnvelopeIsJSON(t *testing.T) {
	t.Parallel()
	for _, payload := range [][]byte{nil, {}, []byte("null"), []byte(`{"a":1}`), []byte("text"), {0xff, 0}} {
		m := message("a", "1")
		m.Event.EventType, m.Event.Payload = "a \"quoted\"\n<type>", payload
		var got struct {
			Type      string
			Timestamp time.Time
			Data      json.RawMessage
			Base64    *string `json:"data_base64"`
		}
		text := envelope(&m)
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got.Type != m.Event.EventType || !got.Timestamp.Equal(m.Event.CreatedAt) {
			t.Errorf("%s", text)
		}
		switch {
		case payload == nil && (got.Data != nil || got.Base64 != nil),
			json.Valid(payload) && string(got.Data) != string(payload),
			payload != nil && !json.Valid(payload) && (got.Base64 == nil || *got.Base64 != base64.StdEncoding.EncodeToString(payload)):
			t.Errorf("payload %q: %s", payload, text)
		}
	}
}

// TestHostileValues: a message with a value that cannot be in a header, or in a URL of this host, is refused before anything
// is sent. Other messages are delivered.
func TestHostileValues(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(m *sinks.Message){
		"no id":                    func(m *sinks.Message) { m.Event.ID = "" },
		"long id":                  func(m *sinks.Message) { m.Event.ID = strings.Repeat(canary, 2000) },
		"long tenant":              func(m *sinks.Message) { m.Event.TenantID = strings.Repeat(canary, 2000) },
		"URL of another host":      func(m *sinks.Message) { m.Topic = "http://canary.example/" },
		"URL of another port":      func(m *sinks.Message) { m.Topic = "http://127.0.0.1:1/canary" },
		"URL of another scheme":    func(m *sinks.Message) { m.Topic = "https" + strings.TrimPrefix(m.Topic, "http") },
		"URL with a user":          func(m *sinks.Message) { m.Topic = strings.Replace(m.Topic, "://", "://canary@", 1) },
		"host as a user":           func(m *sinks.Message) { m.Topic += "@canary.example/" },
		"URL that goes up":         func(m *sinks.Message) { m.Topic += "/a/../canary" },
		"URL that goes up, hidden": func(m *sinks.Message) { m.Topic += "/a%2F%2e%2E" },
		"URL that goes up with \\": func(m *sinks.Message) { m.Topic += `/..%5C..%5Ccanary` },
		"URL with a backslash":     func(m *sinks.Message) { m.Topic += `/a\canary` },
		"URL of dots and spaces":   func(m *sinks.Message) { m.Topic += "/..%20/canary" },
		"URL of dots and ;":        func(m *sinks.Message) { m.Topic += "/..;/canary" },
		"URL with an empty part":   func(m *sinks.Message) { m.Topic += "//canary" },
		"URL with an unusable one": func(m *sinks.Message) { m.Topic += "/" + router.Unusable },
		"URL with a line end":      func(m *sinks.Message) { m.Topic += "/canary\n" },
		"URL with a bad escape":    func(m *sinks.Message) { m.Topic += "/canary%zz" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := startReceiver(t, nil)
			s := newSink(t, Config{URL: rec.URL, Secrets: []string{"s"}, Body: bodyCloudEvents, Source: "/outbox"})
			batch := batchOf("a/1", "b/1", "b/2", "b/3", "c/1")
			batch[2].Topic = rec.URL
			spoil(&batch[2])
			errs := deliver(t, s, batch)
			if len(errs) != 5 || errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], sinks.ErrPermanent) ||
				!errors.Is(errs[3], sinks.ErrNotAttempted) || errs[4] != nil {
				t.Errorf("got %v", errs)
			}
			if n := len(rec.requests()); n != 3 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestNamedHeaders: with every body go event type and aggregate. Values that no header can hold are encoded or left out, and make no
// dead letter.
func TestNamedHeaders(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", bodyRaw, bodyEnvelope, bodyCloudEvents, bodyCloudEventsStructured} {
		rec := startReceiver(t, nil)
		s := newSink(t, Config{URL: rec.URL, Body: body, Source: "/outbox"})
		batch := batchOf("a/1", "b/1", "c/1")
		batch[1].Event.EventType, batch[1].Event.AggregateType, batch[1].Event.AggregateID = "a\r\nX: b", "", "50% Ø\xff"
		batch[2].Event.AggregateID = strings.Repeat("ü", maxNamed/6+1)
		expectErrors(t, deliver(t, s, batch))
		got := map[string]string{}
		for _, g := range rec.requests() {
			for _, name := range []string{"Event-Type", "Aggregate-Type", "Aggregate-Id"} {
				got[g.id()] += "|" + strings.Join(g.header.Values("X-Outbox-"+name), ",")
			}
			if isEnvelope := bytes.HasPrefix(g.body, []byte(`{"type":"`)); isEnvelope != (body == "" || body == bodyEnvelope) {
				t.Errorf("body %q: %s", body, g.body)
			}
		}
		want := map[string]string{"a/1": "|OrderPlaced|Order|a", "b/1": "|a%0D%0AX:%20b||50%25%20%C3%98%EF%BF%BD", "c/1": "|OrderPlaced|Order|"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("body %q: %s", body, diff)
		}
	}
}

// TestIDs: the id by which a receiver recognises duplicates is unique beyond the table. It contains no dot, which would make
// the signature ambiguous. A uuid stays as it is.
func TestIDs(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, nil)
	s := newSink(t, Config{URL: rec.URL, Secrets: []string{"s"}})
	for id, want := range map[string]string{
		"101":                                  "shop:public:orders_outbox:101",
		"v1.101":                               "shop:public:orders_outbox:v1%2E101",
		"1\r\nX: y":                            "shop:public:orders_outbox:1%0D%0AX: y",
		"101 ":                                 "shop:public:orders_outbox:101%20",
		"0199a3c2-5b1e-7c3d-8f00-0123456789ab": "0199a3c2-5b1e-7c3d-8f00-0123456789ab",
	} {
		m := message("a", id)
		m.Event.ID, m.Origin = id, sinks.Origin("shop", "public", "orders_outbox")
		if errs := deliver(t, s, []sinks.Message{m}); errs != nil {
			t.Fatal(errs)
		}
		all := rec.requests()
		got := all[len(all)-1]
		if got.header.Get("webhook-id") != want || got.header.Get("Idempotency-Key") != want {
			t.Errorf("id %q: %v, want %s", id, got.header, want)
		}
	}
}

// TestTargets: if a topic is a URL of the same host, the message is sent there.
func TestTargets(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, nil)
	s := newSink(t, Config{URL: rec.URL + "/own?q=1"})
	for topic, want := range map[string]string{
		"": "/own?q=1", "orders": "/own?q=1", "http-orders": "/own?q=1", rec.URL: "/",
		rec.URL + "/a%2Fb?x=%20#f": "/a%2Fb?x=%20", rec.URL + "/ü": "/%C3%BC",
	} {
		m := message("a", "1")
		m.Topic = topic
		if errs := deliver(t, s, []sinks.Message{m}); errs != nil {
			t.Fatal(errs)
		}
		all := rec.requests()
		if got := all[len(all)-1].target; got != want {
			t.Errorf("topic %q: %s, want %s", topic, got, want)
		}
	}
}
