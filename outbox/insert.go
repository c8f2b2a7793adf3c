package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

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
	return insert(ctx, events, func(columns []any) error {
		_, err := tx.Exec(ctx, insertRows, columns...)
		return err
	})
}

// InsertSQL is Insert for database/sql, with pgx/stdlib or lib/pq as its driver. Errors of the database are the
// driver's.
func InsertSQL(ctx context.Context, tx *sql.Tx, events ...Event) error {
	return insert(ctx, events, func(columns []any) error {
		_, err := tx.ExecContext(ctx, insertRows, columns...)
		return err
	})
}

// NewID makes an id such as Insert gives to events without one: a version 7 uuid, which sorts behind every one that
// this process made before, whether compared as text or by PostgreSQL. Call it for an event whose id is needed before
// it is inserted, such as the CausationID of another. It may be called concurrently.
func NewID() string {
	return uuid.Must(uuid.NewV7()).String() // fails only if crypto/rand does, which ends the process before
}

// insertRows takes one array a column, so it is one statement however many the rows: prepared once a connection. The
// arrays are sent as text, which every driver does with a string, whatever it knows of arrays.
//
// The numbers of the rows make their order certain and cost nothing, as the planner knows that unnest returns them in
// this order.
const insertRows = `
insert into event_outbox (id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, created_at,
  max_retries, tenant_id, correlation_id, causation_id)
select id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, coalesce(created_at, clock_timestamp()),
  max_retries, tenant_id, correlation_id, causation_id
from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int[], $6::json[], $7::jsonb[], $8::timestamptz[],
  $9::int[], $10::text[], $11::text[], $12::text[]) with ordinality as event (id, aggregate_type, aggregate_id, event_type,
  event_version, payload, metadata, created_at, max_retries, tenant_id, correlation_id, causation_id, n)
order by n`

// A statement ends with the event that reaches either. PostgreSQL holds its rows twice: this keeps them within the
// default work_mem (4 MB), and what we hold beside the events small.
const (
	statementEvents = 1000
	statementBytes  = 1 << 20
)

func insert(ctx context.Context, events []Event, exec func(columns []any) error) error {
	events = fill(ctx, events)
	if err := validate(events); err != nil {
		return err
	}
	var r rows
	for i := range events {
		r.add(&events[i])
		if i < len(events)-1 && r.n < statementEvents && r.bytes < statementBytes {
			continue
		}
		if err := exec(r.columns()); err != nil {
			return explain(err)
		}
		r = rows{}
	}
	return nil
}

// explain finds the SQLSTATE of any driver's error.
func explain(err error) error {
	var state interface{ SQLState() string }
	if errors.As(err, &state) && state.SQLState() == undefinedTable {
		return fmt.Errorf(`insert events: %w; put the schema of event_outbox on the search_path, or run "outbox-cdc init"`, err)
	}
	return fmt.Errorf("insert events: %w", err)
}

const undefinedTable = "42P01"

// rows are the events of one statement, column by column.
type rows struct {
	n, bytes int

	id, aggregateType, aggregateID, eventType, eventVersion, payload, metadata, createdAt, maxRetries,
	tenantID, correlationID, causationID array
}

func (r *rows) add(e *Event) {
	r.n++
	r.bytes += e.size()
	if e.ID == "" {
		r.id.plain(NewID())
	} else {
		r.id.plain(e.ID)
	}
	quote(&r.aggregateType, e.AggregateType)
	quote(&r.aggregateID, e.AggregateID)
	quote(&r.eventType, e.EventType)
	r.eventVersion.plain(strconv.Itoa(max(1, e.EventVersion)))
	quote(&r.payload, e.Payload)
	if len(e.Metadata) == 0 {
		quote(&r.metadata, "{}")
	} else {
		quote(&r.metadata, e.Metadata)
	}
	if e.CreatedAt.IsZero() {
		r.createdAt.plain(null)
	} else {
		r.createdAt.plain(e.CreatedAt.UTC().Format(timestamp))
	}
	if e.MaxRetries == nil {
		r.maxRetries.plain(null)
	} else {
		r.maxRetries.plain(strconv.Itoa(*e.MaxRetries))
	}
	r.tenantID.optional(e.TenantID)
	r.correlationID.optional(e.CorrelationID)
	r.causationID.optional(e.CausationID)
}

// columns are the arguments of insertRows.
func (r *rows) columns() []any {
	return []any{
		r.id.literal(), r.aggregateType.literal(), r.aggregateID.literal(), r.eventType.literal(), r.eventVersion.literal(),
		r.payload.literal(), r.metadata.literal(), r.createdAt.literal(), r.maxRetries.literal(),
		r.tenantID.literal(), r.correlationID.literal(), r.causationID.literal(),
	}
}

// timestamp is read alike whatever the session's DateStyle and TimeZone.
const timestamp = "2006-01-02T15:04:05.000000Z07:00"

// array is the literal of a PostgreSQL array, up to its closing brace:
// https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
type array []byte

const null = "NULL"

// plain adds an element that needs no quotes: a number, a uuid, a time, NULL.
func (a *array) plain(s string) {
	a.next()
	*a = append(*a, s...)
}

func (a *array) optional(s string) {
	if s == "" {
		a.plain(null)
	} else {
		quote(a, s)
	}
}

// quote adds an element of any bytes. (A method cannot have a type parameter.)
func quote[T ~string | ~[]byte](a *array, s T) {
	a.next()
	b := append(*a, '"')
	from := 0
	for i := range len(s) {
		if c := s[i]; c == '"' || c == '\\' {
			b = append(b, s[from:i]...)
			b = append(b, '\\')
			from = i
		}
	}
	b = append(b, s[from:]...)
	*a = append(b, '"')
}

func (a *array) next() {
	if len(*a) == 0 {
		*a = append(*a, '{')
	} else {
		*a = append(*a, ',')
	}
}

func (a array) literal() string { return string(append(a, '}')) }
