// Package format makes those parts of a message that several transports have in common: the trace context and the
// content type, which it takes from the metadata, and the attributes of CloudEvents. The only thing that it finds out
// about a payload is whether it is JSON.
package format

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Context holds what the metadata of an event says to all transports. A field is empty if the metadata does not say it.
type Context struct {
	ContentType string // key content_type
	TraceParent string // keys traceparent and tracestate, of W3C Trace Context, from whoever wrote the event
	TraceState  string
}

// maxPlain is the most bytes of such a header. Servers accept about 8 KB of headers in all.
const maxPlain = 2 << 10

// Plain returns those fields that the headers of HTTP and NATS can hold: printable ASCII, and not too long. The others
// become empty, because metadata may hold anything, and nothing in it is a reason not to deliver the event.
func (c Context) Plain() Context {
	if !isPlain(c.ContentType) {
		c.ContentType = ""
	}
	if !isPlain(c.TraceParent) {
		c.TraceParent, c.TraceState = "", ""
	}
	if !isPlain(c.TraceState) {
		c.TraceState = ""
	}
	return c
}

func isPlain(s string) bool {
	return len(s) <= maxPlain && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// ContextOf reads the Context from the metadata. Parsing the metadata costs more than all the rest of making a record,
// so it is done only if one of the names occurs in it. Even looking for both names costs a twentieth of a record, so
// ContextOf first looks for "ent", which both contain.
func ContextOf(metadata json.RawMessage) Context {
	if !bytes.Contains(metadata, []byte("ent")) ||
		!bytes.Contains(metadata, []byte(`"content_type"`)) && !bytes.Contains(metadata, []byte(`"traceparent"`)) {
		return Context{}
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(metadata, &m) != nil {
		return Context{} // a mapped column may hold anything
	}
	text := func(name string) (s string) {
		_ = json.Unmarshal(m[name], &s) // an error means a value of another type, which counts as missing
		return s
	}
	c := Context{ContentType: text("content_type"), TraceParent: text("traceparent")}
	if c.TraceParent != "" { // a tracestate without a traceparent has no meaning
		c.TraceState = text("tracestate")
	}
	return c
}
