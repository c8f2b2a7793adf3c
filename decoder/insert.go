package decoder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// span says where the text of a column stands in a message. A start of -1 stands for NULL.
type span struct{ start, end int }

func (d *Decoder) insert(body []byte) (Message, error) {
	ours, err := d.isOurs(body)
	if err != nil {
		return Message{}, err
	}
	if !ours {
		return rowOfAnother(body), nil
	}
	row := body[5:]
	if err := d.split(row); err != nil {
		return Message{}, err
	}
	return d.event(row)
}

// isOurs reports whether a row belongs to the outbox.
func (d *Decoder) isOurs(body []byte) (bool, error) {
	if len(body) < 5 {
		return false, errShort
	}
	oid := binary.BigEndian.Uint32(body)
	if body[4] != 'N' {
		return false, fmt.Errorf("a new row begins with 'N', not %q", body[4])
	}
	if oid == d.table.OID && d.outbox != nil {
		return true, nil
	}
	if _, known := d.others[oid]; !known || oid == d.table.OID {
		return false, fmt.Errorf("row of relation %d, which was never announced", oid)
	}
	return false, nil
}

func rowOfAnother(body []byte) Message {
	return Message{Kind: KindInsert, Relation: binary.BigEndian.Uint32(body)}
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
		return errColumns(n, len(d.spans))
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
			if uint(size) > uint(len(row)-at) { // compared as unsigned, because size may be negative if int has 32 bits
				return errShort
			}
			d.spans[i] = span{at, at + size}
			at += size
		default:
			if err := checkFormat(kind); err != nil {
				return err
			}
			d.spans[i] = span{-1, -1}
		}
	}
	if at != len(row) {
		return errLeftOver(len(row) - at)
	}
	return nil
}

func errColumns(row, relation int) error {
	return fmt.Errorf("a row of %d columns, the relation has %d", row, relation)
}

func errLeftOver(bytes int) error { return fmt.Errorf("%d bytes are left over at its end", bytes) }

// checkFormat accepts the format of a NULL and refuses all others. The caller has handled text already.
func checkFormat(kind byte) error {
	switch kind {
	case 'n':
		return nil
	case 'u':
		return errUnchanged
	case 'b':
		return errBinary
	}
	return fmt.Errorf("unknown format %q of a value", kind)
}

// values holds the texts of an event's fields. They lie in the message, which belongs to the caller. nil stands for
// NULL and for a column that the table does not have.
type values [fieldCount][]byte

// event makes an event of the row that split has read last.
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
	return d.fromValues(&v, 0)
}

// fromValues makes an event of these texts. leftOut is how many bytes of the payload are not among them.
func (d *Decoder) fromValues(v *values, leftOut int) (Message, error) {
	if d.outbox.payloadHex && v[payload] != nil {
		digits, err := cutHexPrefix(v[payload])
		if err != nil {
			return Message{}, d.payloadError(err)
		}
		v[payload] = digits
	}
	n := d.sizes(v)
	n[payload] += leftOut
	size, invalid := d.validate(v, &n)
	var e *outbox.Event
	var err error
	if size <= OwnSize {
		e, err = d.copySmall(v, size)
	} else {
		e, err = d.copyLarge(v)
	}
	if err != nil {
		return Message{}, err
	}
	return Message{Kind: KindInsert, Event: e, Invalid: invalid, Size: eventSize + size}, nil
}

const hexPrefix = `\x`

var errNotHex = errors.New("the bytea is not in hex format: bytea_output must be hex")

func cutHexPrefix(b []byte) (digits []byte, err error) {
	digits, ok := bytes.CutPrefix(b, []byte(hexPrefix))
	if !ok || len(digits)%2 != 0 {
		return nil, errNotHex
	}
	return digits, nil
}

func (d *Decoder) payloadError(err error) error {
	return fmt.Errorf("column %q: %w", d.table.Columns.Payload, err)
}

// sizes holds how many bytes each field of an event takes.
type sizes [fieldCount]int

func (d *Decoder) sizes(v *values) sizes {
	var n sizes
	for f, b := range v {
		n[f] = len(b)
	}
	if d.outbox.payloadHex {
		n[payload] /= 2
	}
	return n
}

func (n *sizes) total() int {
	sum := 0
	for _, size := range n {
		sum += size
	}
	return sum
}

// excess returns how many of the expendable fields have to be given up so that the others take at most limit bytes.
func (n *sizes) excess(limit int) int {
	sum := n.total()
	for i, f := range expendableFields {
		if sum <= limit {
			return i
		}
		sum -= n[f]
	}
	return len(expendableFields)
}

// requiredFields holds the fields that must not be NULL if the table has them.
var requiredFields = [...]field{id, aggregateType, aggregateID, eventType}

// expendableFields holds the fields of a row that is too large, in the order in which they are given up.
var expendableFields = [...]field{payload, metadata, causationID, correlationID, tenantID, eventType, aggregateID, aggregateType, id}

// validate returns an error if a row with fields of these sizes is no valid event. It removes from v the fields for
// which the event is too large, and returns the size of the others.
func (d *Decoder) validate(v *values, n *sizes) (int, error) {
	var invalid []string
	for _, f := range requiredFields {
		if v[f] == nil && d.outbox.column[f] >= 0 {
			invalid = append(invalid, fieldNeeds[f].name+" is null")
		}
	}
	if v[aggregateType] != nil && n[aggregateType] == 0 { // every sink makes a name of it: a topic, a stream, a subject
		invalid = append(invalid, "aggregate_type is empty")
	}
	if v[id] != nil && n[id] == 0 { // possible in a column of the user's own; in the ledger such an event would look like one without an id
		invalid = append(invalid, "id is empty")
	}
	size := n.total()
	if size > d.maxEventBytes {
		invalid = append(invalid, fmt.Sprintf("the event takes %d bytes, more than the %d of max_event_bytes", size, d.maxEventBytes))
		for _, f := range expendableFields[:n.excess(d.maxEventBytes)] {
			v[f] = nil
			size -= n[f]
		}
	}
	if invalid == nil {
		return size, nil
	}
	return size, errors.New(strings.Join(invalid, "; "))
}

// copySmall copies the values, size bytes in all, into an event that shares blocks of memory with other events.
func (d *Decoder) copySmall(v *values, size int) (*outbox.Event, error) {
	// These fields need no room: numbers are parsed, and equal names share one string.
	e, t := d.memory.event(size - len(v[aggregateType]) - len(v[eventType]) - len(v[eventVersion]) - len(v[createdAt]) - len(v[maxRetries]))
	return e, d.fill(v, e, t)
}

// copyLarge copies the values into an event that has memory of its own.
func (d *Decoder) copyLarge(v *values) (*outbox.Event, error) {
	v[metadata] = bytes.Clone(v[metadata])
	if !d.outbox.payloadHex || v[payload] == nil {
		v[payload] = bytes.Clone(v[payload])
		return d.fillLarge(v)
	}
	var err error
	if v[payload], err = decodeHex(v[payload]); err != nil {
		return nil, d.payloadError(err)
	}
	return d.fillLarge(v)
}

// fillLarge makes an event that takes over the payload, which is decoded already, and the metadata. These share no
// memory with the other fields. Otherwise whoever keeps the id of an event would keep its payload in memory as well.
func (d *Decoder) fillLarge(v *values) (*outbox.Event, error) {
	body, meta := v[payload], v[metadata]
	v[payload], v[metadata] = nil, nil
	n := d.sizes(v)
	e := &outbox.Event{}
	if err := d.fill(v, e, make(text, 0, n.total())); err != nil {
		return nil, err
	}
	e.Payload, e.Metadata = slices.Clip(body), slices.Clip(meta)
	return e, nil
}

// fill copies the values into an event. Its texts go into t.
func (d *Decoder) fill(v *values, e *outbox.Event, t text) (err error) {
	e.ID = t.string(v[id])
	e.AggregateType = d.names.string(v[aggregateType])
	e.AggregateID = t.string(v[aggregateID])
	e.EventType = d.names.string(v[eventType])
	e.ContentType = d.outbox.contentType
	e.Metadata = t.bytes(v[metadata])
	e.TenantID = t.string(v[tenantID])
	e.CorrelationID = t.string(v[correlationID])
	e.CausationID = t.string(v[causationID])
	e.CreatedAt = parseTime(v[createdAt])
	if d.outbox.payloadHex {
		if e.Payload, err = t.hex(v[payload]); err != nil {
			return d.payloadError(err)
		}
	} else {
		e.Payload = t.bytes(v[payload])
	}
	if e.EventVersion, err = parseInt(v[eventVersion]); err != nil {
		return fmt.Errorf("column %q: %w", d.table.Columns.EventVersion, err)
	}
	if v[maxRetries] != nil {
		if e.MaxRetries, err = d.parseRetries(v[maxRetries]); err != nil {
			return fmt.Errorf("column %q: %w", d.table.Columns.MaxRetries, err)
		}
	}
	return nil
}

// parseRetries returns the same pointer for rows with equal values. That is safe because nobody may change an event.
func (d *Decoder) parseRetries(b []byte) (*int, error) {
	n, err := parseInt(b)
	if err != nil {
		return nil, err
	}
	if d.retries == nil || *d.retries != n {
		d.retries = new(n)
	}
	return d.retries, nil
}

// parseInt reads an integer as PostgreSQL writes it. For NULL it returns 0.
func parseInt(b []byte) (int, error) {
	if b == nil {
		return 0, nil
	}
	if len(b) == 1 && '0' <= b[0] && b[0] <= '9' { // the usual case, without an allocation
		return int(b[0] - '0'), nil
	}
	return strconv.Atoi(string(b))
}
