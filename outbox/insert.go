package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Insert writes events into event_outbox, which the transaction's search_path finds. They are delivered if and only if
// tx commits, and those of one aggregate in the order in which transactions commit and, within one, insert them.
//
// What an event leaves open is filled in: ID by NewID, EventVersion by 1, Metadata by {}, CreatedAt by the database's
// clock; TenantID, CorrelationID and CausationID by what ctx says (WithTenantID and its like), else they are NULL; a
// trace context (WithTraceParent) joins Metadata. Payload is kept byte for byte. Of Metadata, which
// becomes jsonb, the values are kept, but not white space and the order of keys; of CreatedAt the microseconds; and an
// ID comes out in lower case.
//
// Events are checked before anything is sent. What is wrong with any of them is reported at once, each mistake by
// the event's index and the field, never with its value; then nothing is inserted and tx remains usable. These are
// the rules:
//
//   - AggregateType, AggregateID and EventType are not empty; no text is longer than 1,024 bytes, holds a NUL or is not
//     UTF-8.
//   - Payload is JSON, nested at most 10,000 deep. Metadata, unless empty, is a JSON object of at most 16 MiB that fits
//     jsonb: without \u0000, unpaired surrogates and numbers that are out of all proportion.
//   - ID, unless empty, is a uuid with hyphens, not the nil uuid, and not that of another event of the same call.
//   - EventVersion and MaxRetries are 0 to 2,147,483,647; CreatedAt, unless zero, lies in the years 1 to 9999 (UTC).
//   - An event takes at most 256 MiB. (The connector has a limit of its own, delivery.max_event_bytes, 64 MiB by
//     default.)
//
// Any other error comes from the database or ctx: errors.As finds the *pgconn.PgError. Some of the events may have
// been inserted then, so the caller must roll back, to a savepoint at least.
//
// Up to a thousand events, or about 1 MiB, take one round trip, more take several; without events nothing is sent.
// Nothing of events is changed, or kept once Insert has returned. Insert uses tx, which is for one goroutine at a time.
func Insert(ctx context.Context, tx pgx.Tx, events ...Event) error {
	return writeEvents(ctx, events, func(statement string, args []any) error {
		_, err := tx.Exec(ctx, statement, args...)
		return err
	})
}

// InsertSQL is Insert for database/sql, with pgx/stdlib or lib/pq as its driver. Errors of the database are the
// driver's.
func InsertSQL(ctx context.Context, tx *sql.Tx, events ...Event) error {
	return writeEvents(ctx, events, func(statement string, args []any) error {
		_, err := tx.ExecContext(ctx, statement, args...)
		return err
	})
}

// NewID makes an id such as Insert gives to events without one: a version 7 uuid, which sorts behind every one that
// this process made before, whether compared as text or by PostgreSQL. Call it for an event whose id is needed before
// it is inserted, such as the CausationID of another. It may be called concurrently.
func NewID() string {
	return uuid.Must(uuid.NewV7()).String() // fails only if crypto/rand does, which ends the process before
}

// Both statements take text, which every driver does with a string, whatever it knows of types. They are prepared once a
// connection.
//
// The search_path is the caller's. So that no function or type of others is taken for PostgreSQL's own, all but event_outbox is
// named with its schema, or is syntax (coalesce; unnest of several arrays, which with a schema is no longer that), and there is no
// operator.

// insertRow is for one event, which most transactions have: arrays would take the server twice as long.
const insertRow = `
insert into event_outbox (id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, created_at,
  max_retries, tenant_id, correlation_id, causation_id)
values ($1::pg_catalog.uuid, $2::pg_catalog.text, $3::pg_catalog.text, $4::pg_catalog.text, $5::pg_catalog.int4, $6::pg_catalog.json,
  $7::pg_catalog.jsonb, coalesce($8::pg_catalog.timestamptz, pg_catalog.clock_timestamp()),
  $9::pg_catalog.int4, $10::pg_catalog.text, $11::pg_catalog.text, $12::pg_catalog.text)`

// insertRows takes one array a column, so it is one statement however many the rows.
//
// The numbers of the rows make their order certain and cost nothing, as the planner knows that unnest returns them in
// this order.
const insertRows = `
insert into event_outbox (id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, created_at,
  max_retries, tenant_id, correlation_id, causation_id)
select id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, coalesce(created_at, pg_catalog.clock_timestamp()),
  max_retries, tenant_id, correlation_id, causation_id
from unnest($1::pg_catalog.uuid[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.int4[],
  $6::pg_catalog.json[], $7::pg_catalog.jsonb[], $8::pg_catalog.timestamptz[],
  $9::pg_catalog.int4[], $10::pg_catalog.text[], $11::pg_catalog.text[], $12::pg_catalog.text[]) with ordinality as event (id, aggregate_type, aggregate_id, event_type,
  event_version, payload, metadata, created_at, max_retries, tenant_id, correlation_id, causation_id, n)
order by n`

// A statement ends with the event that reaches either. PostgreSQL holds its rows twice: this keeps them within the
// default work_mem (4 MB), and what we hold beside the events small.
const (
	statementEvents = 1000
	statementBytes  = 1 << 20
)

func writeEvents(ctx context.Context, events []Event, exec func(statement string, args []any) error) error {
	events = fill(ctx, events)
	if err := validate(events); err != nil {
		return err
	}
	if len(events) == 1 {
		return explain(exec(insertRow, events[0].args()))
	}
	for len(events) > 0 {
		n, bytes := 0, 0
		for n < len(events) && n < statementEvents && bytes < statementBytes {
			bytes += events[n].size()
			n++
		}
		if err := exec(insertRows, args(events[:n])); err != nil {
			return explain(err)
		}
		events = events[n:]
	}
	return nil
}

// explain finds the SQLSTATE of any driver's error.
func explain(err error) error {
	if err == nil {
		return nil
	}
	var state interface{ SQLState() string }
	if errors.As(err, &state) && state.SQLState() == undefinedTable {
		return fmt.Errorf(`insert events: %w; put the schema of event_outbox on the search_path, or run "outbox-cdc init"`, err)
	}
	return fmt.Errorf("insert events: %w", err)
}

const undefinedTable = "42P01"

// values are the text of the columns, in the order of the statements. Empty means NULL: a valid event has no empty text.
func (e *Event) values() [columns]string {
	id, metadata, createdAt, maxRetries := e.ID, string(e.Metadata), "", ""
	if id == "" {
		id = NewID()
	}
	if metadata == "" {
		metadata = "{}"
	}
	if !e.CreatedAt.IsZero() {
		createdAt = e.CreatedAt.UTC().Format(timestamp)
	}
	if e.MaxRetries != nil {
		maxRetries = strconv.Itoa(*e.MaxRetries)
	}
	return [columns]string{
		id, e.AggregateType, e.AggregateID, e.EventType, strconv.Itoa(max(1, e.EventVersion)), string(e.Payload), metadata,
		createdAt, maxRetries, e.TenantID, e.CorrelationID, e.CausationID,
	}
}

const columns = 12

// args are the arguments of insertRow.
func (e *Event) args() []any {
	args := make([]any, columns)
	for i, s := range e.values() {
		if s != "" {
			args[i] = s
		}
	}
	return args
}

// args are the arguments of insertRows.
func args(events []Event) []any {
	var arrays [columns]array
	for i := range events {
		for column, s := range events[i].values() {
			if i == 0 { // the others are probably about as long
				arrays[column].Grow(min(len(events)*(len(s)+8), statementBytes))
			}
			arrays[column].add(s)
		}
	}
	args := make([]any, columns)
	for i := range arrays {
		args[i] = arrays[i].literal()
	}
	return args
}

// timestamp is read alike whatever the session's DateStyle and TimeZone.
const timestamp = "2006-01-02T15:04:05.000000Z07:00"

// array is the literal of a PostgreSQL array, up to its closing brace:
// https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
type array struct{ strings.Builder }

// add adds an element of any text; empty means NULL.
func (a *array) add(s string) {
	if a.Len() == 0 {
		a.WriteByte('{')
	} else {
		a.WriteByte(',')
	}
	if s == "" {
		a.WriteString("NULL")
		return
	}
	a.WriteByte('"')
	from := 0
	for i := range len(s) {
		if c := s[i]; c == '"' || c == '\\' {
			a.WriteString(s[from:i])
			a.WriteByte('\\')
			from = i
		}
	}
	a.WriteString(s[from:])
	a.WriteByte('"')
}

func (a *array) literal() string {
	a.WriteByte('}')
	return a.String()
}
