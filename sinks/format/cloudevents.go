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

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// CloudEvents describes messages as CloudEvents 1.0 (github.com/cloudevents/spec).
type CloudEvents struct {
	// Source is the attribute source, a URI reference. {aggregate_type} in it stands for the event's aggregate type,
	// escaped as a segment of a path.
	Source string
	// DataContentType is the attribute datacontenttype of events whose metadata name none. If it is empty, the type of the column
	// that holds the payload says it.
	DataContentType string
}

const aggregateType = "{aggregate_type}"

// Validate returns a *sinks.FieldError that says what is wrong with Source.
func (ce CloudEvents) Validate() error {
	text := strings.ReplaceAll(ce.Source, aggregateType, "x")
	if text == "" {
		return sinks.FieldErrorf("source", "CloudEvents need one; write such as /outbox/shop/%s", aggregateType)
	}
	if _, err := url.Parse(text); err != nil || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`{}<>"\^|`+"`", r) }) {
		return sinks.FieldErrorf("source", "%q is no URI reference such as /outbox/shop/%s, the only field that it may have", ce.Source, aggregateType)
	}
	return nil
}

// jsonContentType is the content type of a payload whose column is json or jsonb.
const jsonContentType = "application/json"

// ContentType returns the attribute datacontenttype. Transports have a place of their own for it, so it is not among Attributes.
func (ce CloudEvents) ContentType(e *outbox.Event, c Context) string {
	return cmp.Or(c.ContentType, ce.DataContentType, e.ContentType, jsonContentType)
}

// Attributes returns all other attributes, in a fixed order. The names are without the prefix that a transport puts before them. The
// values are valid UTF-8, and not encoded for headers. An attribute whose value the event does not have is left out. The attribute
// type is required, so for an event without a type it is the type of its aggregate. Where the specification documents an extension
// for a value, its name is used: partitionkey, correlationid, causationid, sequence, traceparent.
//
// The specification forbids control characters, but Attributes keeps them: without them two aggregates could become one.
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
			{"dataversion", Version(e)},
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

// Version returns the event's version as a text, and an empty one if its table has none.
func Version(e *outbox.Event) string {
	if e.EventVersion == 0 {
		return ""
	}
	return strconv.Itoa(e.EventVersion)
}

// Sequence returns the message's position as the extension sequence demands it: as a text, the greater position is the greater text. It
// is the LSN of the commit record in 16 hexadecimal digits, and the number of the insert in the transaction in 8 decimal digits.
func Sequence(m *sinks.Message) string { return fmt.Sprintf("%016X-%08d", uint64(m.LSN), m.Index) }

// Time returns t in UTC in the format of RFC 3339, with no more digits than needed. Debezium writes a timestamptz in the same way. The
// result is empty if t is zero or has a year that RFC 3339 cannot write.
func Time(t time.Time) string {
	t = t.UTC()
	if y := t.Year(); t.IsZero() || y < 0 || y > 9999 {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

// JSON returns the message in structured mode (content type application/cloudevents+json). The payload is written as data, byte for
// byte, if it is JSON and its content type is application/json or text/json. Otherwise it is written as data_base64. That includes
// content types such as application/vnd.shop+json and APPLICATION/JSON: SDKs do not agree whether these are JSON, and all of them
// read data_base64.
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
	contentType := ce.ContentType(m.Event, c)
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

// HeaderValue encodes an attribute for headers of HTTP and NATS, as the specification's bindings say: spaces, double quotes, percent
// signs and all characters other than printable ASCII are written as the %XX of their UTF-8 bytes.
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
