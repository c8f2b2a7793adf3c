package outbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// WithCorrelationID gives the events that are written with ctx a CorrelationID, unless they have one. It names the
// conversation that they belong to: a request, a saga.
func WithCorrelationID(ctx context.Context, id string) context.Context {
	return with(ctx, func(c *carried) { c.correlationID = id })
}

// WithCausationID gives the events that are written with ctx a CausationID, unless they have one: the id of the event
// or command that is being handled.
func WithCausationID(ctx context.Context, id string) context.Context {
	return with(ctx, func(c *carried) { c.causationID = id })
}

// WithTenantID gives the events that are written with ctx a TenantID, unless they have one.
func WithTenantID(ctx context.Context, id string) context.Context {
	return with(ctx, func(c *carried) { c.tenantID = id })
}

// WithTraceParent puts the headers traceparent and tracestate (which may be empty) of W3C Trace Context into the metadata
// of the events that are written with ctx, unless it has a traceparent. Every sink passes them on.
//
// They come from outside, so one that is malformed is no error: without a valid traceparent there is none of both, without
// a valid tracestate none of that. See https://www.w3.org/TR/trace-context/.
func WithTraceParent(ctx context.Context, traceparent, tracestate string) context.Context {
	if !isTraceParent(traceparent) {
		traceparent, tracestate = "", ""
	}
	if !isTraceState(tracestate) {
		tracestate = ""
	}
	return with(ctx, func(c *carried) { c.traceParent, c.traceState = traceparent, tracestate })
}

// carried is what a context says of the events that are written with it.
type carried struct {
	correlationID, causationID, tenantID string
	traceParent, traceState              string
	sagaStep                             string
}

type carriedKey struct{}

func with(ctx context.Context, change func(*carried)) context.Context {
	c, _ := ctx.Value(carriedKey{}).(carried)
	change(&c)
	return context.WithValue(ctx, carriedKey{}, c)
}

// fill returns events with what ctx says of them. Those that it was given stay as they are.
func fill(ctx context.Context, events []Event) []Event {
	c, ok := ctx.Value(carriedKey{}).(carried)
	if !ok {
		return events
	}
	events = slices.Clone(events)
	for i := range events {
		e := &events[i]
		e.CorrelationID = first(e.CorrelationID, c.correlationID)
		e.CausationID = first(e.CausationID, c.causationID)
		e.TenantID = first(e.TenantID, c.tenantID)
		if c.traceParent != "" && !hasTraceParent(e.Metadata) {
			e.Metadata = c.trace(e.Metadata)
		}
	}
	return events
}

func first(own, carried string) string {
	if own != "" {
		return own
	}
	return carried
}

// hasTraceParent parses only what might have one.
func hasTraceParent(metadata json.RawMessage) bool {
	if !bytes.Contains(metadata, []byte(`"traceparent"`)) {
		return false
	}
	var m map[string]json.RawMessage
	_ = json.Unmarshal(metadata, &m) // what is no object will be refused
	_, ok := m["traceparent"]
	return ok
}

// trace puts the trace context first, so that a tracestate of the event's own, coming later, is the one that jsonb keeps.
// What is no object is left as it is, to be refused.
func (c *carried) trace(metadata json.RawMessage) json.RawMessage {
	rest := bytes.TrimLeft(metadata, " \t\r\n")
	if len(rest) == 0 {
		rest = []byte("{}")
	}
	if rest[0] != '{' {
		return metadata
	}
	rest = bytes.TrimLeft(rest[1:], " \t\r\n")
	b := fmt.Appendf(make([]byte, 0, len(rest)+100), `{"traceparent":%s`, quoted(c.traceParent))
	if c.traceState != "" {
		b = fmt.Appendf(b, `,"tracestate":%s`, quoted(c.traceState))
	}
	if len(rest) > 0 && rest[0] != '}' {
		b = append(b, ',')
	}
	return append(b, rest...)
}

func quoted(s string) []byte {
	b, _ := json.Marshal(s) // which a string always lets itself
	return b
}

func isTraceParent(s string) bool {
	fields := strings.SplitN(s, "-", 5) // version, trace id, parent id, flags; later versions may have more
	return len(s) <= maxTrace && len(fields) >= 4 && isHex(fields[0], 2) && isHex(fields[1], 32) && isHex(fields[2], 16) && isHex(fields[3], 2) &&
		fields[0] != "ff" && (fields[0] != "00" || len(fields) == 4) && isTraceState(s) &&
		strings.Trim(fields[1], "0") != "" && strings.Trim(fields[2], "0") != ""
}

func isHex(s string, n int) bool { return len(s) == n && strings.Trim(s, "0123456789abcdef") == "" }

// isTraceState leaves its list to those that read it.
func isTraceState(s string) bool {
	return len(s) <= maxTrace && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// maxTrace is how many bytes of a tracestate have to be passed on.
const maxTrace = 512
