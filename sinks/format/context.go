// Package format makes of a message what several transports carry alike: the trace context and the content type of its
// metadata, and the attributes of CloudEvents. It never looks into a payload but to ask whether it is JSON.
package format

import (
	"bytes"
	"encoding/json"
)

// Context is what an event's metadata says to every transport; what is empty it does not say.
type Context struct {
	ContentType string // key content_type
	TraceParent string // keys traceparent and tracestate of W3C Trace Context, as the event's writer had them
	TraceState  string
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
