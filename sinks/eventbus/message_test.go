package eventbus

import (
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

var update = flag.Bool("update", false, "write the golden files")

func goldenMessages(subject string) []sinks.Message {
	created := time.Date(2026, 11, 24, 1, 2, 3, 4_000_000, time.UTC)
	m := func(e outbox.Event) sinks.Message {
		return sinks.Message{Event: &e, Topic: subject, Key: e.AggregateID, LSN: 0x16B3748, Index: 3, CommitTime: created, Attempt: 1}
	}
	return []sinks.Message{
		m(outbox.Event{
			ID: "0190f5a0-0000-7000-8000-000000000001", AggregateType: "Order", AggregateID: "o-1", EventType: "OrderPlaced", EventVersion: 2,
			Payload:  []byte(`{"total": 1e400}`),
			Metadata: []byte(`{"content_type":"application/vnd.shop+json; charset=utf-8","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=1, b=2"}`),
			TenantID: "t 1", CorrelationID: "c-1", CausationID: `"100%" ü`, CreatedAt: created,
		}),
		m(outbox.Event{ID: "least", AggregateType: "Order", AggregateID: "o-2", EventType: "OrderPlaced", Payload: []byte("{}"), CreatedAt: created}),
		m(outbox.Event{ID: "no payload", AggregateType: "Order", AggregateID: "o-3", EventType: "OrderForgotten", CreatedAt: created}),
		m(outbox.Event{ID: "empty payload", AggregateType: "Order", AggregateID: "o-4", EventType: "OrderPlaced", Payload: []byte{}, CreatedAt: created}),
		m(outbox.Event{
			ID: " hostile\r\nNats-Rollup: all", AggregateType: "Order", AggregateID: "o\r\nNats-TTL: 1s", EventType: "é\x00", Payload: []byte("\r\n+OK\r\n"),
			Metadata: []byte(`{"content_type":"a\r\nNats-Rollup: all","traceparent":"\u0000","tracestate":"x"}`), CreatedAt: created,
		}),
	}
}

// TestGoldenHeaders are read as they stand in the stream.
func TestGoldenHeaders(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	s := newSink(t, Config{URL: n.URL(), Stream: stream.name, CloudEvents: format.CloudEvents{Source: "/outbox/shop/{aggregate_type}"}})
	batch := goldenMessages(stream.subject + ".Order.OrderPlaced")
	if errs := s.Deliver(short(t), batch); errs != nil {
		t.Fatal(errs)
	}
	var b strings.Builder
	got := stream.messages()
	slices.SortFunc(got, func(x, y *jetstream.RawStreamMsg) int { // they are of different aggregates
		return strings.Compare(x.Header["ce-subject"][0], y.Header["ce-subject"][0])
	})
	for _, m := range got {
		checkCloudEvent(t, m)
		fmt.Fprintf(&b, "%s\n", strings.Replace(m.Subject, stream.subject, "outbox.event", 1))
		names := make([]string, 0, len(m.Header))
		for name := range m.Header {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			value := strings.ReplaceAll(fmt.Sprintf("%q", m.Header[name]), `"`+stream.name+`"`, `"the stream"`)
			fmt.Fprintf(&b, "\t%s: %s\n", name, value)
		}
		fmt.Fprintf(&b, "\t%q\n", m.Data)
	}
	const file = "testdata/headers.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
}

// checkCloudEvent makes an event of the official SDK of m, as the binding to NATS says. The SDK's own binding is a module
// that the project does not have; the event and its rules are of the SDK.
func checkCloudEvent(t *testing.T, m *jetstream.RawStreamMsg) {
	t.Helper()
	e := cloudevents.New()
	id := ""
	for header, values := range m.Header {
		name, isAttribute := strings.CutPrefix(header, attributePrefix)
		if !isAttribute {
			continue
		}
		value, err := url.PathUnescape(values[0])
		if err != nil {
			t.Errorf("header %s: %v", header, err)
		}
		switch name {
		case "id":
			id = value
			e.SetID(value)
		case "source":
			e.SetSource(value)
		case "specversion":
			e.SetSpecVersion(value)
		case "type":
			e.SetType(value)
		case "subject":
			e.SetSubject(value)
		case "time":
			at, err := time.Parse(time.RFC3339Nano, value)
			if err != nil {
				t.Error(err)
			}
			e.SetTime(at)
		default:
			e.SetExtension(name, value)
		}
	}
	if types := m.Header[headerContentType]; len(types) > 0 {
		e.SetDataContentType(types[0])
		e.DataEncoded = m.Data
	}
	if err := e.Validate(); err != nil {
		t.Errorf("event %q is none to the SDK: %v", id, err)
	}
}

// TestIDsStayDifferent: two that became one would be a duplicate, and the second message be lost.
func TestIDsStayDifferent(t *testing.T) {
	t.Parallel()
	s := &Sink{}
	seen := make(map[string]string)
	for _, id := range []string{
		"a", "a ", " a", "a b", "a%20b", "a%2520b", "a\nb", "a%0Ab", "a%0ab", "é", "%C3%A9", "\xff", "\xfe", "\ufffd", "%FF", "",
	} {
		m := message("s", "a", id, 10)
		sent := s.headers(&m).Get(headerID)
		if before, taken := seen[sent]; taken {
			t.Errorf("%q and %q are both %q", before, id, sent)
		}
		if strings.ContainsFunc(sent, func(r rune) bool { return r < ' ' || r > '~' }) || strings.TrimSpace(sent) != sent {
			t.Errorf("%q is sent as %q", id, sent)
		}
		seen[sent] = id
	}
}

func TestSubjects(t *testing.T) {
	t.Parallel()
	for subject, ok := range map[string]bool{
		"outbox.event.Order.OrderPlaced": true, "a": true, "a.b-c_d.é": true, "a.$b": true, "INBOX.a": true,
		strings.Repeat("a", maxSubject): true, strings.Repeat("a", maxSubject+1): false,
		"": false, ".": false, "a.": false, ".a": false, "a..b": false, "a b": false, "a.*": false, "a*": false, "a.>": false, ">": false,
		"a\tb": false, "a\r\nPUB b": false, "a\x00": false, "a\x7f": false,
		"$JS.API.STREAM.DELETE.orders": false, "$SYS.REQ": false, "_INBOX.a.b": false, "$": false,
	} {
		if err := checkSubject(subject); (err == nil) != ok {
			t.Errorf("subject %.40q: %v", subject, err)
		}
	}
}

// TestIllegalSubject is refused before any try, and condemns none but its aggregate.
func TestIllegalSubject(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	s := newSink(t, Config{URL: n.URL()})
	batch := messages(stream.subject, 4, 2)
	batch[0].Topic = "$JS.API.STREAM.PURGE." + stream.name
	for i, err := range s.Deliver(short(t), batch) {
		if want := []error{sinks.ErrPermanent, nil, sinks.ErrNotAttempted, nil}[i]; !errors.Is(err, want) {
			t.Errorf("message %d: want %v, got %v", i, want, err)
		}
	}
	if got := stream.ids(); !slices.Equal(got, []string{"00001", "00003"}) {
		t.Errorf("the stream holds %v", got)
	}
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	const server, subject = "server", "subject" // what is away
	for answer, want := range map[string]struct {
		class any // an error, or one of the constants; nil for none
		text  string
	}{
		`{"stream":"S","seq":1}`:                  {},
		`{"stream":"S","seq":1,"duplicate":true}`: {},
		`{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}`:       {sinks.ErrPermanent, "size"},
		`{"error":{"code":400,"err_code":10097,"description":"header size exceeds maximum allowed of 64k"}}`: {sinks.ErrPermanent, "header"},
		`{"error":{"code":503,"err_code":10077,"description":"message too large"}}`:                          {sinks.ErrPermanent, "large"},
		`{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}`:                     {subject, "raise its limits"},
		`{"error":{"code":400,"err_code":10060,"description":"expected stream does not match"}}`:             {subject, "configured"},
		`{"error":{"code":400,"err_code":10109,"description":"invalid operation on sealed stream"}}`:         {subject, "another stream"},
		`{"error":{"code":400,"err_code":10002,"description":"resource limits exceeded for account"}}`:       {server, "raise the limits"},
		`{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"}}`:         {subject, "in process"},
		`{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`:   {server, "temporarily"},
		`{"error":{"code":429,"err_code":10167,"description":"too many requests"}}`:                          {subject, "10167"},
		`{"error":{"code":500,"err_code":10118,"description":"stream is offline"}}`:                          {subject, "offline"},
		`{"error":{"code":503,"err_code":10077,"description":"canary"}}`:                                     {subject, "10077"},
		`{"error":{"code":408,"err_code":1,"description":"canary"}}`:                                         {subject, "JetStream error 1"},
		`{"error":{"code":503,"err_code":10023,"description":"insufficient resources"}}`:                     {server, "insufficient"},
		`{"error":{"code":500,"err_code":10028,"description":"insufficient memory resources available"}}`:    {server, "memory"},
		`{"error":{"code":503,"err_code":10039,"description":"JetStream not enabled for account"}}`:          {server, "account"},
		`{"error":{"code":500,"err_code":10047,"description":"insufficient storage resources available"}}`:   {server, "storage"},
		`{"error":{"code":503,"err_code":10076,"description":"JetStream not enabled"}}`:                      {server, "not enabled"},
		`{"error":{"code":400,"err_code":10122,"description":"canary"}}`:                                     {server, "raise the limits"},
		`{"error":{"code":400,"err_code":10166,"description":"per-message TTL is disabled"}}`:                {nil, "10166"},
		`{"error":{"code":418,"err_code":0,"description":"a teapot"}}`:                                       {nil, "JetStream error 0"},
		`{"hello":"world"}`: {subject, "something else"},
		`+OK`:               {subject, "something else"},
		``:                  {subject, "something else"},
	} {
		for _, topics := range []sinks.Topics{sinks.OneTopic, sinks.SeveralTopics} {
			err := judge(&sinks.Message{Topic: "s"}, &nats.Msg{Data: []byte(answer)}, topics.Unavailable())
			if (err == nil) != (want.text == "") {
				t.Errorf("%s: got %v", answer, err)
				continue
			}
			if err == nil {
				continue
			}
			wantClass, _ := want.class.(error)
			switch want.class {
			case server:
				wantClass = sinks.ErrUnavailable
			case subject:
				wantClass = topics.Unavailable()
			}
			for _, class := range []error{sinks.ErrPermanent, sinks.ErrUnavailable, sinks.ErrTopicUnavailable, sinks.ErrNotAttempted} {
				if errors.Is(err, class) != errors.Is(wantClass, class) {
					t.Errorf("%s, topics %d: want class %v, got %v", answer, topics, wantClass, err)
				}
			}
			if !strings.Contains(err.Error(), want.text) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: want %q in %v", answer, want.text, err)
			}
			if sinks.IsThrottled(err) != strings.Contains(answer, `"code":429`) {
				t.Errorf("%s counts as throttled: %t", answer, sinks.IsThrottled(err))
			}
		}
	}
}

// TestContentType: what the configuration says beats what the type of the column stands for.
func TestContentType(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ configured, column, want string }{
		{"", "", "application/json"},
		{"", "application/octet-stream", "application/octet-stream"},
		{"application/avro", "application/octet-stream", "application/avro"},
	} {
		s := newSink(t, Config{URL: "nats://127.0.0.1:1", CloudEvents: format.CloudEvents{Source: "/outbox", DataContentType: c.configured}})
		m := message("a", "o-1", "1", 10)
		m.Event.ContentType = c.column
		if got := s.headers(&m).Get(headerContentType); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// What the stream drops, although the event is new, is tried again two minutes later: the stream's window may have passed by then.
func TestFalseDuplicateComesAgainLater(t *testing.T) {
	t.Parallel()
	err := judge(&sinks.Message{New: true, Topic: "s", Event: &outbox.Event{ID: "1"}},
		&nats.Msg{Data: []byte(`{"stream":"S","seq":1,"duplicate":true}`)}, sinks.ErrTopicUnavailable)
	if after := sinks.RetryAfter(err); !errors.Is(err, errTaken) || after != 2*time.Minute {
		t.Errorf("after %s: %v", after, err)
	}
}
