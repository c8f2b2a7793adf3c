// Package decoder turns pgoutput messages (protocol version 1, text format) into the transactions and events that they
// carry. It is pure: no clock, no I/O, no goroutines; and whatever the bytes, it neither panics nor asks for more memory
// than they take up themselves, times a constant.
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
	// OID, unlike the name, stays when the table is renamed.
	OID     uint32
	Columns Columns
}

// Columns are the names of the outbox's columns. An optional one that is empty does not exist.
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

// DefaultColumns are those of event_outbox.
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

// Messages that have no meaning for an outbox are ignored: updates, deletes, truncations, origins and logical messages.
// So are types, after the decoder has noted their names.
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
	// EndLSN (Commit) is the end of the commit record: what may be confirmed.
	EndLSN     pglogrepl.LSN
	CommitTime time.Time // Begin, Commit
	Xid        uint32    // Begin
	// Relation (Insert without Event) is the OID of the table that the row belongs to; RelationName tells its name.
	Relation uint32
	// Event (Insert) is nil for a row of another table, which still counts for the index. It shares no memory with the
	// message's bytes.
	Event *outbox.Event
	// Invalid (Insert) says why the row is no valid event; Event is then filled as far as possible.
	Invalid error
	// Size (Insert) is how many bytes Event holds in memory.
	Size int
}

// Error is a message that cannot be decoded, or a schema that no longer has what an event needs. It ends the session,
// as the rows behind it cannot be skipped.
type Error struct {
	LSN  pglogrepl.LSN // of the transaction's commit record; 0 before the first Begin
	Kind byte          // the message's first byte; 0 if it has none
	Err  error
}

// Error leaves the LSN to whoever reports it.
func (e *Error) Error() string {
	if e.Kind == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("pgoutput message %q: %v", e.Kind, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Decoder decodes the messages of one session: it knows the relations that were announced in it. It is for one
// goroutine; the events that it returns are not bound to it.
type Decoder struct {
	table         Table
	maxEventBytes int
	lsn           pglogrepl.LSN // of the last Begin

	outbox  *relation         // nil until it was announced
	others  map[uint32]string // names of the other tables that were announced, by OID
	types   TypeNames         // announced by the server: those that it does not bring along
	spans   []span            // of the row at hand
	memory  memory
	names   names
	retries *int // the last max_retries that was not null: mostly the next one is equal
}

// New makes a decoder for one session. A row of more than maxEventBytes is no valid event.
func New(t Table, maxEventBytes int) *Decoder {
	return &Decoder{
		table: t, maxEventBytes: maxEventBytes,
		others: make(map[uint32]string), types: make(TypeNames), names: make(names),
	}
}

var errEmpty = errors.New("empty pgoutput message")

// Decode decodes one message, which is the WALData of an XLogData. It keeps nothing of data. That Begin, Insert and
// Commit come in order is for the caller to see to.
func (d *Decoder) Decode(data []byte) (Message, error) {
	if len(data) == 0 {
		return Message{}, &Error{LSN: d.lsn, Err: errEmpty}
	}
	m, err := d.decode(data[0], data[1:])
	if err != nil {
		return Message{}, &Error{LSN: d.lsn, Kind: data[0], Err: err}
	}
	return m, nil
}

func (d *Decoder) decode(kind byte, body []byte) (Message, error) {
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
