package format

import (
	"encoding/json"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// CloudEvents describes messages as CloudEvents 1.0 (github.com/cloudevents/spec).
type CloudEvents struct {
	// Source is the attribute of that name, a URI reference; {aggregate_type} in it stands for the event's.
	Source string
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
// not encoded for headers. What the event does not have is left out. Extensions are those of the specification's
// documented ones where there is one (partitionkey, correlationid, causationid, sequence, traceparent).
func (ce CloudEvents) Attributes(m *sinks.Message, c Context) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		e := m.Event
		created := ""
		if !e.CreatedAt.IsZero() {
			created = e.CreatedAt.UTC().Format(time.RFC3339Nano)
		}
		for _, a := range [...]struct{ name, value string }{
			{"specversion", "1.0"},
			{"id", e.ID},
			{"source", strings.ReplaceAll(ce.Source, "{aggregate_type}", e.AggregateType)},
			{"type", e.EventType},
			{"subject", e.AggregateID},
			{"time", created},
			{"partitionkey", e.AggregateID},
			{"aggregatetype", e.AggregateType},
			{"dataversion", strconv.Itoa(max(e.EventVersion, 1))},
			{"tenantid", e.TenantID},
			{"correlationid", e.CorrelationID},
			{"causationid", e.CausationID},
			{"sequence", sequence(m)},
			{"traceparent", c.TraceParent},
			{"tracestate", c.TraceState},
		} {
			if a.value != "" && !yield(a.name, a.value) {
				return
			}
		}
	}
}

// sequence orders as a text: the extension demands it.
func sequence(m *sinks.Message) string { return fmt.Sprintf("%016X-%08d", uint64(m.LSN), m.Index) }

// JSON is the message in structured mode, content type application/cloudevents+json. A payload that is JSON stands in
// it byte for byte, another one as data_base64.
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
	put("datacontenttype", ce.ContentType(c))
	switch payload := m.Event.Payload; {
	case payload == nil:
	case json.Valid(payload):
		out = append(append(out, `,"data":`...), payload...)
	default:
		put("data_base64", []byte(payload))
	}
	return append(out, '}')
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
	for _, b := range []byte(strings.ToValidUTF8(s, "\ufffd")) {
		if plain(b) {
			out.WriteByte(b)
		} else {
			fmt.Fprintf(&out, "%%%02X", b)
		}
	}
	return out.String()
}
