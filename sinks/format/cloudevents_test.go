package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

var (
	shop   = CloudEvents{Source: "/outbox/shop/{aggregate_type}"}
	traced = Context{ContentType: "application/json; charset=utf-8", TraceParent: parent, TraceState: "a=1"}
)

func full() *sinks.Message {
	return &sinks.Message{
		Event: &outbox.Event{
			ID: "id-1", AggregateType: "Order", AggregateID: "o-1", EventType: "OrderPlaced", EventVersion: 12, Payload: []byte(`{"total":1}`),
			TenantID: "t", CorrelationID: "c", CausationID: "d", CreatedAt: time.Date(2026, 11, 24, 3, 2, 3, 40_500_000, time.FixedZone("", 7200)),
		},
		LSN: 0x16B374D848, Index: 7,
	}
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	all := [][2]string{
		{"specversion", "1.0"},
		{"id", "id-1"},
		{"source", "/outbox/shop/Order"},
		{"type", "OrderPlaced"},
		{"subject", "o-1"},
		{"time", "2026-11-24T01:02:03.0405Z"},
		{"partitionkey", "o-1"},
		{"aggregatetype", "Order"},
		{"dataversion", "12"},
		{"tenantid", "t"},
		{"correlationid", "c"},
		{"causationid", "d"},
		{"sequence", "00000016B374D848-00000007"},
		{"traceparent", parent},
		{"tracestate", "a=1"},
	}
	least := [][2]string{
		{"specversion", "1.0"},
		{"id", "id-1"},
		{"source", "/outbox/shop/Order"},
		{"type", "OrderPlaced"},
		{"subject", "o-1"},
		{"partitionkey", "o-1"},
		{"aggregatetype", "Order"},
		{"sequence", "00000016B374D848-00000007"},
	}
	null := func(e *outbox.Event) {
		e.EventVersion, e.TenantID, e.CorrelationID, e.CausationID, e.CreatedAt = 0, "", "", "", time.Time{}
	}
	with := func(base [][2]string, name, value string) [][2]string {
		out := slices.Clone(base)
		for i := range out {
			if out[i][0] == name {
				out[i][1] = value
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		change  func(e *outbox.Event)
		context Context
		want    [][2]string
	}{
		"all":            {func(*outbox.Event) {}, traced, all},
		"NULL columns":   {null, Context{}, least},
		"no type":        {func(e *outbox.Event) { e.EventType = "" }, traced, with(all, "type", "Order")},
		"no UTF-8":       {func(e *outbox.Event) { e.TenantID = "a\xffb" }, traced, with(all, "tenantid", "a\ufffdb")},
		"control":        {func(e *outbox.Event) { e.TenantID = "a\tb" }, traced, with(all, "tenantid", "a\tb")},
		"year 10000":     {func(e *outbox.Event) { null(e); e.CreatedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, Context{}, least},
		"4713 BC":        {func(e *outbox.Event) { null(e); e.CreatedAt = time.Date(-4712, 1, 1, 0, 0, 0, 0, time.UTC) }, Context{}, least},
		"a whole second": {func(e *outbox.Event) { e.CreatedAt = time.Unix(0, 0) }, traced, with(all, "time", "1970-01-01T00:00:00Z")},
		"type of aggregate is no segment": {
			func(e *outbox.Event) { e.AggregateType = "Größe / 100 %?#{}" }, traced,
			with(with(all, "source", "/outbox/shop/Gr%C3%B6%C3%9Fe%20%2F%20100%20%25%3F%23%7B%7D"), "aggregatetype", "Größe / 100 %?#{}"),
		},
	} {
		m := full()
		c.change(m.Event)
		var got [][2]string
		for name, value := range shop.Attributes(m, c.context) {
			got = append(got, [2]string{name, value})
			if len(name) > 20 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
				t.Errorf("%s is no name of an attribute", name)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for range shop.Attributes(full(), traced) {
		break // is allowed
	}
}

func TestContentType(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ metadata, sink, column, want string }{
		{"", "", "", "application/json"},
		{"", "", "application/octet-stream", "application/octet-stream"},
		{"", "application/avro", "application/octet-stream", "application/avro"},
		{"", "application/avro", "", "application/avro"},
		{"a/b", "application/avro", "application/octet-stream", "a/b"},
	} {
		ce := CloudEvents{Source: "/", DataContentType: c.sink}
		if got := ce.ContentType(&outbox.Event{ContentType: c.column}, Context{ContentType: c.metadata}); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestSourceMistakes(t *testing.T) {
	t.Parallel()
	for source, good := range map[string]bool{
		"/outbox/shop/{aggregate_type}": true, "https://shop.example/outbox#{aggregate_type}": true, "urn:outbox:shop": true, "shop": true,
		"{aggregate_type}": true, "/%41": true,
		"": false, "/outbox/{database}": false, "/a b": false, "/é": false, "/%zz": false, "/a\n": false, "://x": false, "/{aggregate_type": false,
		"/a\"b": false,
	} {
		if err := (CloudEvents{Source: source}).Validate(); (err == nil) != good {
			t.Errorf("%q: got %v", source, err)
		}
	}
}

// TestSequenceOrders: compared as texts, sequences have the same order as positions.
func TestSequenceOrders(t *testing.T) {
	t.Parallel()
	var all []string
	for _, lsn := range []pglogrepl.LSN{0, 9, 10, 0xFFFFFFFF, 0x1_00000000, 0xFFFFFFFF_FFFFFFFF} {
		for _, index := range []int64{0, 9, 10, 99_999_999} {
			all = append(all, Sequence(&sinks.Message{LSN: lsn, Index: index}))
		}
	}
	if !slices.IsSorted(all) || len(slices.Compact(all)) != 24 {
		t.Errorf("%v", all)
	}
}

// TestStructured: the official SDK reads structured events, and finds the payload unchanged. (It cannot read numbers that do
// not fit into a float64, such as 1e400.)
func TestStructured(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		contentType, payload string
		member               string
	}{
		{"", `{"b" : 1e300,"a":12345678901234567890.10, "b":"\u0041<&>\/"}`, "data"},
		{"application/json", `"text"`, "data"},
		{"text/json", "null", "data"},
		{"application/json ; charset=utf-8", "1.50", "data"},
		{"Application/JSON", "1.50", "data_base64"},
		{"application/json", "no JSON", "data_base64"},
		{"application/json", "", "data_base64"},
		{"application/json", "{} {}", "data_base64"},
		{"application/json", "\ufeff{}", "data_base64"},
		{"application/json", "{\"a\":\"\xff\"}", "data_base64"},
		{"text/plain; charset=utf-8", "{}", "data_base64"},
		{"text/plain", `"quotes that are of the text"`, "data_base64"},
		{"text/plain", "7", "data_base64"},
		{"application/vnd.shop+json", `{"a": 1}`, "data_base64"},
		{"application/avro", "\x00\xff", "data_base64"},
	} {
		m := full()
		m.Event.Payload = []byte(c.payload)
		text := shop.JSON(m, Context{ContentType: c.contentType, TraceParent: parent})
		got := decode(t, text)
		if string(got.Data()) != c.payload {
			t.Errorf("%s, %q: got %q", c.contentType, c.payload, got.Data())
		}
		if c.contentType != "" && got.DataContentType() != c.contentType {
			t.Errorf("want content type %q, got %q", c.contentType, got.DataContentType())
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(text, &members); err != nil || members[c.member] == nil {
			t.Errorf("%s, %q: no member %s in %s, %v", c.contentType, c.payload, c.member, text, err)
		}
	}
	m := full()
	m.Event.Payload = nil
	if text := shop.JSON(m, traced); bytes.Contains(text, []byte(`"data`+`"`)) || bytes.Contains(text, []byte("data_base64")) || decode(t, text).Data() != nil {
		t.Errorf("an event without data has some: %s", text)
	}
	const want = `{"specversion":"1.0","id":"id-1","source":"/outbox/shop/Order","type":"OrderPlaced","subject":"o-1",` +
		`"time":"2026-11-24T01:02:03.0405Z","partitionkey":"o-1","aggregatetype":"Order","dataversion":"12","tenantid":"t",` +
		`"correlationid":"c","causationid":"d","sequence":"00000016B374D848-00000007","traceparent":"` + parent + `","tracestate":"a=1",` +
		`"datacontenttype":"application/json; charset=utf-8","data":{"total":1}}`
	if diff := cmp.Diff(want, string(shop.JSON(full(), traced))); diff != "" {
		t.Error(diff)
	}
}

func decode(t *testing.T, text []byte) event.Event {
	t.Helper()
	var e event.Event
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if err := e.Validate(); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return e
}

// FuzzStructured: the SDK can read an event, whatever is in its columns.
func FuzzStructured(f *testing.F) {
	f.Add("id", "type", "agg", "é\"\\\x00\u2028<&>", []byte(`{"a":1}`), false)
	f.Add("\xff", "a b", "\ud7ff/:?#", "", []byte("\xff"), true)
	f.Fuzz(func(t *testing.T, id, typ, aggregateType, aggregateID string, payload []byte, binary bool) {
		if strings.TrimSpace(id) == "" || strings.TrimSpace(typ) == "" || aggregateID != "" && strings.TrimSpace(aggregateID) == "" {
			t.Skip("the columns are not blank")
		}
		var value any
		if json.Valid(payload) && json.Unmarshal(payload, &value) != nil {
			t.Skip("the SDK does not read 1e400")
		}
		c := Context{}
		if binary {
			c.ContentType = "application/octet-stream"
		}
		m := &sinks.Message{Event: &outbox.Event{ID: id, EventType: typ, AggregateType: aggregateType, AggregateID: aggregateID, Payload: payload}}
		text := shop.JSON(m, c)
		if !json.Valid(text) || !utf8.Valid(text) {
			t.Fatalf("no JSON: %q", text)
		}
		got := decode(t, text)
		valid := func(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
		if got.ID() != valid(id) || got.Type() != valid(typ) || got.Subject() != valid(aggregateID) ||
			got.Source() != "/outbox/shop/"+url.PathEscape(aggregateType) {
			t.Errorf("got %v of %q", got, text)
		}
		want := payload
		if !got.DataBase64 {
			want = bytes.Trim(payload, " \t\r\n") // around a JSON value
		}
		if !bytes.Equal(bytes.Trim(got.Data(), " \t\r\n"), bytes.Trim(want, " \t\r\n")) || got.DataBase64 && !bytes.Equal(got.Data(), want) {
			t.Errorf("want data %q, got %q", want, got.Data())
		}
	})
}

// TestHeaderValue checks the examples and limits in section 3.1.3.2 of the HTTP binding.
func TestHeaderValue(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                    "",
		"OrderPlaced":         "OrderPlaced",
		"Euro € 😀":            "Euro%20%E2%82%AC%20%F0%9F%98%80",
		"!#$&'()*+,-./09:;<=": "!#$&'()*+,-./09:;<=",
		">?@AZ[\\]^_`az{|}~":  ">?@AZ[\\]^_`az{|}~",
		` "%`:                 "%20%22%25",
		"%20":                 "%2520",
		"\x00\x1f\x7f\u0080":  "%00%1F%7F%C2%80",
		"a\r\nb: c":           "a%0D%0Ab:%20c",
		"\u2028\ufeff":        "%E2%80%A8%EF%BB%BF",
		"a\xffb\xc0\xa0":      "a%EF%BF%BDb%EF%BF%BD",
		"\xed\xa0\x80":        "%EF%BF%BD",
		"U+FFFD is \ufffd":    "U+FFFD%20is%20%EF%BF%BD",
		"n" + "\U0010ffff":    "n%F4%8F%BF%BF",
	} {
		if got := HeaderValue(in); got != want {
			t.Errorf("%q: want %q, got %q", in, want, got)
		}
	}
}

// FuzzHeaderValue: a header can hold the encoded value, and decoding it once, as the binding says, returns the original.
func FuzzHeaderValue(f *testing.F) {
	for _, s := range []string{"", "plain", "Euro € 😀", ` "%`, "%C0%A0", "\xc0\xa0", "\x00\x7f\u0080\r\n", "\xed\xa0\x80\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := HeaderValue(s)
		for i := range len(got) {
			if b := got[i]; b <= ' ' || b > '~' || b == '"' {
				t.Errorf("%q holds %q", got, b)
			}
		}
		back, err := percentDecode(got)
		want := strings.ToValidUTF8(s, "\ufffd")
		if err != nil || back != want {
			t.Errorf("%q is read as %q, %v", want, back, err)
		}
		needed := 0
		for _, b := range []byte(want) {
			if b <= ' ' || b > '~' || b == '"' || b == '%' {
				needed++
			}
		}
		if n := strings.Count(got, "%"); n != needed || got != strings.ToUpper(got) && strings.ToUpper(want) == want {
			t.Errorf("%q: %d bytes are encoded, and %d need it", got, n, needed)
		}
	})
}

// percentDecode decodes once, as a receiver does. It rejects what is not UTF-8.
func percentDecode(s string) (string, error) {
	var out []byte
	for len(s) > 0 {
		if s[0] != '%' {
			out, s = append(out, s[0]), s[1:]
			continue
		}
		var b byte
		if _, err := fmt.Sscanf(s[:min(len(s), 3)], "%%%02X", &b); err != nil {
			return "", err
		}
		out, s = append(out, b), s[3:]
	}
	if !utf8.Valid(out) {
		return "", fmt.Errorf("%q is no UTF-8", out)
	}
	return string(out), nil
}
