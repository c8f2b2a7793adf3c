package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// LoggedTry is a row of outbox_delivery_log.
type LoggedTry struct {
	ID          int64
	EventID     string // "" if it has none
	Processor   int32
	Status      string // delivered, failed, dead or discarded
	Attempt     int
	CompletedAt time.Time
	DurationMS  *float64
	Error       string
	Member      string // of a composite sink, which one accepted it; "" otherwise
	Position    string // LSN:index
}

const tryColumns = `coalesce(event_id::text, ''), processor_id, status, attempt_number, completed_at, duration_ms::float8, coalesce(error_message, ''),
	coalesce(member, ''), concat(commit_lsn, ':', tx_index), id`

func scanTry(row pgx.CollectableRow) (t LoggedTry, err error) {
	err = row.Scan(&t.EventID, &t.Processor, &t.Status, &t.Attempt, &t.CompletedAt, &t.DurationMS, &t.Error, &t.Member, &t.Position, &t.ID)
	return t, err
}

// TryQuery selects tries that were not accepted, the newest first. Processors, Status, BeforeID and Limit are required. Any
// other field that is zero selects all.
type TryQuery struct {
	Processors   []int32
	Status       string    // failed, dead or discarded
	Since, Until time.Time // when they ended; Until is exclusive
	Error        string    // a part of the error, in upper or lower case
	IDs          []string  // event ids
	// Before and BeforeID select what comes after the try that ended then and has this id. If Before is zero, BeforeID is any number.
	Before   time.Time
	BeforeID string
	Limit    int
}

// ReadTries reads the log.
func (c *Client) ReadTries(ctx context.Context, q TryQuery) ([]LoggedTry, error) {
	args := []any{q.Processors, q.Status, timeOrNil(q.Since), timeOrNil(q.Until), q.Error, timeOrNil(q.Before), q.BeforeID, q.Limit}
	byID := ""
	if len(q.IDs) > 0 {
		byID = "and event_id = any ($9::" + c.idType() + "[])"
		args = append(args, q.IDs)
	}
	return c.queryTries(ctx, `select `+tryColumns+` from ledger.outbox_delivery_log
		where processor_id = any ($1) and status = $2 and status <> 'delivered'
			and completed_at >= coalesce($3::timestamptz, '-infinity') and completed_at < coalesce($4::timestamptz, 'infinity')
			and ($5 = '' or position(lower($5) in lower(error_message)) > 0)
			and ($6::timestamptz is null or (completed_at, id) < ($6, $7::text::bigint)) `+byID+`
		order by completed_at desc, id desc limit $8`, args...)
}

// ReadTriesOf reads the newest tries of an event, the newest first.
func (c *Client) ReadTriesOf(ctx context.Context, id string, processors []int32, limit int) ([]LoggedTry, error) {
	return c.queryTries(ctx, `select `+tryColumns+` from ledger.outbox_delivery_log where event_id = $1::text::`+c.idType()+` and processor_id = any ($2)
		order by completed_at desc, id desc limit $3`, id, processors, limit)
}

func (c *Client) queryTries(ctx context.Context, sql string, args ...any) ([]LoggedTry, error) {
	rows, err := c.conn.Query(ctx, c.schema.statement(sql), args...)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanTry)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	return all, nil
}

// Taker says which member of a composite sink has accepted an event.
type Taker struct {
	EventID   string
	Processor int32
	Member    string
}

// ReadTakers returns, for each of these events and each composite sink, the member that has accepted the event last.
func (c *Client) ReadTakers(ctx context.Context, ids []string) ([]Taker, error) {
	rows, err := c.conn.Query(ctx, c.schema.statement(`select distinct on (event_id, processor_id) event_id::text, processor_id, member from ledger.outbox_delivery_log
		where event_id = any ($1::`+c.idType()+`[]) and status = 'delivered' and member is not null order by event_id, processor_id, completed_at desc, id desc`), ids)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Taker, err error) {
		err = row.Scan(&t.EventID, &t.Processor, &t.Member)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	return all, nil
}

// DeliveryStatus is what has become of an event at a processor.
type DeliveryStatus struct {
	Processor int32
	Status    string // parked, dead, delivered or discarded
}

// ReadStatus says what has become of an event at these processors: what outbox_parked says, else the newest row of the log.
func (c *Client) ReadStatus(ctx context.Context, id string, processors []int32) ([]DeliveryStatus, error) {
	rows, err := c.conn.Query(ctx, c.schema.statement(`select processor_id, status from ledger.outbox_parked where event_id = $1::text::`+c.idType()+` and processor_id = any ($2)
		union all
		select * from (select distinct on (processor_id) processor_id, status from ledger.outbox_delivery_log
			where event_id = $1::text::`+c.idType()+` and processor_id = any ($2) and status <> 'failed' order by processor_id, completed_at desc, id desc) l
		where not exists (select from ledger.outbox_parked p where p.event_id = $1::text::`+c.idType()+` and p.processor_id = l.processor_id)`), id, processors)
	if err != nil {
		return nil, fmt.Errorf("look for event %s: %w", id, err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s DeliveryStatus, err error) {
		err = row.Scan(&s.Processor, &s.Status)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for event %s: %w", id, err)
	}
	return all, nil
}

// EventStatus is an event of the outbox, with the worst status that it has at any sink: a row of the view event_outbox_status, or of a
// MappedOutbox.
type EventStatus struct {
	ID, AggregateType, AggregateID, EventType, TenantID string
	CreatedAt                                           time.Time // zero if the outbox does not have it
	Status                                              string    // dead, parked, pending, delivered or discarded
	ProcessedAt                                         *time.Time
	Retries                                             int
	NextRetryAt                                         *time.Time
	Error                                               string
}

const eventColumns = `id::text, aggregate_type, aggregate_id, event_type, coalesce(tenant_id, ''), created_at, status, processed_at,
	coalesce(retry_count, 0), case when isfinite(next_retry_at) and next_retry_at > clock_timestamp() then next_retry_at end, coalesce(error_message, '')`

// EventQuery selects events of the outbox, the newest first. Limit is required. Any other field that is zero selects all.
type EventQuery struct {
	Status       string
	Since, Until time.Time // when they were created; Until is exclusive
	IDs          []string
	// Before and BeforeID select what comes after the event that was created then and has this id.
	Before   time.Time
	BeforeID string
	Limit    int
}

// ReadEvents reads the view event_outbox_status.
func (c *Client) ReadEvents(ctx context.Context, q EventQuery) ([]EventStatus, error) {
	args := []any{q.Status, timeOrNil(q.Since), timeOrNil(q.Until), q.Limit}
	more := ""
	if !q.Before.IsZero() {
		args = append(args, q.Before, q.BeforeID)
		more += " and (created_at, id) < ($5, $6::text::uuid)"
	}
	if len(q.IDs) > 0 {
		args = append(args, q.IDs)
		more += fmt.Sprintf(" and id = any ($%d::uuid[])", len(args))
	}
	return c.queryEvents(ctx, `select `+eventColumns+` from ledger.event_outbox_status
		where ($1 = '' or status = $1) and created_at >= coalesce($2::timestamptz, '-infinity') and created_at < coalesce($3::timestamptz, 'infinity')`+more+`
		order by created_at desc, id desc limit $4`, args...)
}

// ReadEvent returns an event of the outbox, or nil if the outbox has none with this id.
func (c *Client) ReadEvent(ctx context.Context, id string) (*EventStatus, error) {
	found, err := c.queryEvents(ctx, "select "+eventColumns+" from ledger.event_outbox_status where id = $1::text::uuid", id)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], nil
}

func (c *Client) queryEvents(ctx context.Context, sql string, args ...any) ([]EventStatus, error) {
	rows, err := c.conn.Query(ctx, c.schema.statement(sql), args...)
	if err != nil {
		return nil, fmt.Errorf("read event_outbox_status: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanEvent)
	if err != nil {
		return nil, fmt.Errorf("read event_outbox_status: %w", err)
	}
	return all, nil
}

func scanEvent(row pgx.CollectableRow) (e EventStatus, err error) {
	var created *time.Time
	err = row.Scan(&e.ID, &e.AggregateType, &e.AggregateID, &e.EventType, &e.TenantID, &created, &e.Status, &e.ProcessedAt, &e.Retries, &e.NextRetryAt, &e.Error)
	if created != nil {
		e.CreatedAt = *created
	}
	return e, err
}
