package kafka

import (
	"time"

	"github.com/twmb/franz-go/pkg/kbin"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// record is a message of the batch that is being delivered, and what becomes of it.
type record struct {
	msg       *sinks.Message
	partition *partition // nil until its topic is known
	settled   bool
	next      int32 // the next record of the same partition in the wave, −1 behind the last
	length    int32 // on the wire, without the length itself
	delta     int32 // its number in the partition's batch
	timestamp int64 // milliseconds
	headers   []header
	tombstone bool // the value is null, whatever the payload is
}

type header struct{ name, value string }

// begin prepares r for msg. Its headers are put into room behind what is there.
func (r *record) begin(msg *sinks.Message, l *layout, room []header) []header {
	*r = record{msg: msg}
	at := msg.CommitTime
	if e := msg.Event; at.IsZero() || l.createdAt && !e.CreatedAt.IsZero() { // where it is NULL, Debezium's is that of the change
		at = e.CreatedAt
	}
	if at.IsZero() {
		at = time.Now()
	}
	r.timestamp = at.UnixMilli()
	r.tombstone = l.tombstone && isBlank(msg.Event.Payload)
	from := len(room)
	room = l.appendHeaders(room, msg)
	r.headers = room[from:len(room):len(room)]
	return room
}

// value is the payload, or nil: a tombstone.
func (r *record) value() []byte {
	if r.tombstone {
		return nil
	}
	return r.msg.Event.Payload
}

// measure computes r.length for its place in a batch. size is what r takes in all.
func (r *record) measure(baseTimestamp int64, delta int32) (size int) {
	r.delta = delta
	value := r.value()
	keyLen, valueLen := kbin.VarintLen(-1), kbin.VarintLen(-1) // of what is null
	if r.msg.Key != "" {
		keyLen = bytesLen(len(r.msg.Key))
	}
	if value != nil {
		valueLen = bytesLen(len(value))
	}
	n := 1 + // attributes
		kbin.VarlongLen(r.timestamp-baseTimestamp) +
		kbin.VarintLen(delta) +
		keyLen + valueLen +
		kbin.VarintLen(int32(len(r.headers)))
	for _, h := range r.headers {
		n += bytesLen(len(h.name)) + bytesLen(len(h.value))
	}
	r.length = int32(n)
	return kbin.VarintLen(r.length) + n
}

// bytesLen is how long n bytes are with their length in front.
func bytesLen(n int) int { return kbin.VarintLen(int32(n)) + n }

// append writes r as it was measured. An empty key is none; the payload's bytes are not looked at.
func (r *record) append(dst []byte, baseTimestamp int64) []byte {
	dst = kbin.AppendVarint(dst, r.length)
	dst = append(dst, 0)
	dst = kbin.AppendVarlong(dst, r.timestamp-baseTimestamp)
	dst = kbin.AppendVarint(dst, r.delta)
	if r.msg.Key == "" {
		dst = kbin.AppendVarint(dst, -1)
	} else {
		dst = kbin.AppendVarintString(dst, r.msg.Key)
	}
	dst = kbin.AppendVarintBytes(dst, r.value())
	dst = kbin.AppendVarint(dst, int32(len(r.headers)))
	for _, h := range r.headers {
		dst = kbin.AppendVarintString(dst, h.name)
		dst = kbin.AppendVarintString(dst, h.value)
	}
	return dst
}
