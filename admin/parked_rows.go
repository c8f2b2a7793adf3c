package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// ParkedRow is a row of outbox_parked: an event that the connector owes to a sink, or that it has given up on. The latter is
// called a dead letter.
type ParkedRow struct {
	Sink string `json:"sink"`
	// Position is LSN:index. Rows of an aggregate are delivered in this order.
	Position string `json:"position"`
	Status   string `json:"status"` // parked or dead
	// Event is the event without its payload.
	Event    ledger.StoredEvent `json:"event"`
	Attempts int                `json:"attempts"` // tries that the sink has refused
	Tries    int                `json:"tries"`    // all tries, also those that found the sink away
	ParkedAt time.Time          `json:"parked_at"`
	FirstTry *time.Time         `json:"first_try_at,omitempty"`
	// NextAttempt is when the row is due. It is nil if the row waits for its turn or for another row, and for a dead letter.
	NextAttempt *time.Time `json:"next_attempt_at,omitempty"`
	// Blocks says that this dead letter holds its aggregate until a person acts.
	Blocks bool   `json:"blocks,omitempty"`
	Error  string `json:"error,omitempty"`
	Replay bool   `json:"replay,omitempty"`
	// Waits says in words what the row waits for. Behind is the event that it waits behind, if any.
	Waits  string `json:"waits,omitempty"`
	Behind string `json:"behind,omitempty"`
	// Payload is set if the payload was asked for and is JSON. A payload that is not JSON is in PayloadBase64.
	Payload       json.RawMessage `json:"payload,omitempty"`
	PayloadBase64 []byte          `json:"payload_base64,omitempty"`

	key           checkpoint.Key
	aggregateHash int64
}

// How many rows one statement reads. A single payload may have megabytes, so a page with payloads is small.
const (
	pageRows        = 500
	pagePayloadRows = 20
)

// parkedQuery selects rows of outbox_parked.
type parkedQuery struct {
	status     string // parked or dead
	filter     Filter
	processors []int32
	after      checkpoint.Key // only rows after this key; the zero key selects all
	payload    bool           // read the payloads as well
}

// eachParkedRow calls f with the rows that q selects, in the order of processor and position, until f returns false. It reads
// the rows in pages, and holds no transaction and no cursor open between two pages, so f may take its time.
func (l *ledgerConn) eachParkedRow(ctx context.Context, q parkedQuery, f func(*ParkedRow) (more bool, err error)) error {
	if err := l.checkIDs(q.filter.IDs); err != nil {
		return err
	}
	rows := pageRows
	if q.payload {
		rows = pagePayloadRows
	}
	for _, id := range q.processors {
		from := checkpoint.MinPosition
		switch {
		case id < q.after.Processor:
			continue
		case id == q.after.Processor && q.after != checkpoint.Key{}:
			from = q.after.Position
		}
		for {
			page, err := l.readPage(ctx, q, id, from, rows)
			if err != nil {
				return fmt.Errorf("read outbox_parked: %w", err)
			}
			for _, p := range page {
				e := &p.Event
				if !q.filter.matches(e.EventType, e.AggregateType, e.AggregateID, e.TenantID) {
					continue
				}
				if more, err := f(p); err != nil || !more {
					return err
				}
			}
			if len(page) < rows {
				break
			}
			from = page[len(page)-1].key.Position
		}
	}
	return nil
}

const selectParked = `select p.commit_lsn, p.tx_index, p.event_id::text, p.agg_hash, p.status, p.attempts, p.tries, p.parked_at, p.tried_at, p.next_attempt_at,
		coalesce(p.error_message, ''), p.replay, p.event, case when $8 then p.payload end, clock_timestamp()
	from %s p
	where p.processor_id = $1 and (p.commit_lsn, p.tx_index) > ($2, $3) and p.status = $4
		and p.parked_at >= coalesce($5::timestamptz, '-infinity') and p.parked_at < coalesce($6::timestamptz, 'infinity')
		and ($7 = '' or position(lower($7) in lower(p.error_message)) > 0)
	order by p.commit_lsn, p.tx_index limit $9`

// readPage reads the next rows of one processor after the position from. If the filter has ids, the statement looks these up
// first; otherwise it walks the primary key.
func (l *ledgerConn) readPage(ctx context.Context, q parkedQuery, processor int32, from checkpoint.Position, limit int) ([]*ParkedRow, error) {
	f := q.filter
	args := []any{processor, from.LSN, from.Index, q.status, timeOrNull(f.Since), timeOrNull(f.Until), f.Error, q.payload, limit}
	table := "ledger.outbox_parked"
	if len(f.IDs) > 0 {
		// Without "offset 0" the planner would merge the subquery and walk the primary key.
		table = "(select * from ledger.outbox_parked where event_id = any ($10::" + l.idType() + "[]) offset 0)"
		args = append(args, f.IDs)
	}
	rows, err := l.conn.Query(ctx, l.sql(fmt.Sprintf(selectParked, table)), args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*ParkedRow, error) { return l.scanParkedRow(row, processor) })
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (l *ledgerConn) scanParkedRow(row pgx.CollectableRow, processor int32) (*ParkedRow, error) {
	p := &ParkedRow{Sink: l.sinkName(processor), key: checkpoint.Key{Processor: processor}}
	var id *string
	var next pgtype.Timestamptz
	var event, payload []byte
	var now time.Time
	err := row.Scan(&p.key.Position.LSN, &p.key.Position.Index, &id, &p.aggregateHash, &p.Status, &p.Attempts, &p.Tries, &p.ParkedAt, &p.FirstTry, &next,
		&p.Error, &p.Replay, &event, &payload, &now)
	if err != nil {
		return nil, err
	}
	p.Position = fmt.Sprintf("%s:%d", p.key.Position.LSN, p.key.Position.Index)
	if err := json.Unmarshal(event, &p.Event); err != nil {
		return nil, fmt.Errorf("decode the event at %s: %w", p.Position, err)
	}
	if id != nil {
		p.Event.ID = *id
	}
	if next.Valid && next.InfinityModifier == pgtype.Finite {
		p.NextAttempt = &next.Time
	}
	p.Blocks = next.InfinityModifier == pgtype.Infinity
	switch {
	case json.Valid(payload):
		p.Payload = payload
	case payload != nil:
		p.PayloadBase64 = payload
	}
	p.Waits = l.waitsFor(p, now)
	return p, nil
}

// waitsFor says what a row waits for, as far as the row itself and the state of its sink tell. now is the server's time.
func (l *ledgerConn) waitsFor(p *ParkedRow, now time.Time) string {
	switch {
	case p.Status == "dead" && p.Blocks:
		return "dead; its aggregate waits for a person"
	case p.Status == "dead":
		return ""
	case l.isPaused(p.key.Processor):
		return "the sink is paused"
	case p.NextAttempt == nil:
		return "its turn"
	case p.NextAttempt.After(now):
		return "its next attempt, in " + p.NextAttempt.Sub(now).Round(time.Second).String()
	}
	return "its next attempt, which is due"
}

// findHolders sets Behind and Waits of those rows that an earlier row of their aggregate holds.
func (l *ledgerConn) findHolders(ctx context.Context, page []*ParkedRow) error {
	var processors []int32
	var hashes, indexes []int64
	var lsns []string
	var untried []*ParkedRow
	for _, p := range page {
		if p.Status != "parked" || p.NextAttempt != nil {
			continue
		}
		untried = append(untried, p)
		processors, hashes = append(processors, p.key.Processor), append(hashes, p.aggregateHash)
		lsns, indexes = append(lsns, p.key.Position.LSN.String()), append(indexes, p.key.Position.Index)
	}
	if untried == nil {
		return nil
	}
	rows, err := l.conn.Query(ctx, l.sql(`select c.n, coalesce(h.event_id::text, concat(h.commit_lsn, ':', h.tx_index)), h.status
		from unnest($1::int[], $2::bigint[], $3::text[]::pg_lsn[], $4::bigint[]) with ordinality c (processor_id, agg_hash, commit_lsn, tx_index, n),
			lateral (select event_id, commit_lsn, tx_index, status from ledger.outbox_parked p
				where p.processor_id = c.processor_id and p.agg_hash = c.agg_hash and p.next_attempt_at is not null
					and (p.commit_lsn, p.tx_index) < (c.commit_lsn, c.tx_index)
				order by p.commit_lsn, p.tx_index limit 1) h`), processors, hashes, lsns, indexes)
	if err != nil {
		return fmt.Errorf("look for what events wait behind: %w", err)
	}
	var n int64
	var id, status string
	_, err = pgx.ForEachRow(rows, []any{&n, &id, &status}, func() error {
		p := untried[n-1]
		p.Behind = id
		if status == "dead" {
			p.Waits = "behind the dead letter " + id
		} else if !l.isPaused(p.key.Processor) {
			p.Waits = "behind " + id
		}
		return nil
	})
	return err
}
