package kafka

import (
	"bytes"
	"encoding/json"
	"strconv"
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
	// From the metadata, empty mostly.
	contentType, traceParent, traceState string
}

// begin prepares r for msg.
func (r *record) begin(msg *sinks.Message, createdAt bool) {
	*r = record{msg: msg}
	at := msg.CommitTime
	if createdAt || at.IsZero() {
		at = msg.Event.CreatedAt
	}
	if at.IsZero() {
		at = time.Now()
	}
	r.timestamp = at.UnixMilli()
	r.contentType, r.traceParent, r.traceState = fromMetadata(msg.Event.Metadata)
}

// fromMetadata takes out what becomes a header. Parsing costs more than all the rest of a record, so it is done only
// where one of the names occurs; even looking for both is a twentieth of a record, so first for what they share.
func fromMetadata(metadata json.RawMessage) (contentType, traceParent, traceState string) {
	if !bytes.Contains(metadata, []byte("ent")) ||
		!bytes.Contains(metadata, []byte(`"content_type"`)) && !bytes.Contains(metadata, []byte(`"traceparent"`)) {
		return "", "", ""
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(metadata, &m) != nil {
		return "", "", "" // a mapped column may hold anything
	}
	text := func(name string) (s string) {
		_ = json.Unmarshal(m[name], &s) // of another type: no header
		return s
	}
	return text("content_type"), text("traceparent"), text("tracestate")
}

type header struct{ name, value string }

// headers are those of Debezium's outbox router, in the order of the columns. What is empty was NULL, and is left out.
func (r *record) headers(room *[9]header) []header {
	e := r.msg.Event
	h := append(room[:0], header{"id", e.ID})
	if e.EventType != "" {
		h = append(h, header{"eventType", e.EventType})
	}
	h = append(h, header{"eventVersion", strconv.Itoa(max(e.EventVersion, 1))})
	if e.TenantID != "" {
		h = append(h, header{"tenantId", e.TenantID})
	}
	if e.CorrelationID != "" {
		h = append(h, header{"correlationId", e.CorrelationID})
	}
	if e.CausationID != "" {
		h = append(h, header{"causationId", e.CausationID})
	}
	if r.contentType != "" {
		h = append(h, header{"content-type", r.contentType})
	}
	if r.traceParent != "" {
		h = append(h, header{"traceparent", r.traceParent})
		if r.traceState != "" {
			h = append(h, header{"tracestate", r.traceState})
		}
	}
	return h
}

// measure computes r.length for its place in a batch. size is what r takes in all.
func (r *record) measure(baseTimestamp int64, delta int32) (size int) {
	var room [9]header
	r.delta = delta
	headers := r.headers(&room)
	n := 1 + // attributes
		kbin.VarlongLen(r.timestamp-baseTimestamp) +
		kbin.VarintLen(delta) +
		bytesLen(len(r.msg.Key), r.msg.Key == "") +
		bytesLen(len(r.msg.Event.Payload), r.msg.Event.Payload == nil) +
		kbin.VarintLen(int32(len(headers)))
	for _, h := range headers {
		n += bytesLen(len(h.name), false) + bytesLen(len(h.value), false)
	}
	r.length = int32(n)
	return kbin.VarintLen(r.length) + n
}

func bytesLen(n int, null bool) int {
	if null {
		return kbin.VarintLen(-1)
	}
	return kbin.VarintLen(int32(n)) + n
}

// append writes r as it was measured. An empty key is none; the payload's bytes are not looked at.
func (r *record) append(dst []byte, baseTimestamp int64) []byte {
	var room [9]header
	dst = kbin.AppendVarint(dst, r.length)
	dst = append(dst, 0)
	dst = kbin.AppendVarlong(dst, r.timestamp-baseTimestamp)
	dst = kbin.AppendVarint(dst, r.delta)
	if r.msg.Key == "" {
		dst = kbin.AppendVarint(dst, -1)
	} else {
		dst = kbin.AppendVarintString(dst, r.msg.Key)
	}
	dst = kbin.AppendVarintBytes(dst, r.msg.Event.Payload) // nil: a tombstone
	headers := r.headers(&room)
	dst = kbin.AppendVarint(dst, int32(len(headers)))
	for _, h := range headers {
		dst = kbin.AppendVarintString(dst, h.name)
		dst = kbin.AppendVarintString(dst, h.value)
	}
	return dst
}
