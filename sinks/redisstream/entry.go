package redisstream

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// entry is one message of a Deliver.
type entry struct {
	msg     *sinks.Message
	stream  *stream
	size    int // with all fields, about
	large   int // bytes of its largest field
	settled bool

	version      int
	created, lsn string
	context      format.Context
}

// overhead of a field: its name, and how both are framed.
const overhead = 32

func (e *entry) begin(m *sinks.Message) {
	ev := m.Event
	*e = entry{
		msg: m, version: max(ev.EventVersion, 1), created: format.Time(ev.CreatedAt), lsn: format.Sequence(m),
		context: format.ContextOf(ev.Metadata),
	}
	e.large = max(len(ev.Payload), len(ev.Metadata), len(ev.AggregateID), len(ev.ID), len(ev.TenantID), len(ev.CorrelationID),
		len(ev.CausationID), len(ev.AggregateType), len(ev.EventType))
	e.size = 16*overhead + len(m.Topic) + len(ev.ID) + len(ev.AggregateType) + len(ev.AggregateID) + len(ev.EventType) +
		len(ev.Payload) + len(ev.Metadata) + len(ev.TenantID) + len(ev.CorrelationID) + len(ev.CausationID) +
		len(e.context.TraceParent) + len(e.context.TraceState) + len(e.context.ContentType)
}

// command is one that is sent, and its reply as it came. It is used again, with other arguments: a pipeline asks Args
// for what it writes. (The arguments that go-redis keeps itself stay empty.)
type command struct {
	*redis.RawWriteToCmd
	args  []any
	reply []byte
}

func newCommand(args ...any) *command {
	c := &command{args: args}
	c.RawWriteToCmd = redis.NewRawWriteToCmd(context.Background(), c) // its own context is not used
	return c
}

// Args implements redis.Cmder.
func (c *command) Args() []any { return c.args }

// Write takes the reply.
func (c *command) Write(p []byte) (int, error) {
	c.reply = append(c.reply, p...)
	return len(p), nil
}

// reset forgets reply and error; the arguments are the caller's.
func (c *command) reset() {
	c.SetErr(nil)
	c.reply = c.reply[:0]
}

// answered tells whether the whole reply is there, an error of Redis being one.
func (c *command) answered() bool { return c.Err() == nil && len(c.reply) > 0 }

// raw are bytes that go-redis writes where they lie: a pointer fits into an interface, a slice would be copied to the
// heap.
type raw []byte

// MarshalBinary implements encoding.BinaryMarshaler.
func (r *raw) MarshalBinary() ([]byte, error) { return *r, nil }

// trimming is what stands between a stream's name and the id.
type trimming struct {
	by        string // MAXLEN or MINID; "": neither
	threshold string
}

// add makes c the XADD of e. The fields come always in the same order: an entry with those of the one before it takes
// less memory. A column that is NULL is left out.
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
	args = append(args, "event_version", &e.version)
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

// release lets go of the message.
func (c *command) release() {
	clear(c.args[:cap(c.args)])
	c.args = c.args[:0]
}
