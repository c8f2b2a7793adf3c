package kafka

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

const (
	formatDebezium    = "debezium"
	formatCloudEvents = "cloudevents"

	timestampCommit    = "commit"
	timestampCreatedAt = "created_at"

	encodingPlain = "plain"
	encodingJSON  = "json"

	headerID          = "id"
	headerContentType = "content-type"
	headerTraceParent = "traceparent"
	headerTraceState  = "tracestate"
	headerLSN         = "outbox_lsn"

	// cePrefix is the prefix that the Kafka binding of CloudEvents demands. By this binding values are UTF-8 and not
	// percent-encoded.
	cePrefix = "ce_"
)

// layout says how records are made of messages. It is made of the configuration and never changes.
type layout struct {
	createdAt    bool // the timestamp of a record is created_at
	tombstone    bool
	debezium     bool
	json         bool
	placed       []placedColumn // the headers that follow the id
	fromMetadata []string
	lsn          bool
	cloudEvents  bool
	events       format.CloudEvents
	names        map[string]string // the names of headers by those of attributes
}

type placedColumn struct {
	column column
	header string
}

// layout checks the options of formats. Its error joins all mistakes.
func (c *Config) layout() (l layout, err error) {
	var errs []error
	mistake := func(field, text string, args ...any) { errs = append(errs, sinks.FieldErrorf(field, text, args...)) }
	switch c.Timestamp {
	case "", timestampCommit:
	case timestampCreatedAt:
		l.createdAt = true
	default:
		mistake("timestamp", "%q is none of commit and created_at", c.Timestamp)
	}
	l.debezium = len(c.Formats) == 0
	for i, f := range c.Formats {
		is := map[string]*bool{formatDebezium: &l.debezium, formatCloudEvents: &l.cloudEvents}[f]
		switch {
		case is == nil:
			mistake(fmt.Sprintf("format[%d]", i), "%q is none of debezium and cloudevents", f)
		case *is:
			mistake(fmt.Sprintf("format[%d]", i), "%q is there twice", f)
		default:
			*is = true
		}
	}
	switch c.HeaderEncoding {
	case "", encodingPlain:
	case encodingJSON:
		l.json = true
	default:
		mistake("header_encoding", "%q is none of plain and json", c.HeaderEncoding)
	}
	l.events = format.CloudEvents{Source: c.Source, DataContentType: c.ContentType}
	if l.cloudEvents {
		if err := l.events.Validate(); err != nil {
			errs = append(errs, err)
		}
		l.names = headerNames()
	}
	l.tombstone, l.lsn = c.TombstoneOnEmptyPayload, c.LSNHeader
	placed, err := parsePlacement(c.Placement, c.Columns)
	if err != nil {
		errs = append(errs, err)
	}
	if len(errs) == 0 && !l.debezium {
		const forDebezium = "has an effect with the format %q only; add that format, or remove this"
		if c.Placement != "" {
			mistake("placement", forDebezium, formatDebezium)
		}
		if l.json {
			mistake("header_encoding", forDebezium, formatDebezium)
		}
	}
	if c.Placement == "" && l.debezium {
		placed, _ = parsePlacement(defaultPlacement, nil)
	}
	if err := l.setHeaders(placed, c.HeadersFromMetadata); err != nil {
		errs = append(errs, err)
	}
	return l, errors.Join(errs...)
}

// setHeaders sets the headers. It returns an error if two of them have the same name.
func (l *layout) setHeaders(placed []headerColumn, fromMetadata []string) error {
	var errs []error
	taken := map[string]bool{headerContentType: true, headerTraceParent: true, headerTraceState: true, headerID: l.debezium, headerLSN: l.lsn}
	take := func(field, name string) {
		if name == "" || taken[name] || l.cloudEvents && strings.HasPrefix(name, cePrefix) {
			errs = append(errs, sinks.FieldErrorf(field, "%q is the name of another header, or none", name))
		}
		taken[name] = true
	}
	for _, p := range placed {
		if p.Column == columnNames[columnID] && p.Header == headerID {
			continue // this header exists anyway
		}
		take("placement", p.Header)
		l.placed = append(l.placed, placedColumn{column(slices.Index(columnNames, p.Column)), p.Header})
	}
	for i, name := range fromMetadata {
		if name == headerTraceParent || name == headerTraceState {
			continue // these headers exist anyway
		}
		take(fmt.Sprintf("headers_from_metadata[%d]", i), name)
		l.fromMetadata = append(l.fromMetadata, name)
	}
	return errors.Join(errs...)
}

// headerNames returns the names of headers for all attributes, so that they are not composed anew for each record.
func headerNames() map[string]string {
	full := &sinks.Message{Event: &outbox.Event{
		ID: "x", AggregateType: "x", AggregateID: "x", EventType: "x", EventVersion: 1, TenantID: "x", CorrelationID: "x", CausationID: "x", CreatedAt: time.Now(),
	}}
	names := make(map[string]string)
	for name := range (format.CloudEvents{Source: "x"}).Attributes(full, format.Context{TraceParent: "x", TraceState: "x"}) {
		names[name] = cePrefix + name
	}
	return names
}

// appendHeaders appends the headers of m: the id and the placed columns, as in Debezium's outbox router; what the
// metadata says to all transports; the chosen keys of the metadata; the position; and the attributes of a CloudEvent.
// An empty value stands for NULL and makes no header.
func (l *layout) appendHeaders(h []header, m *sinks.Message) []header {
	e := m.Event
	c := format.ContextOf(e.Metadata)
	if l.debezium {
		h = append(h, header{headerID, l.encode(e.ID)})
		for _, p := range l.placed {
			value := p.column.of(e)
			if value == "" {
				continue
			}
			if p.column != columnEventVersion { // a number needs no quotes in JSON
				value = l.encode(value)
			}
			h = append(h, header{p.header, value})
		}
	}
	if l.cloudEvents {
		h = append(h, header{headerContentType, l.events.ContentType(e, c)})
	} else if contentType := cmp.Or(c.ContentType, l.events.DataContentType); contentType != "" {
		h = append(h, header{headerContentType, contentType})
	}
	if c.TraceParent != "" {
		h = append(h, header{headerTraceParent, c.TraceParent})
		if c.TraceState != "" {
			h = append(h, header{headerTraceState, c.TraceState})
		}
	}
	if l.fromMetadata != nil {
		h = l.appendMetadata(h, e.Metadata)
	}
	if l.lsn {
		h = append(h, header{headerLSN, l.encode(format.Sequence(m))})
	}
	if l.cloudEvents {
		for name, value := range l.events.Attributes(m, c) {
			h = append(h, header{l.names[name], value})
		}
	}
	return h
}

// appendMetadata appends the chosen keys that the metadata has. A string becomes its text, any other value stays JSON.
func (l *layout) appendMetadata(h []header, metadata json.RawMessage) []header {
	var m map[string]json.RawMessage
	if json.Unmarshal(metadata, &m) != nil {
		return h // a mapped column may hold anything
	}
	for _, name := range l.fromMetadata {
		raw := m[name]
		switch {
		case raw == nil || string(raw) == "null":
		case raw[0] == '"':
			var text string
			_ = json.Unmarshal(raw, &text) // cannot fail: the metadata was valid as a whole
			if text != "" {
				h = append(h, header{name, l.encode(text)})
			}
		default:
			h = append(h, header{name, string(raw)})
		}
	}
	return h
}

// encode writes a text in the configured header encoding.
func (l *layout) encode(s string) string {
	if !l.json {
		return s
	}
	return quote(s)
}

// quote writes a JSON string in the same way as Jackson, the library of Debezium: it escapes quotes, backslashes and
// control characters, and nothing else.
func quote(s string) string {
	const digits = "0123456789ABCDEF"
	out := append(make([]byte, 0, len(s)+2), '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			out = append(out, '\\', byte(r))
		case r == '\b':
			out = append(out, `\b`...)
		case r == '\t':
			out = append(out, `\t`...)
		case r == '\n':
			out = append(out, `\n`...)
		case r == '\f':
			out = append(out, `\f`...)
		case r == '\r':
			out = append(out, `\r`...)
		case r < ' ':
			out = append(out, '\\', 'u', '0', '0', digits[r>>4], digits[r&15])
		default:
			out = utf8.AppendRune(out, r)
		}
	}
	return string(append(out, '"'))
}

// isBlank reports whether Debezium takes a payload for empty: it has no bytes, or Java's trim leaves none.
func isBlank(payload []byte) bool {
	return !slices.ContainsFunc(payload, func(b byte) bool { return b > ' ' })
}
