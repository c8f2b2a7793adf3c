// Package format makes of a message what several transports carry alike: the trace context and the content type of its
// metadata, and the attributes of CloudEvents. It never looks into a payload but to ask whether it is JSON.
package format

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Context is what an event's metadata says to every transport; what is empty it does not say.
type Context struct {
	ContentType string // key content_type
	TraceParent string // keys traceparent and tracestate of W3C Trace Context, as the event's writer had them
	TraceState  string
}

// maxPlain is how many bytes a header has room for that is no part of the event: servers take 8 KB of all of them.
const maxPlain = 2 << 10

// Plain is what of it the headers of HTTP and NATS can hold: printable ASCII, and not too much. Metadata may hold anything,
// and none of it is a reason not to deliver an event.
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

// ContextOf takes it out of the metadata. Parsing costs more than all the rest of a record, so it is done only where one
// of the names occurs; even looking for both is a twentieth of a record, so first for what they share.
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
		_ = json.Unmarshal(m[name], &s) // of another type: as if it were not there
		return s
	}
	c := Context{ContentType: text("content_type"), TraceParent: text("traceparent")}
	if c.TraceParent != "" { // without it the other has no meaning
		c.TraceState = text("tracestate")
	}
	return c
}
