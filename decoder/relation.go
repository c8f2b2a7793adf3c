package decoder

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"
)

// field is a field of an event. A column of the outbox may hold it.
type field int

const (
	id field = iota
	aggregateType
	aggregateID
	eventType
	eventVersion
	payload
	metadata
	createdAt
	maxRetries
	tenantID
	correlationID
	causationID
	fieldCount
)

// firstUserOID is the first OID that PostgreSQL gives to a type that is not built in: an enum, a domain, a type of an
// extension.
const firstUserOID = 16384

var (
	// Names may be of these types. Their value is the text that PostgreSQL writes.
	nameTypes = []uint32{
		pgtype.TextOID, pgtype.VarcharOID, pgtype.BPCharOID, pgtype.NameOID, pgtype.UUIDOID,
		pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID,
	}
	intTypes  = []uint32{pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID}
	jsonTypes = []uint32{pgtype.JSONOID, pgtype.JSONBOID, pgtype.TextOID, pgtype.VarcharOID}
	timeTypes = []uint32{pgtype.TimestamptzOID, pgtype.TimestampOID}
)

// fieldNeeds says, for each field, what its column must be like.
var fieldNeeds = [fieldCount]struct {
	name     string
	always   bool // needed even if the configuration names no column
	optional bool // a table may lack it, if the configuration says so
	types    []uint32
	userType bool // a type that is not built in is accepted too
}{
	id:            {name: "id", always: true}, // any type
	aggregateType: {name: "aggregate_type", always: true, types: nameTypes, userType: true},
	aggregateID:   {name: "aggregate_id", always: true, types: nameTypes, userType: true},
	eventType:     {name: "event_type", types: nameTypes, userType: true},
	eventVersion:  {name: "event_version", optional: true, types: intTypes},
	payload:       {name: "payload", always: true, types: append(slices.Clone(jsonTypes), pgtype.ByteaOID)},
	metadata:      {name: "metadata", optional: true, types: jsonTypes},
	createdAt:     {name: "created_at", optional: true, types: timeTypes},
	maxRetries:    {name: "max_retries", optional: true, types: intTypes},
	tenantID:      {name: "tenant_id", optional: true, types: nameTypes, userType: true},
	correlationID: {name: "correlation_id", optional: true, types: nameTypes, userType: true},
	causationID:   {name: "causation_id", optional: true, types: nameTypes, userType: true},
}

func (c *Columns) names() [fieldCount]string {
	return [fieldCount]string{
		id:            c.ID,
		aggregateType: c.AggregateType,
		aggregateID:   c.AggregateID,
		eventType:     c.EventType,
		eventVersion:  c.EventVersion,
		payload:       c.Payload,
		metadata:      c.Metadata,
		createdAt:     c.CreatedAt,
		maxRetries:    c.MaxRetries,
		tenantID:      c.TenantID,
		correlationID: c.CorrelationID,
		causationID:   c.CausationID,
	}
}

// relation is the outbox as the server has announced it last. The server does so before the first row, and again after
// each change of the table.
type relation struct {
	column     [fieldCount]int // the place of the field in a row; -1 if the table does not have it
	payloadHex bool            // the payload is bytea
	// contentType is what outbox.Event.ContentType is for all events of this relation.
	contentType string
}

// contentTypes holds the media types of payloads by the types of their columns. It has none for json and jsonb.
var contentTypes = map[uint32]string{
	pgtype.TextOID: textType, pgtype.VarcharOID: textType, pgtype.ByteaOID: "application/octet-stream",
}

const textType = "text/plain; charset=utf-8" // the server sends UTF-8, whatever the encoding of the database

type column struct {
	name string
	oid  uint32
}

func (d *Decoder) relation(body []byte) (Message, error) {
	r := reader{rest: body}
	oid := r.uint32()
	schema, name := r.string(), r.string()
	r.byte() // replica identity; inserts do not use it
	var columns []column
	for n := int(r.uint16()); n > 0 && !r.short; n-- {
		r.byte() // flags: whether the column is part of the replica identity
		c := column{name: r.string(), oid: r.uint32()}
		r.uint32() // type modifier
		columns = append(columns, c)
	}
	if err := r.end(); err != nil {
		return Message{}, err
	}
	if oid != d.table.OID {
		d.others[oid] = schema + "." + name
		return Message{Kind: KindRelation}, nil
	}
	d.outbox = nil // if the relation is not understood, no row of it can be decoded
	rel, err := d.table.Columns.find(columns, d.types)
	if err != nil {
		return Message{}, fmt.Errorf("the schema of %s.%s drifted: %w; correct source.columns if the table is so now, "+
			"else undo the change until the rows that were written then are delivered", schema, name, err)
	}
	d.outbox = rel
	d.spans = make([]span, len(columns))
	return Message{Kind: KindRelation}, nil
}

// RelationName returns the name (schema.table) under which the server announced another table than the outbox.
func (d *Decoder) RelationName(oid uint32) string {
	if name, ok := d.others[oid]; ok {
		return name
	}
	return fmt.Sprintf("relation %d", oid)
}

// find looks for the fields of an event in columns. Its error names all columns that are missing or of a wrong type.
func (c *Columns) find(columns []column, types TypeNames) (*relation, error) {
	rel := &relation{}
	var lost, optional []string
	missing := false
	for f, name := range c.names() {
		rel.column[f] = -1
		need := &fieldNeeds[f]
		if name == "" {
			if need.always {
				lost = append(lost, fmt.Sprintf("no column is named for %s, which every event needs", need.name))
			}
			continue
		}
		at := slices.IndexFunc(columns, func(c column) bool { return c.name == name })
		if at < 0 {
			lost = append(lost, fmt.Sprintf("column %q (%s) is missing", name, need.name))
			if need.optional {
				optional = append(optional, need.name)
			}
			missing = true
			continue
		}
		oid := columns[at].oid
		if need.types != nil && !slices.Contains(need.types, oid) && (!need.userType || oid < firstUserOID) {
			lost = append(lost, fmt.Sprintf("column %q (%s) is of type %s, it must be %s", name, need.name, types.name(oid), describeTypes(need.types)))
			continue
		}
		rel.column[f] = at
		if field(f) == payload {
			rel.payloadHex, rel.contentType = oid == pgtype.ByteaOID, contentTypes[oid]
		}
	}
	if missing {
		lost = append(lost, "it has "+list(columns))
	}
	if optional != nil {
		lost = append(lost, `where it has none, write "" for `+strings.Join(optional, ", "))
	}
	if lost != nil {
		return nil, errors.New(strings.Join(lost, "; "))
	}
	return rel, nil
}

func list(columns []column) string {
	if len(columns) == 0 {
		return "no columns"
	}
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.name
	}
	return strings.Join(names, ", ")
}
