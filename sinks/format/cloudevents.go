package format

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// CloudEvents describes messages as CloudEvents 1.0 (github.com/cloudevents/spec).
type CloudEvents struct {
	// Source is the attribute of that name, a URI reference; {aggregate_type} in it stands for the event's, escaped as
	// a segment of a path.
	Source string
}

const aggregateType = "{aggregate_type}"

// Validate tells what is wrong with Source.
func (ce CloudEvents) Validate() error {
	text := strings.ReplaceAll(ce.Source, aggregateType, "x")
	if text == "" {
		return fmt.Errorf("CloudEvents need a source; set one such as /outbox/shop/%s", aggregateType)
	}
	if _, err := url.Parse(text); err != nil || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`{}<>"\^|`+"`", r) }) {
		return fmt.Errorf("source %q is no URI reference such as /outbox/shop/%s, the only field that it may have", ce.Source, aggregateType)
	}
	return nil
}

// defaultContentType is what a payload is where its metadata does not say.
const defaultContentType = "application/json"

// ContentType is the attribute datacontenttype, which transports carry as a content type of their own.
func (CloudEvents) ContentType(c Context) string {
	if c.ContentType != "" {
		return c.ContentType
	}
	return defaultContentType
}

// Attributes gives all others, in a fixed order: without the prefix that a transport puts before them, and as they are,
// not encoded for headers, but valid UTF-8. What the event does not have is left out; an event without a type is of that
// of its aggregate, as the attribute is required. Extensions are those of the specification's documented ones where
// there is one (partitionkey, correlationid, causationid, sequence, traceparent).
//
// Control characters, which the specification forbids, are passed on: two aggregates shall not become one.
func (ce CloudEvents) Attributes(m *sinks.Message, c Context) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		e := m.Event
		for _, a := range [...]struct{ name, value string }{
			{"specversion", "1.0"},
			{"id", e.ID},
			{"source", strings.ReplaceAll(ce.Source, aggregateType, url.PathEscape(e.AggregateType))},
			{"type", cmp.Or(e.EventType, e.AggregateType)},
			{"subject", e.AggregateID},
			{"time", Time(e.CreatedAt)},
			{"partitionkey", e.AggregateID},
			{"aggregatetype", e.AggregateType},
			{"dataversion", strconv.Itoa(max(e.EventVersion, 1))},
			{"tenantid", e.TenantID},
			{"correlationid", e.CorrelationID},
			{"causationid", e.CausationID},
			{"sequence", Sequence(m)},
			{"traceparent", c.TraceParent},
			{"tracestate", c.TraceState},
		} {
			if a.value != "" && !yield(a.name, strings.ToValidUTF8(a.value, replacement)) {
				return
			}
		}
	}
}

const replacement = "\ufffd"

// Sequence is the message's position, which orders as a text, as the extension of that name demands: the LSN of the
// commit record in 16 hexadecimal digits, and the number of the insert in the transaction in 8 decimal ones.
func Sequence(m *sinks.Message) string { return fmt.Sprintf("%016X-%08d", uint64(m.LSN), m.Index) }

// Time is t in UTC as RFC 3339 has it, with no more digits than it needs: what Debezium makes of a timestamptz. It is
// empty where t is zero, or of a year that RFC 3339 cannot write.
func Time(t time.Time) string {
	t = t.UTC()
	if y := t.Year(); t.IsZero() || y < 0 || y > 9999 {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

// JSON is the message in structured mode, content type application/cloudevents+json. A payload that is JSON, in content
// and by its content type, stands in it byte for byte; another one as data_base64. (So
// does one of type application/vnd.shop+json or APPLICATION/JSON: SDKs differ in what they take for JSON, and all read
// data_base64.)
func (ce CloudEvents) JSON(m *sinks.Message, c Context) []byte {
	out := []byte{'{'}
	put := func(name string, value any) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		text, err := json.Marshal(value)
		if err != nil {
			panic("texts and bytes are always JSON: " + err.Error())
		}
		out = append(append(strconv.AppendQuote(out, name), ':'), text...)
	}
	for name, value := range ce.Attributes(m, c) {
		put(name, value)
	}
	contentType := ce.ContentType(c)
	put("datacontenttype", contentType)
	switch payload := m.Event.Payload; {
	case payload == nil:
	case isJSON(contentType) && json.Valid(payload) && utf8.Valid(payload):
		out = append(append(out, `,"data":`...), payload...)
	default:
		put("data_base64", payload)
	}
	return append(out, '}')
}

func isJSON(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.TrimSpace(media)
	return media == "application/json" || media == "text/json"
}

// HeaderValue encodes an attribute for the headers of HTTP and NATS, as the specification's bindings say: every
// character that is a space, a double quote, a percent sign or outside of printable ASCII as %XX of its UTF-8.
func HeaderValue(s string) string {
	plain := func(b byte) bool { return b > ' ' && b < 0x7f && b != '"' && b != '%' }
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	var out strings.Builder
	for _, b := range []byte(strings.ToValidUTF8(s, replacement)) {
		if plain(b) {
			out.WriteByte(b)
		} else {
			fmt.Fprintf(&out, "%%%02X", b)
		}
	}
	return out.String()
}
