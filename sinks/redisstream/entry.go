package redisstream

import (
	"cmp"
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// entry is a message that is being delivered.
type entry struct {
	msg     *sinks.Message
	stream  *stream
	size    int // about how many bytes, with all fields
	large   int // how many bytes the largest field has
	settled bool

	version, created, lsn string
	context               format.Context
}

// fieldOverhead is about how many bytes a field takes besides its value: its name, and the framing of both.
const fieldOverhead = 32

// begin begins with m. contentType is for a message whose metadata name none.
func (e *entry) begin(m *sinks.Message, contentType string) {
	ev := m.Event
	*e = entry{
		msg: m, version: format.Version(ev), created: format.Time(ev.CreatedAt), lsn: format.Sequence(m),
		context: format.ContextOf(ev.Metadata),
	}
	e.context.ContentType = cmp.Or(e.context.ContentType, contentType)
	e.large = max(len(ev.Payload), len(ev.Metadata), len(ev.AggregateID), len(ev.ID), len(ev.TenantID), len(ev.CorrelationID),
		len(ev.CausationID), len(ev.AggregateType), len(ev.EventType))
	e.size = 16*fieldOverhead + len(m.Topic) + len(ev.ID) + len(ev.AggregateType) + len(ev.AggregateID) + len(ev.EventType) +
		len(ev.Payload) + len(ev.Metadata) + len(ev.TenantID) + len(ev.CorrelationID) + len(ev.CausationID) +
		len(e.context.TraceParent) + len(e.context.TraceState) + len(e.context.ContentType)
}

// command is a command of Redis together with the bytes of its reply. It is used again with other arguments, which a
// pipeline gets from Args. (The arguments that go-redis itself keeps in a command stay empty.)
type command struct {
	*redis.RawWriteToCmd
	args  []any
	reply []byte
}

func newCommand(args ...any) *command {
	c := &command{args: args}
	c.RawWriteToCmd = redis.NewRawWriteToCmd(context.Background(), c) // go-redis does not use this context
	return c
}

// Args implements redis.Cmder.
func (c *command) Args() []any { return c.args }

// Write takes the reply.
func (c *command) Write(p []byte) (int, error) {
	c.reply = append(c.reply, p...)
	return len(p), nil
}

// reset removes reply and error. The caller sets the arguments.
func (c *command) reset() {
	c.SetErr(nil)
	c.reply = c.reply[:0]
}

// answered reports whether the whole reply has arrived. An error of Redis is a reply too.
func (c *command) answered() bool { return c.Err() == nil && len(c.reply) > 0 }

// raw holds bytes that go-redis writes without copying them. A pointer to raw fits into an interface. A slice would be
// copied to the heap for that.
type raw []byte

// MarshalBinary implements encoding.BinaryMarshaler.
func (r *raw) MarshalBinary() ([]byte, error) { return *r, nil }

// trimming holds the arguments of XADD that say how the stream is trimmed.
type trimming struct {
	by        string // MAXLEN or MINID; empty if the stream is not trimmed
	threshold string
}

// add makes c the XADD of e. The fields always have the same order, because in Redis an entry with the same fields as
// the one before it takes less memory. A column that is NULL is left out.
func (c *command) add(e *entry, t *trimming) {
	c.reset()
	ev := e.msg.Event
	args := append(c.args[:0], "XADD", &e.msg.Topic)
	if t.by != "" {
		args = append(args, t.by, "~", &t.threshold)
	}
	args = append(args, "*", "id", &ev.ID, "aggregate_type", &ev.AggregateType, "aggregate_id", &ev.AggregateID)
	text := func(name string, value *string) {
		if *value != "" {
			args = append(args, name, value)
		}
	}
	text("event_type", &ev.EventType)
	text("event_version", &e.version)
	if ev.Payload != nil {
		args = append(args, "payload", (*raw)(&ev.Payload))
	}
	if len(ev.Metadata) > 0 {
		args = append(args, "metadata", (*raw)(&ev.Metadata))
	}
	text("created_at", &e.created)
	text("tenant_id", &ev.TenantID)
	text("correlation_id", &ev.CorrelationID)
	text("causation_id", &ev.CausationID)
	text("lsn", &e.lsn)
	text("traceparent", &e.context.TraceParent)
	text("tracestate", &e.context.TraceState)
	text("content_type", &e.context.ContentType)
	c.args = args
}

// release drops all references to the message.
func (c *command) release() {
	clear(c.args[:cap(c.args)])
	c.args = c.args[:0]
}
