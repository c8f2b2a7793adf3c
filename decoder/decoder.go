// Package decoder turns pgoutput messages (protocol version 1, text format) into the transactions and events that they
// carry. It is pure: no clock, no I/O, no goroutines. Whatever the bytes are, it does not panic, and the memory that it
// allocates is at most a constant times their size.
//
// The format is https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
package decoder

import (
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Table is the outbox as preflight found it.
type Table struct {
	// OID identifies the table. Unlike the name, it stays the same when the table is renamed.
	OID     uint32
	Columns Columns
}

// Columns holds the names of the outbox's columns. An empty name of an optional column says that the table does not have it.
type Columns struct {
	ID            string
	AggregateType string
	AggregateID   string
	EventType     string
	EventVersion  string
	Payload       string
	Metadata      string
	CreatedAt     string
	MaxRetries    string
	TenantID      string
	CorrelationID string
	CausationID   string
}

// DefaultColumns returns the columns of event_outbox.
func DefaultColumns() Columns {
	return Columns{
		ID:            "id",
		AggregateType: "aggregate_type",
		AggregateID:   "aggregate_id",
		EventType:     "event_type",
		EventVersion:  "event_version",
		Payload:       "payload",
		Metadata:      "metadata",
		CreatedAt:     "created_at",
		MaxRetries:    "max_retries",
		TenantID:      "tenant_id",
		CorrelationID: "correlation_id",
		CausationID:   "causation_id",
	}
}

// Kind says what a message is.
type Kind byte

// KindIgnored is for messages that have no meaning for an outbox: updates, deletes, truncations, origins and logical
// messages, and for types, after the decoder has noted their names.
const (
	KindIgnored Kind = iota
	KindBegin
	KindCommit
	KindInsert
	KindRelation
)

// Message is one decoded message.
type Message struct {
	Kind Kind
	// LSN is the start of the transaction's commit record: the same in Begin and Commit.
	LSN pglogrepl.LSN
	// EndLSN (Commit) is the end of the commit record. It is the LSN to confirm once the transaction is settled.
	EndLSN     pglogrepl.LSN
	CommitTime time.Time // Begin, Commit
	Xid        uint32    // Begin
	// Relation (Insert without Event) is the OID of the table that the row belongs to; RelationName tells its name.
	Relation uint32
	// Event (Insert) is nil for a row of another table. Such a row is counted in the index of positions all the same.
	// Event shares no memory with the message's bytes.
	Event *outbox.Event
	// Invalid (Insert) says why the row is no valid event. Event then holds what could be read of it.
	Invalid error
	// Size (Insert) is how many bytes Event holds in memory.
	Size int
}

// Error is returned for a message that cannot be decoded, or for a table that no longer has what an event needs. It
// ends the session, because no row may be skipped.
type Error struct {
	LSN  pglogrepl.LSN // of the transaction's commit record; 0 before the first Begin
	Kind byte          // the message's first byte; 0 if it has none
	Err  error
}

// Error returns a text without the LSN, which the caller reports by itself.
func (e *Error) Error() string {
	if e.Kind == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("pgoutput message %q: %v", e.Kind, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Decoder decodes the messages of one session. It knows the relations that the server has announced in it. Only one
// goroutine may use it. The events that it returns may be used by any goroutine.
type Decoder struct {
	table         Table
	maxEventBytes int
	lsn           pglogrepl.LSN // of the last Begin

	outbox  *relation         // nil until it was announced
	others  map[uint32]string // names of the other tables that were announced, by OID
	types   TypeNames         // announced by the server: types that are not built in
	spans   []span            // of the row that is being decoded
	memory  memory
	names   names
	retries *int // the last max_retries that was not null; events with an equal one share it
}

// New makes a decoder for one session. A row of more than maxEventBytes is no valid event.
func New(t Table, maxEventBytes int) *Decoder {
	return &Decoder{
		table: t, maxEventBytes: maxEventBytes,
		others: make(map[uint32]string), types: make(TypeNames), names: make(names),
	}
}

var errEmpty = errors.New("empty pgoutput message")

// Decode decodes one message, which is the WALData of an XLogData. It keeps nothing of data. It does not check that
// Begin, Insert and Commit come in the right order; the caller does.
func (d *Decoder) Decode(data []byte) (Message, error) {
	if len(data) == 0 {
		return Message{}, &Error{LSN: d.lsn, Err: errEmpty}
	}
	m, err := d.decodeMessage(data[0], data[1:])
	if err != nil {
		return Message{}, &Error{LSN: d.lsn, Kind: data[0], Err: err}
	}
	return m, nil
}

func (d *Decoder) decodeMessage(kind byte, body []byte) (Message, error) {
	switch kind {
	case 'I':
		return d.insert(body)
	case 'B':
		return d.begin(body)
	case 'C':
		return commit(body)
	case 'R':
		return d.relation(body)
	case 'Y':
		return d.typeMessage(body)
	case 'U', 'D', 'T', 'O', 'M':
		return Message{Kind: KindIgnored}, nil
	}
	return Message{}, errors.New("unknown: it is not of protocol version 1")
}

func (d *Decoder) begin(body []byte) (Message, error) {
	r := reader{rest: body}
	m := Message{Kind: KindBegin, LSN: pglogrepl.LSN(r.uint64()), CommitTime: r.time(), Xid: r.uint32()}
	if err := r.end(); err != nil {
		return Message{}, err
	}
	d.lsn = m.LSN
	return m, nil
}

func commit(body []byte) (Message, error) {
	r := reader{rest: body}
	r.byte() // flags, unused
	m := Message{
		Kind: KindCommit, LSN: pglogrepl.LSN(r.uint64()), EndLSN: pglogrepl.LSN(r.uint64()), CommitTime: r.time(),
	}
	return m, r.end()
}
