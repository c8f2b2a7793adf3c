package kafka

import (
	"time"

	"github.com/twmb/franz-go/pkg/kbin"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// record is a message of the batch that is being delivered, with the state of its delivery.
type record struct {
	msg       *sinks.Message
	partition *partition // nil until its topic is known
	settled   bool
	next      int32 // the next record of the same partition in the wave; −1 for the last
	length    int32 // its encoded bytes, without those of the length itself
	delta     int32 // its number within the batch of the partition
	timestamp int64 // milliseconds
	headers   []header
	tombstone bool // the value is null even if there is a payload
}

type header struct{ name, value string }

// begin prepares r for msg. It appends the headers to room, and returns that.
func (r *record) begin(msg *sinks.Message, l *layout, room []header) []header {
	*r = record{msg: msg}
	at := msg.CommitTime
	if e := msg.Event; at.IsZero() || l.createdAt && !e.CreatedAt.IsZero() { // if created_at is NULL, the timestamp is that of the commit, as with Debezium
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

// value returns the payload, and nil for a tombstone.
func (r *record) value() []byte {
	if r.tombstone {
		return nil
	}
	return r.msg.Event.Payload
}

// nullKey reports whether the key is null. An empty key stands for a column that is NULL, unless aggregate_id is empty: that one is
// never NULL, and is the key.
func (r *record) nullKey() bool { return r.msg.Key == "" && r.msg.Event.AggregateID != "" }

// measure computes r.length for a place in a batch. It returns how many bytes r takes in all.
func (r *record) measure(baseTimestamp int64, delta int32) (size int) {
	r.delta = delta
	value := r.value()
	keyLen, valueLen := kbin.VarintLen(-1), kbin.VarintLen(-1) // the length of null
	if !r.nullKey() {
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

// bytesLen returns the encoded length of n bytes, which includes the number that says how many they are.
func bytesLen(n int) int { return kbin.VarintLen(int32(n)) + n }

// append encodes r, which was measured before. The payload is copied as it is.
func (r *record) append(dst []byte, baseTimestamp int64) []byte {
	dst = kbin.AppendVarint(dst, r.length)
	dst = append(dst, 0)
	dst = kbin.AppendVarlong(dst, r.timestamp-baseTimestamp)
	dst = kbin.AppendVarint(dst, r.delta)
	if r.nullKey() {
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
