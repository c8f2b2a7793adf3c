package decoder

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
)

// Large decodes a row that arrives in pieces, because it does not fit into the stream's buffer. It keeps the columns that the
// event needs, each in memory of its own, and reads on over the others. As soon as the columns read so far are together larger
// than max_event_bytes it gives up those that Decode would give up. So it never keeps more than the largest event, however
// large the row is.
//
// The caller passes all pieces to Write and then calls End, which returns what Decode would return for the whole row. A
// Large is for one goroutine, like its Decoder, which must not be used for another message meanwhile.
type Large struct {
	d    *Decoder
	rest int // how many bytes of the message are still to come

	columns int     // how many the row has
	next    int     // the index of the column that is read next
	head    [5]byte // of the next column: its format and, for a text, its length
	have    int     // bytes of head that have arrived
	left    int     // how many bytes of the present value are still to come
	into    field   // the field that keeps the present value; -1 if it is not kept

	first   [fieldCount]field // by field, the first field that is mapped to the same column: it is read for all of them
	null    [fieldCount]bool
	sizes   sizes
	kept    [fieldCount]text
	dropped int // how many of expendableFields are given up
	hex     hexReader
}

// Large begins to decode a row that arrives in pieces. data holds its first bytes, at least 8, and rest bytes follow.
// If the rest has no meaning, because the row belongs to another table for example, Large returns the finished Message
// and no *Large.
func (d *Decoder) Large(data []byte, rest int) (Message, *Large, error) {
	m, l, err := d.beginLarge(data, rest)
	if err != nil {
		return Message{}, nil, &Error{LSN: d.lsn, Kind: data[0], Err: err}
	}
	return m, l, nil
}

func (d *Decoder) beginLarge(data []byte, rest int) (Message, *Large, error) {
	switch data[0] {
	case 'I':
	case 'B', 'C', 'R', 'Y':
		return Message{}, nil, fmt.Errorf("a message of this kind is never as long as %d bytes", len(data)+rest)
	default: // only the kind matters
		m, err := d.decodeMessage(data[0], nil)
		return m, nil, err
	}
	switch ours, err := d.isOurs(data[1:]); {
	case err != nil:
		return Message{}, nil, err
	case !ours:
		return rowOfAnother(data[1:]), nil, nil
	}
	row := data[6:]
	l := &Large{d: d, rest: len(row) - 2 + rest, columns: int(binary.BigEndian.Uint16(row)), into: -1}
	if l.columns != len(d.spans) {
		return Message{}, nil, errColumns(l.columns, len(d.spans))
	}
	for f, at := range d.outbox.column {
		l.first[f] = field(slices.Index(d.outbox.column[:], at))
	}
	return Message{}, l, l.take(row[2:])
}

// Bytes returns the most memory that the event can take.
func (l *Large) Bytes() int {
	kept := 0
	for _, t := range l.kept {
		kept += cap(t)
	}
	return eventSize + min(kept+l.rest, l.d.maxEventBytes)
}

// Write takes the next bytes of the message. It keeps nothing of p.
func (l *Large) Write(p []byte) error {
	if err := l.take(p); err != nil {
		return &Error{LSN: l.d.lsn, Kind: 'I', Err: err}
	}
	return nil
}

func (l *Large) take(p []byte) error {
	if len(p) > l.rest {
		return errLeftOver(len(p) - l.rest)
	}
	l.rest -= len(p)
	for len(p) > 0 {
		if l.left > 0 {
			n := min(l.left, len(p))
			if err := l.value(p[:n]); err != nil {
				return err
			}
			l.left -= n
			p = p[n:]
			continue
		}
		size := l.headSize()
		n := copy(l.head[l.have:size], p)
		l.have += n
		p = p[n:]
		if l.have == l.headSize() {
			if err := l.column(len(p) + l.rest); err != nil {
				return err
			}
			l.have = 0
		}
	}
	return nil
}

// headSize returns how many bytes stand before the value of the next column, as far as that is known.
func (l *Large) headSize() int {
	if l.have > 0 && l.head[0] == 't' {
		return 5
	}
	return 1
}

// column begins the next column, whose head has arrived. after is how many bytes of the message follow.
func (l *Large) column(after int) error {
	if l.next == l.columns {
		return errLeftOver(l.have + after)
	}
	at := l.next
	l.next++
	l.into = -1
	if kind := l.head[0]; kind != 't' {
		for f, column := range l.d.outbox.column {
			l.null[f] = l.null[f] || column == at
		}
		return checkFormat(kind)
	}
	size := int(binary.BigEndian.Uint32(l.head[1:]))
	if uint(size) > uint(after) {
		return errShort
	}
	l.left = size
	owner := field(slices.Index(l.d.outbox.column[:], at))
	if owner < 0 {
		return nil // no field is mapped to this column
	}
	for f, column := range l.d.outbox.column {
		if column == at {
			l.sizes[f] = size
		}
	}
	if l.d.outbox.payloadHex && l.first[payload] == owner {
		l.sizes[payload] = max(0, size-len(hexPrefix)) / 2
	}
	l.giveUp()
	if !l.wanted(owner) {
		return nil
	}
	l.into = owner
	l.kept[owner] = make(text, 0, size)
	if l.decodesHex() {
		l.kept[owner] = make(text, 0, l.sizes[payload])
	}
	return nil
}

// decodesHex reports whether the present value is decoded as it arrives. Kept as text, it would take twice the memory.
func (l *Large) decodesHex() bool {
	return l.into == payload && l.d.outbox.payloadHex && l.alone(payload)
}

// alone reports whether no other field is mapped to the column of this field.
func (l *Large) alone(f field) bool {
	n := 0
	for _, owner := range l.first {
		if owner == l.first[f] {
			n++
		}
	}
	return n == 1
}

// value takes bytes of the present value. It keeps or drops them.
func (l *Large) value(p []byte) error {
	switch {
	case l.into < 0:
	case l.decodesHex():
		if err := l.hex.read(&l.kept[payload], p); err != nil {
			return l.d.payloadError(err)
		}
	default:
		l.kept[l.into] = append(l.kept[l.into], p...)
	}
	return nil
}

// giveUp frees the fields that Decode would give up if the row had only the columns that have arrived. With further
// columns Decode gives up these fields too.
func (l *Large) giveUp() {
	l.dropped = max(l.dropped, l.sizes.excess(l.d.maxEventBytes))
	for f := range l.kept {
		if l.kept[f] != nil && !l.wanted(field(f)) {
			l.kept[f] = nil
		}
	}
}

// wanted reports whether the column of owner is still needed. Several fields may be mapped to one column, which is
// needed until all of them were given up.
func (l *Large) wanted(owner field) bool {
	for f, first := range l.first {
		if first == owner && !slices.Contains(expendableFields[:l.dropped], field(f)) {
			return true
		}
	}
	return false
}

// End returns the message, once all of it was written.
func (l *Large) End() (Message, error) {
	m, err := l.finish()
	if err != nil {
		return Message{}, &Error{LSN: l.d.lsn, Kind: 'I', Err: err}
	}
	return m, nil
}

func (l *Large) finish() (Message, error) {
	if l.left > 0 || l.have > 0 || l.next < l.columns {
		return Message{}, errShort
	}
	var v values
	for f, at := range l.d.outbox.column {
		if at >= 0 && !l.null[f] {
			v[f] = l.kept[l.first[f]]
			if v[f] == nil {
				v[f] = []byte{} // not nil, which would stand for NULL: the value was given up
			}
		}
	}
	size, invalid := l.d.validate(&v, &l.sizes)
	if l.d.outbox.payloadHex && v[payload] != nil {
		if err := l.decodePayload(&v); err != nil {
			return Message{}, l.d.payloadError(err)
		}
	}
	e, err := l.d.fillLarge(&v)
	if err != nil {
		return Message{}, err
	}
	return Message{Kind: KindInsert, Event: e, Invalid: invalid, Size: eventSize + size}, nil
}

// decodePayload finishes the payload that was decoded as it arrived. If another field is mapped to the same column, it
// decodes the text that was kept.
func (l *Large) decodePayload(v *values) error {
	if l.alone(payload) {
		return l.hex.end()
	}
	digits, err := cutHexPrefix(v[payload])
	if err != nil {
		return err
	}
	v[payload], err = decodeHex(digits)
	return err
}

// hexReader decodes a bytea in PostgreSQL's hex format that arrives in pieces.
type hexReader struct {
	seen int     // how many bytes of its text have arrived
	half [2]byte // holds the first digit of a byte while its second digit is in the next piece
}

// read decodes the hexadecimal digits in p and appends the bytes to t, which must have room for them.
func (h *hexReader) read(t *text, p []byte) error {
	for ; h.seen < len(hexPrefix) && len(p) > 0; p = p[1:] {
		if p[0] != hexPrefix[h.seen] {
			return errNotHex
		}
		h.seen++
	}
	if len(p) > 0 && h.seen%2 == 1 {
		h.half[1] = p[0]
		h.seen++
		p = p[1:]
		if err := t.appendHex(h.half[:]); err != nil {
			return err
		}
	}
	h.seen += len(p)
	if len(p)%2 == 1 {
		h.half[0] = p[len(p)-1]
		p = p[:len(p)-1]
	}
	return t.appendHex(p)
}

func (h *hexReader) end() error {
	if h.seen < len(hexPrefix) || h.seen%2 == 1 {
		return errNotHex
	}
	return nil
}

func decodeHex(digits []byte) ([]byte, error) {
	b := make([]byte, hex.DecodedLen(len(digits)))
	_, err := hex.Decode(b, digits)
	return b, err
}
