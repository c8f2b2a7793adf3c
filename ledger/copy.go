package ledger

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// logColumns are the columns that logRows writes, in its order.
const logColumns = "event_id, processor_id, attempt_number, status, started_at, completed_at, duration_ms, error_message, commit_lsn, tx_index, epoch, member"

// copyHeader begins a binary COPY: signature, flags, extension length
// (https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format").
const copyHeader = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// postgresEpoch is the time from which PostgreSQL counts, 2000-01-01, in microseconds of Unix time.
const postgresEpoch = 946_684_800_000_000

// logRows appends the rows of the log to b, as a binary COPY, and returns how many they are. It is written by hand because every
// event passes here: pgx's CopyFrom costs an interface value and a plan per column.
func (w *BatchWriter) logRows(b []byte, batches []checkpoint.Outcomes) ([]byte, int, error) {
	b = append(b, copyHeader...)
	n := 0
	for i := range batches {
		rows := batches[i].Rows
		for j := range rows {
			o := &rows[j]
			if o.Status == checkpoint.Parked {
				continue
			}
			n++
			b = binary.BigEndian.AppendUint16(b, 12)
			var err error
			if b, err = w.appendID(b, o.EventID); err != nil {
				return nil, 0, err
			}
			b = appendInt4(b, o.Processor)
			b = appendInt4(b, int32(o.Attempt))
			b = appendText(b, o.Status.String())
			b = appendTime(b, o.StartedAt.Add(w.clock))
			b = appendTime(b, o.CompletedAt.Add(w.clock))
			b = binary.BigEndian.AppendUint32(b, 4)
			b = binary.BigEndian.AppendUint32(b, math.Float32bits(float32(o.CompletedAt.Sub(o.StartedAt).Seconds()*1000)))
			if o.Error == "" {
				b = appendNull(b)
			} else {
				b = appendText(b, w.errorText(o.Error))
			}
			b = appendInt8(b, int64(o.Position.LSN))
			b = appendInt8(b, o.Position.Index)
			b = appendInt4(b, w.epoch)
			if o.Member == "" {
				b = appendNull(b)
			} else {
				b = appendText(b, o.Member)
			}
		}
	}
	return binary.BigEndian.AppendUint16(b, 0xffff), n, nil
}

func appendNull(b []byte) []byte { return binary.BigEndian.AppendUint32(b, 0xffffffff) }

func appendInt4(b []byte, v int32) []byte {
	b = binary.BigEndian.AppendUint32(b, 4)
	return binary.BigEndian.AppendUint32(b, uint32(v))
}

func appendInt8(b []byte, v int64) []byte {
	b = binary.BigEndian.AppendUint32(b, 8)
	return binary.BigEndian.AppendUint64(b, uint64(v))
}

func appendTime(b []byte, t time.Time) []byte { return appendInt8(b, t.UnixMicro()-postgresEpoch) }

func appendText(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// appendID appends an event's id in the type of the column event_id: the 16 bytes of a uuid, or text. An empty id becomes null.
func (w *BatchWriter) appendID(b []byte, id string) ([]byte, error) {
	if id == "" {
		return appendNull(b), nil
	}
	if !w.uuidIDs {
		return appendText(b, id), nil
	}
	if len(id) != 36 {
		return nil, fmt.Errorf("event id %q is no uuid, but the ledger's event_id is one; see init's event_id_type", id)
	}
	b = binary.BigEndian.AppendUint32(b, 16)
	for i := 0; i < 36; {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			i++ // the dash
			continue
		}
		hi, lo := unhex[id[i]], unhex[id[i+1]]
		if hi|lo > 15 {
			return nil, fmt.Errorf("event id %q is no uuid, but the ledger's event_id is one; see init's event_id_type", id)
		}
		b = append(b, hi<<4|lo)
		i += 2
	}
	return b, nil
}

// unhex gives the value of a hexadecimal digit, and 0xff for other characters.
var unhex = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range "0123456789abcdef" {
		t[c] = byte(i)
	}
	for i, c := range "ABCDEF" {
		t[c] = byte(i + 10)
	}
	return t
}()
