package decoder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// span is where a column's text lies in a message. PostgreSQL's NULL starts at -1.
type span struct{ start, end int }

func (d *Decoder) insert(body []byte) (Message, error) {
	if len(body) < 5 {
		return Message{}, errShort
	}
	oid := binary.BigEndian.Uint32(body)
	if body[4] != 'N' {
		return Message{}, fmt.Errorf("a new row begins with 'N', not %q", body[4])
	}
	if oid != d.table.OID {
		if _, ok := d.others[oid]; !ok {
			return Message{}, fmt.Errorf("row of relation %d, which was never announced", oid)
		}
		return Message{Kind: KindInsert, Relation: oid}, nil
	}
	if d.outbox == nil {
		return Message{}, fmt.Errorf("row of relation %d, which was never announced", oid)
	}
	row := body[5:]
	if err := d.split(row); err != nil {
		return Message{}, err
	}
	return d.event(row)
}

var (
	errUnchanged = errors.New("a new row has an unchanged value")
	errBinary    = errors.New("a value is in binary format, which was not asked for")
)

// split finds the columns of a row.
func (d *Decoder) split(row []byte) error {
	if len(row) < 2 {
		return errShort
	}
	if n := int(binary.BigEndian.Uint16(row)); n != len(d.spans) {
		return fmt.Errorf("a row of %d columns, the relation has %d", n, len(d.spans))
	}
	at := 2
	for i := range d.spans {
		if at >= len(row) {
			return errShort
		}
		kind := row[at]
		at++
		switch kind {
		case 't':
			if len(row)-at < 4 {
				return errShort
			}
			size := int(binary.BigEndian.Uint32(row[at:]))
			at += 4
			if uint(size) > uint(len(row)-at) { // as unsigned: where int has 32 bits, size may be negative
				return errShort
			}
			d.spans[i] = span{at, at + size}
			at += size
		case 'n':
			d.spans[i] = span{-1, -1}
		case 'u':
			return errUnchanged
		case 'b':
			return errBinary
		default:
			return fmt.Errorf("unknown format %q of a value", kind)
		}
	}
	if at != len(row) {
		return fmt.Errorf("%d bytes are left over at its end", len(row)-at)
	}
	return nil
}

// values are the texts of an event's fields, in the borrowed message; nil is NULL, or no such column.
type values [fieldCount][]byte

// event makes an event of the row that was split last.
func (d *Decoder) event(row []byte) (Message, error) {
	var v values
	for f, at := range d.outbox.column {
		if at < 0 {
			continue
		}
		if s := d.spans[at]; s.start >= 0 {
			v[f] = row[s.start:s.end]
		}
	}
	if d.outbox.payloadHex && v[payload] != nil {
		digits, ok := bytes.CutPrefix(v[payload], []byte(`\x`))
		if !ok || len(digits)%2 != 0 {
			return Message{}, fmt.Errorf("column %q: the bytea is not in hex format: bytea_output must be hex", d.table.Columns.Payload)
		}
		v[payload] = digits
	}
	size, invalid := d.validate(&v)
	e, err := d.fill(&v, size)
	if err != nil {
		return Message{}, err
	}
	return Message{Kind: KindInsert, Event: e, Invalid: invalid, Size: eventSize + size}, nil
}

// size is how many bytes the event's texts take.
func (d *Decoder) size(v *values) int {
	n := 0
	for _, b := range v {
		n += len(b)
	}
	if d.outbox.payloadHex {
		n -= len(v[payload]) / 2
	}
	return n
}

// required are the fields that must not be NULL where the table has them.
var required = [...]field{id, aggregateType, aggregateID, eventType}

// expendable are the fields in the order in which they are dropped from a row that is too large.
var expendable = [...]field{payload, metadata, causationID, correlationID, tenantID, eventType, aggregateID, aggregateType, id}

// validate says why a row is no valid event; nil if it is one. It takes from v what cannot be kept, and gives the size
// of the rest.
func (d *Decoder) validate(v *values) (int, error) {
	var invalid []string
	for _, f := range required {
		if v[f] == nil && d.outbox.column[f] >= 0 {
			invalid = append(invalid, needs[f].name+" is null")
		}
	}
	if v[id] != nil && len(v[id]) == 0 { // a column of the user's own; the ledger could not tell it from none
		invalid = append(invalid, "id is empty")
	}
	size := d.size(v)
	if size > d.maxEventBytes {
		invalid = append(invalid, fmt.Sprintf("the event takes %d bytes, more than the %d of max_event_bytes", size, d.maxEventBytes))
		for _, f := range expendable {
			if size > d.maxEventBytes {
				v[f] = nil
				size = d.size(v)
			}
		}
	}
	if invalid == nil {
		return size, nil
	}
	return size, errors.New(strings.Join(invalid, "; "))
}

// fill copies the values, of size bytes together, into an event.
func (d *Decoder) fill(v *values, size int) (*outbox.Event, error) {
	// Numbers are parsed, and names are shared: neither is copied.
	size -= len(v[aggregateType]) + len(v[eventType]) + len(v[eventVersion]) + len(v[createdAt]) + len(v[maxRetries])
	e, t := d.memory.event(size)
	e.ID = t.string(v[id])
	e.AggregateType = d.names.string(v[aggregateType])
	e.AggregateID = t.string(v[aggregateID])
	e.EventType = d.names.string(v[eventType])
	e.Metadata = t.bytes(v[metadata])
	e.TenantID = t.string(v[tenantID])
	e.CorrelationID = t.string(v[correlationID])
	e.CausationID = t.string(v[causationID])
	e.CreatedAt = parseTime(v[createdAt])
	var err error
	if d.outbox.payloadHex {
		if e.Payload, err = t.hex(v[payload]); err != nil {
			return nil, fmt.Errorf("column %q: %w", d.table.Columns.Payload, err)
		}
	} else {
		e.Payload = t.bytes(v[payload])
	}
	if e.EventVersion, err = parseInt(v[eventVersion], 1); err != nil {
		return nil, fmt.Errorf("column %q: %w", d.table.Columns.EventVersion, err)
	}
	if v[maxRetries] != nil {
		if e.MaxRetries, err = d.parseRetries(v[maxRetries]); err != nil {
			return nil, fmt.Errorf("column %q: %w", d.table.Columns.MaxRetries, err)
		}
	}
	return e, nil
}

// parseRetries gives equal rows the same pointer: nobody may change an event.
func (d *Decoder) parseRetries(b []byte) (*int, error) {
	n, err := parseInt(b, 0)
	if err != nil {
		return nil, err
	}
	if d.retries == nil || *d.retries != n {
		d.retries = new(n)
	}
	return d.retries, nil
}

// parseInt reads what PostgreSQL writes for an integer; absent is the value of NULL.
func parseInt(b []byte, absent int) (int, error) {
	if b == nil {
		return absent, nil
	}
	if len(b) == 1 && '0' <= b[0] && b[0] <= '9' { // nearly always
		return int(b[0] - '0'), nil
	}
	return strconv.Atoi(string(b))
}
