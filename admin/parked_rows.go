package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/internal/glob"
)

const (
	// How many rows are read at once: without payloads, and with them, of which one may have megabytes.
	pageRows        = 500
	pagePayloadRows = 20
)

// Filter picks events. What is empty picks all.
type Filter struct {
	Sinks []string // by name; NoSink for what belongs to none
	Type  string   // of the event; * and ? as in routes
	// Aggregate is type/id, or the type alone.
	Aggregate string
	Tenant    string
	Error     string // a part of the error, in any case
	// Since and Until (exclusive) bound when the row was parked.
	Since, Until time.Time
	IDs          []string
}

// Empty says whether it picks all.
func (f Filter) Empty() bool {
	return len(f.Sinks) == 0 && f.Type == "" && f.Aggregate == "" && f.Tenant == "" && f.Error == "" && f.Since.IsZero() && f.Until.IsZero() && len(f.IDs) == 0
}

// String names what it picks, for an error.
func (f Filter) String() string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+" "+strconv.Quote(value))
		}
	}
	add("sink", strings.Join(f.Sinks, ", "))
	add("type", f.Type)
	add("aggregate", f.Aggregate)
	add("tenant", f.Tenant)
	add("error", f.Error)
	if !f.Since.IsZero() {
		add("since", f.Since.UTC().Format(time.RFC3339))
	}
	if !f.Until.IsZero() {
		add("until", f.Until.UTC().Format(time.RFC3339))
	}
	add("id", strings.Join(f.IDs, ", "))
	return strings.Join(parts, ", ")
}

// matches looks at what stands in the event. It is not asked in SQL: a metadata column of type json may hold what ->> refuses.
func (f Filter) matches(eventType, aggregateType, aggregateID, tenant string) bool {
	if f.Type != "" && !glob.Match(f.Type, eventType) || f.Tenant != "" && f.Tenant != tenant {
		return false
	}
	typ, id, both := strings.Cut(f.Aggregate, "/")
	return f.Aggregate == "" || typ == aggregateType && (!both || id == aggregateID)
}

// StoredEvent is an event as outbox_parked keeps it, without its payload.
type StoredEvent = connector.StoredEvent

// Parked is a row of outbox_parked: one event owed to one sink, or given up on.
type Parked struct {
	Sink     string      `json:"sink"`
	Position string      `json:"position"` // LSN:index, the order of delivery
	Status   string      `json:"status"`   // parked or dead
	Event    StoredEvent `json:"event"`
	Attempts int         `json:"attempts"` // tries that were refused
	Tries    int         `json:"tries"`    // all
	ParkedAt time.Time   `json:"parked_at"`
	FirstTry *time.Time  `json:"first_try_at,omitempty"`
	// NextAttempt is not set where it waits for another, and on dead ones.
	NextAttempt *time.Time `json:"next_attempt_at,omitempty"`
	// Blocks: it is dead, and holds its aggregate until a person acts.
	Blocks bool   `json:"blocks,omitempty"`
	Error  string `json:"error,omitempty"`
	Replay bool   `json:"replay,omitempty"`
	// Waits says in words what it waits for, and Behind the event that it stands behind.
	Waits  string `json:"waits,omitempty"`
	Behind string `json:"behind,omitempty"`
	// Payload as it is where it is JSON, else PayloadBase64. Only where asked for.
	Payload       json.RawMessage `json:"payload,omitempty"`
	PayloadBase64 []byte          `json:"payload_base64,omitempty"`

	key  checkpoint.Key
	hash int64
}

// beginning is before all positions.
var beginning = checkpoint.Position{LSN: 0, Index: math.MinInt64}

// parkedQuery picks rows of outbox_parked.
type parkedQuery struct {
	status     string // parked or dead
	filter     Filter
	processors []int32
	after      checkpoint.Key // the zero key: from the beginning
	payload    bool
}

// each calls f with the rows in order of processor and position until it returns false. Between two pages nothing is held
// in the database, so f may take its time.
func (l *ledgerConn) each(ctx context.Context, q parkedQuery, f func(*Parked) (bool, error)) error {
	if err := l.checkIDs(q.filter.IDs); err != nil {
		return err
	}
	rows := pageRows
	if q.payload {
		rows = pagePayloadRows
	}
	for _, id := range q.processors {
		from := beginning
		switch {
		case id < q.after.Processor:
			continue
		case id == q.after.Processor && q.after != checkpoint.Key{}:
			from = q.after.Position
		}
		for {
			page, err := l.page(ctx, q, id, from, rows)
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

// page reads in the order of the key; ids are looked up first.
func (l *ledgerConn) page(ctx context.Context, q parkedQuery, processor int32, from checkpoint.Position, limit int) ([]*Parked, error) {
	f := q.filter
	args := []any{processor, from.LSN, from.Index, q.status, timeOrNull(f.Since), timeOrNull(f.Until), f.Error, q.payload, limit}
	table := "ledger.outbox_parked"
	if len(f.IDs) > 0 {
		// "offset 0" keeps the planner from walking the key instead.
		table = "(select * from ledger.outbox_parked where event_id = any ($10::" + l.idType() + "[]) offset 0)"
		args = append(args, f.IDs)
	}
	rows, err := l.conn.Query(ctx, l.sql(fmt.Sprintf(selectParked, table)), args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Parked, error) { return l.scanParked(row, processor) })
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (l *ledgerConn) scanParked(row pgx.CollectableRow, processor int32) (*Parked, error) {
	p := &Parked{Sink: l.name(processor), key: checkpoint.Key{Processor: processor}}
	var id *string
	var next pgtype.Timestamptz
	var event, payload []byte
	var now time.Time
	err := row.Scan(&p.key.Position.LSN, &p.key.Position.Index, &id, &p.hash, &p.Status, &p.Attempts, &p.Tries, &p.ParkedAt, &p.FirstTry, &next,
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
	p.Waits = l.waits(p, now)
	return p, nil
}

// waits says what a row waits for, as far as the row itself tells.
func (l *ledgerConn) waits(p *Parked, now time.Time) string {
	sink := l.sink(p.key.Processor)
	switch {
	case p.Status == "dead" && p.Blocks:
		return "dead; its aggregate waits for a person"
	case p.Status == "dead":
		return ""
	case sink != nil && !sink.active:
		return "the sink is paused"
	case p.NextAttempt == nil:
		return "its turn"
	case p.NextAttempt.After(now):
		return "its next attempt, in " + p.NextAttempt.Sub(now).Round(time.Second).String()
	}
	return "its next attempt, which is due"
}

// behind finds out which rows are held by an earlier one of their aggregate.
func (l *ledgerConn) behind(ctx context.Context, page []*Parked) error {
	var processors []int32
	var hashes, indexes []int64
	var lsns []string
	var untried []*Parked
	for _, p := range page {
		if p.Status != "parked" || p.NextAttempt != nil {
			continue
		}
		untried = append(untried, p)
		processors, hashes = append(processors, p.key.Processor), append(hashes, p.hash)
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
		} else if sink := l.sink(p.key.Processor); sink == nil || sink.active {
			p.Waits = "behind " + id
		}
		return nil
	})
	return err
}

// cursor is a key as --after takes it.
func cursor(k checkpoint.Key) string {
	return fmt.Sprintf("%d,%s,%d", k.Processor, k.Position.LSN, k.Position.Index)
}

func parseCursor(s string) (k checkpoint.Key, err error) {
	if s == "" {
		return k, nil
	}
	parts := strings.Split(s, ",")
	if len(parts) == 3 {
		var id int64
		id, err = strconv.ParseInt(parts[0], 10, 32)
		k.Processor = int32(id)
		if err == nil {
			k.Position.LSN, err = pglogrepl.ParseLSN(parts[1])
		}
		if err == nil {
			k.Position.Index, err = strconv.ParseInt(parts[2], 10, 64)
		}
	}
	if len(parts) != 3 || err != nil {
		return k, badCursor(s, "1,16/B374D848,0")
	}
	return k, nil
}

func badCursor(s, example string) error {
	return fmt.Errorf("--after %q is not where such a list has ended, as %s is; copy what it says there, with the same filters", s, example)
}

// without leaves processor 0 out.
func without(ids []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(ids), func(id int32) bool { return id == 0 })
}
