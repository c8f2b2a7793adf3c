package kafka

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// headerColumn says that a column becomes a header.
type headerColumn struct {
	Column string // our name of the column
	Header string
}

// defaultPlacement places the columns that users of Debezium usually place, with the names that Debezium's documentation uses.
const defaultPlacement = "event_type:header:eventType,event_version:header:eventVersion,tenant_id:header:tenantId," +
	"correlation_id:header:correlationId,causation_id:header:causationId"

// columnNames lists the columns that may be placed.
var columnNames = []string{
	"id", "aggregate_type", "aggregate_id", "event_type", "event_version", "tenant_id", "correlation_id", "causation_id", "created_at",
}

// column is an index of columnNames.
type column int

const (
	columnID column = iota
	columnAggregateType
	columnAggregateID
	columnEventType
	columnEventVersion
	columnTenantID
	columnCorrelationID
	columnCausationID
	columnCreatedAt
)

// of returns the value of the column as a text. An empty text stands for NULL.
func (c column) of(e *outbox.Event) string {
	switch c {
	case columnID:
		return e.ID
	case columnAggregateType:
		return e.AggregateType
	case columnAggregateID:
		return e.AggregateID
	case columnEventType:
		return e.EventType
	case columnEventVersion:
		return format.Version(e)
	case columnTenantID:
		return e.TenantID
	case columnCorrelationID:
		return e.CorrelationID
	case columnCausationID:
		return e.CausationID
	default:
		return format.Time(e.CreatedAt)
	}
}

// parsePlacement reads Debezium's table.fields.additional.placement. Its entries are column:place or
// column:place:alias, with commas between them. Without an alias the header has the name of the column. A column has
// our name or that of the user's table, which columns translates into ours. columns may be nil. An empty text places
// nothing.
//
// The place must be header. Debezium has the places envelope and partition too; the error says why there are none here.
// The error joins all mistakes. (For the syntax see EventRouterConfigDefinition of debezium-core. Here spaces around
// the parts are allowed.)
func parsePlacement(text string, columns map[string]string) ([]headerColumn, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var placed []headerColumn
	var errs []error
	for entry := range strings.SplitSeq(text, ",") {
		p, err := parsePlaced(entry, columns)
		if err != nil {
			errs = append(errs, sinks.FieldErrorf("placement", "%q: %w", strings.TrimSpace(entry), err))
			continue
		}
		placed = append(placed, p)
	}
	return placed, errors.Join(errs...)
}

func parsePlaced(entry string, columns map[string]string) (p headerColumn, err error) {
	parts := strings.Split(entry, ":")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return p, errors.New("want column:header or column:header:alias")
	}
	switch strings.ToLower(parts[1]) {
	case "header":
	case "envelope":
		return p, errors.New("the value is the payload, byte for byte, without an envelope; place the column as a header")
	case "partition":
		return p, errors.New("the key chooses the partition, or the events of an aggregate would not stay in order; leave it out, and set the sink's key")
	default:
		return p, fmt.Errorf("%q is no place; write header", parts[1])
	}
	p = headerColumn{Column: parts[0], Header: parts[len(parts)-1]}
	if len(parts) == 2 {
		p.Header = parts[0]
	}
	if ours, ok := columns[p.Column]; ok {
		p.Column = ours
	}
	if !slices.Contains(columnNames, p.Column) {
		return p, fmt.Errorf("%q is none of the columns %s", p.Column, strings.Join(columnNames, ", "))
	}
	return p, nil
}
