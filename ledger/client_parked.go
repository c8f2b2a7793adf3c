package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// ParkedPageQuery selects rows of outbox_parked of one processor, in the order of their positions. Processor, After, Status
// and Limit are required. Any other field that is zero selects all.
type ParkedPageQuery struct {
	Processor    int32
	After        checkpoint.Position // only rows after this position; checkpoint.MinPosition selects all
	Status       string              // parked or dead
	Since, Until time.Time           // when they were parked; Until is exclusive
	Error        string              // a part of the error, in upper or lower case
	IDs          []string            // event ids
	WithPayload  bool
	Limit        int
}

// ParkedRow is a row of outbox_parked as a person sees it. Times are by PostgreSQL's clock.
type ParkedRow struct {
	Key           checkpoint.Key
	AggregateHash int64
	Status        string // parked or dead
	Event         StoredEvent
	Payload       []byte // if it was asked for
	Attempts      int    // tries that were refused
	Tries         int    // all tries
	ParkedAt      time.Time
	TriedAt       *time.Time // the first try
	NextAttempt   *time.Time // nil: untried, or dead
	Blocks        bool       // it is dead, and holds its aggregate
	Error         string
	Replay        bool
	Now           time.Time // when the row was read
}

const selectParked = `select p.commit_lsn, p.tx_index, p.event_id::text, p.agg_hash, p.status, p.attempts, p.tries, p.parked_at, p.tried_at, p.next_attempt_at,
		coalesce(p.error_message, ''), p.replay, p.event, case when $8 then p.payload end, clock_timestamp()
	from %s p
	where p.processor_id = $1 and (p.commit_lsn, p.tx_index) > ($2, $3) and p.status = $4
		and p.parked_at >= coalesce($5::timestamptz, '-infinity') and p.parked_at < coalesce($6::timestamptz, 'infinity')
		and ($7 = '' or position(lower($7) in lower(p.error_message)) > 0)
	order by p.commit_lsn, p.tx_index limit $9`

// ReadParkedPage reads rows of outbox_parked. If the page has ids, the statement looks these up first; otherwise it walks the
// primary key.
func (c *Client) ReadParkedPage(ctx context.Context, q ParkedPageQuery) ([]*ParkedRow, error) {
	args := []any{q.Processor, q.After.LSN, q.After.Index, q.Status, timeOrNil(q.Since), timeOrNil(q.Until), q.Error, q.WithPayload, q.Limit}
	table := "ledger.outbox_parked"
	if len(q.IDs) > 0 {
		// Without "offset 0" the planner would merge the subquery and walk the primary key.
		table = "(select * from ledger.outbox_parked where event_id = any ($10::" + c.idType() + "[]) offset 0)"
		args = append(args, q.IDs)
	}
	rows, err := c.conn.Query(ctx, c.schema.statement(fmt.Sprintf(selectParked, table)), args...)
	if err == nil {
		var all []*ParkedRow
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*ParkedRow, error) { return scanDetails(row, q.Processor) })
		if err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read outbox_parked: %w", err)
}

func scanDetails(row pgx.CollectableRow, processor int32) (*ParkedRow, error) {
	d := &ParkedRow{Key: checkpoint.Key{Processor: processor}}
	var id *string
	var next pgtype.Timestamptz
	var event []byte
	err := row.Scan(&d.Key.Position.LSN, &d.Key.Position.Index, &id, &d.AggregateHash, &d.Status, &d.Attempts, &d.Tries, &d.ParkedAt, &d.TriedAt, &next,
		&d.Error, &d.Replay, &event, &d.Payload, &d.Now)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(event, &d.Event); err != nil {
		return nil, fmt.Errorf("decode the event at %s:%d: %w", d.Key.Position.LSN, d.Key.Position.Index, err)
	}
	if id != nil {
		d.Event.ID = *id
	}
	if next.Valid && next.InfinityModifier == pgtype.Finite {
		d.NextAttempt = &next.Time
	}
	d.Blocks = next.InfinityModifier == pgtype.Infinity
	return d, nil
}

// Holder is the tried row that an untried row of the same aggregate waits behind.
type Holder struct {
	EventID string // or LSN:index, if the event has no id
	Status  string // parked or dead
}

// Holders returns the holder of each of these rows, or nil for a row that no earlier row holds.
func (c *Client) Holders(ctx context.Context, untried []*ParkedRow) ([]*Holder, error) {
	if len(untried) == 0 {
		return nil, nil
	}
	var processors []int32
	var hashes, indexes []int64
	var lsns []string
	for _, d := range untried {
		processors, hashes = append(processors, d.Key.Processor), append(hashes, d.AggregateHash)
		lsns, indexes = append(lsns, d.Key.Position.LSN.String()), append(indexes, d.Key.Position.Index)
	}
	rows, err := c.conn.Query(ctx, c.schema.statement(`select c.n, coalesce(h.event_id::text, concat(h.commit_lsn, ':', h.tx_index)), h.status
		from unnest($1::int[], $2::bigint[], $3::text[]::pg_lsn[], $4::bigint[]) with ordinality c (processor_id, agg_hash, commit_lsn, tx_index, n),
			lateral (select event_id, commit_lsn, tx_index, status from ledger.outbox_parked p
				where p.processor_id = c.processor_id and p.agg_hash = c.agg_hash and p.next_attempt_at is not null
					and (p.commit_lsn, p.tx_index) < (c.commit_lsn, c.tx_index)
				order by p.commit_lsn, p.tx_index limit 1) h`), processors, hashes, lsns, indexes)
	if err != nil {
		return nil, fmt.Errorf("look for what events wait behind: %w", err)
	}
	holders := make([]*Holder, len(untried))
	var n int64
	var h Holder
	_, err = pgx.ForEachRow(rows, []any{&n, &h.EventID, &h.Status}, func() error {
		holder := h
		holders[n-1] = &holder
		return nil
	})
	return holders, err
}

// CountStatus counts the rows of outbox_parked of these processors that have this status.
func (c *Client) CountStatus(ctx context.Context, processors []int32, status string) (n int, err error) {
	err = c.conn.QueryRow(ctx, c.schema.statement("select count(*) from ledger.outbox_parked where processor_id = any ($1) and status = $2"), processors, status).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count rows: %w", err)
	}
	return n, nil
}

// timeOrNil turns the zero time into null.
func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
