package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// OutboxVerify compares the whole outbox with the ledger, for all sinks of a slot at once. What is missing is what missing.go says, with the
// slot's prefix as the base. Missing looks for each event in the indexes, which suits a chunk of rows. This reads the tables once, and
// joins them by hash, which suits all rows.
type OutboxVerify struct {
	*outboxShape
	schema Schema
}

// VerifyQuery says what to compare.
type VerifyQuery struct {
	Slot       string
	Processors []int32
	// Since leaves out rows of earlier times, if the table has times; zero for all.
	Since time.Time
	// Filters are conditions on the columns of the outbox: those of jobs. Unknown.Matches says which of them a row satisfies. Rows of
	// FilteredUntil and later are not asked: they count as satisfying all, because a condition that suits the rows of before may fail on
	// them. The zero time asks all.
	Filters       []string
	FilteredUntil time.Time
	Witness       Witness
	IDs           []string // of the events that CompareEvents compares
}

// Unknown is an event of which the ledger does not say what has become of it at a sink.
type Unknown struct {
	Processor                                           int32
	ID, AggregateType, AggregateID, EventType, TenantID string
	CreatedAt                                           *time.Time // nil if the table has no times, or the row has none that is finite
	Seen                                                bool       // the row could be seen at the moment of the witness
	Matches                                             []bool     // for each of the query's filters
}

// VerifyPoint is how far the stream was settled when a comparison read the tables.
type VerifyPoint struct {
	Prefix    checkpoint.Position
	Confirmed pglogrepl.LSN
	// Decides says that the stream is settled beyond the query's witness: an unknown event that could be seen then will not come any more.
	Decides bool
	// LogDroppedUntil is the end of the newest partition of the log that was dropped with rows in it, the zero time if none was: what has
	// become of earlier events cannot be known.
	LogDroppedUntil time.Time
}

// OpenVerify looks at the outbox's columns in the catalogs.
func (s Schema) OpenVerify(ctx context.Context, db Querier, t OutboxTable) (*OutboxVerify, error) {
	shape, err := s.openShape(ctx, db, t)
	if err != nil {
		return nil, err
	}
	return &OutboxVerify{shape, s}, nil
}

// Timed reports whether the table has the times of its events.
func (v *OutboxVerify) Timed() bool { return v.timeType != "" }

// ReadWitness returns the witness of now.
func (s Schema) ReadWitness(ctx context.Context, db Querier) (w Witness, err error) {
	err = db.QueryRow(ctx, "select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text").Scan(&w.Snapshot, &w.LSN)
	if err != nil {
		return w, fmt.Errorf("ask how far the server has written: %w", err)
	}
	return w, nil
}

// selectPoint is read in the snapshot of the comparison.
const selectPoint = `select prefix_lsn, prefix_index, confirmed_lsn, slot_epoch, confirmed_lsn >= $2::text::pg_lsn, (select log_dropped_until from ledger.outbox_retention),
		pg_snapshot_xmax(pg_current_snapshot())::text
	from ledger.outbox_checkpoints where slot_name = $1 and state = 'ready' and num_nulls(prefix_lsn, prefix_index, confirmed_lsn) = 0`

// planVerify gives the hashes room, and keeps the planner, which cannot know how few rows are unknown, from looking for each row in the
// indexes.
const planVerify = "set local enable_nestloop = off; set local enable_mergejoin = off; set local work_mem = '64MB'; set local jit = off; set local plan_cache_mode = force_custom_plan"

// CompareAll calls take for each event and each sink where the event is unknown, in no order. It reads all in one snapshot and keeps nothing in
// memory.
func (v *OutboxVerify) CompareAll(ctx context.Context, db Beginner, q VerifyQuery, take func(*VerifyPoint, *Unknown) error) (VerifyPoint, error) {
	var p VerifyPoint
	err := v.inSnapshot(ctx, db, comparison{planVerify, q.Filters}, func(tx pgx.Tx) error {
		var rows verifiedRows
		if !q.Since.IsZero() && v.timeType != "" {
			rows = verifiedRows{fmt.Sprintf(" and %s >= $7::timestamptz::%s", v.column(v.table.CreatedAt), v.timeType), []any{q.Since}}
		}
		return v.compare(ctx, tx, &q, &p, rows, take)
	})
	return p, err
}

// comparison is what a comparison sets in its transaction, and the filters that it asks.
type comparison struct {
	plan    string
	filters []string
}

// inSnapshot runs do in a transaction that has one snapshot and changes nothing.
func (v *OutboxVerify) inSnapshot(ctx context.Context, db Beginner, c comparison, do func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set transaction isolation level repeatable read, read only; "+c.plan); err != nil {
			return err
		}
		return do(tx)
	})
	if err != nil {
		return fmt.Errorf("compare %s.%s with the ledger: %w", v.table.Schema, v.table.Name, v.schema.explainFilters(ctx, db, v.table, c.filters, err))
	}
	return nil
}

// verifiedRows are the rows of a condition. Its first parameter is $7.
type verifiedRows struct {
	where string
	args  []any
}

// compare reads the point, and then compares these rows.
func (v *OutboxVerify) compare(ctx context.Context, tx pgx.Tx, q *VerifyQuery, p *VerifyPoint, of verifiedRows, take func(*VerifyPoint, *Unknown) error) error {
	var slotEpoch int32
	var dropped *time.Time
	var nextXid string
	err := tx.QueryRow(ctx, v.schema.statement(selectPoint), q.Slot, q.Witness.LSN).
		Scan(&p.Prefix.LSN, &p.Prefix.Index, &p.Confirmed, &slotEpoch, &p.Decides, &dropped, &nextXid)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("slot %q: %w", q.Slot, errNotReady)
	} else if err != nil {
		return err
	}
	if dropped != nil {
		p.LogDroppedUntil = *dropped
	}
	rows, err := tx.Query(ctx, v.statement(q, of.where), append([]any{p.Prefix.LSN, p.Prefix.Index, slotEpoch, q.Processors, nextXid, q.Witness.Snapshot}, of.args...)...)
	if err != nil {
		return err
	}
	var u Unknown
	_, err = pgx.ForEachRow(rows, []any{&u.Processor, &u.ID, &u.AggregateType, &u.AggregateID, &u.EventType, &u.TenantID, &u.CreatedAt, &u.Seen, &u.Matches}, func() error {
		return take(p, &u)
	})
	return err
}

// VerifyChunk is what CompareChunk has looked at.
type VerifyChunk struct {
	VerifyPoint
	Witness Witness    // of the rows of the chunk: all could be seen
	Last    *OutboxKey // the last row; nil if there is none
	UpTo    time.Time  // all rows of earlier times were looked at: the time of the last row, or the present if there is none behind it
	End     bool       // there is no row behind these
}

// VerifyChunkQuery says which rows CompareChunk compares.
type VerifyChunkQuery struct {
	VerifyQuery            // its witness is not used
	From        *OutboxKey // behind which to begin; nil: with the first row; without an id: with the first row of that time
	Limit       int        // rows, at most
}

// CompareChunk compares the next rows in the order of their times. It looks for each row in the indexes of the ledger.
func (v *OutboxVerify) CompareChunk(ctx context.Context, db Beginner, q VerifyChunkQuery, take func(*VerifyPoint, *Unknown) error) (VerifyChunk, error) {
	var c VerifyChunk
	from, limit := q.From, q.Limit
	err := v.inSnapshot(ctx, db, comparison{planByIndex, q.Filters}, func(tx pgx.Tx) error {
		at, id := v.column(v.table.CreatedAt), v.id.raw
		after, args := func(int) string { return "" }, []any{}
		switch {
		case from == nil:
		case from.ID == "":
			after, args = func(n int) string { return fmt.Sprintf(" and %s >= $%d::text::%s", at, n, v.timeType) }, []any{from.At}
		default:
			after = func(n int) string {
				return fmt.Sprintf(" and (%s, %s) > ($%d::text::%s, $%d::text::%s)", at, id, n, v.timeType, n+1, v.id.parameter)
			}
			args = []any{from.At, from.ID}
		}
		timed := fmt.Sprintf("%s is not null and isfinite(%s)", v.column(v.table.ID), at)
		var n int
		var last OutboxKey
		var upTo *time.Time
		err := tx.QueryRow(ctx, fmt.Sprintf("select count(*), coalesce((array_agg(concat(at)))[count(*)], ''), coalesce((array_agg(concat(id)))[count(*)], ''), max(at)::timestamptz, "+
			"pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, now() from (select %s as at, %s as id from %s t where %s order by 1, 2 limit $1) c",
			at, id, pgx.Identifier{v.table.Schema, v.table.Name}.Sanitize(), timed+after(2)), append([]any{limit}, args...)...).
			Scan(&n, &last.At, &last.ID, &upTo, &c.Witness.Snapshot, &c.Witness.LSN, &c.UpTo)
		if c.End = n < limit; err != nil || n == 0 {
			return err
		}
		c.Last = &last
		if !c.End {
			c.UpTo = *upTo
		}
		q.Witness = c.Witness
		where := " and " + timed + after(7) + fmt.Sprintf(" and (%s, %s) <= ($%d::text::%s, $%d::text::%s)", at, id, 7+len(args), v.timeType, 8+len(args), v.id.parameter)
		return v.compare(ctx, tx, &q.VerifyQuery, &c.VerifyPoint, verifiedRows{where, append(args, last.At, last.ID)}, take)
	})
	return c, err
}

// CompareEvents compares the rows of the events of q.IDs.
func (v *OutboxVerify) CompareEvents(ctx context.Context, db Beginner, q VerifyQuery, take func(*VerifyPoint, *Unknown) error) (VerifyPoint, error) {
	var p VerifyPoint
	err := v.inSnapshot(ctx, db, comparison{planByIndex, q.Filters}, func(tx pgx.Tx) error {
		return v.compare(ctx, tx, &q, &p, verifiedRows{fmt.Sprintf(" and %s = any ($7::text[]::%s[])", v.id.raw, v.id.parameter), []any{q.IDs}}, take)
	})
	return p, err
}

// FindsByTime reports whether the table has times, and an index by which rows are found in the order of their times.
func (v *OutboxVerify) FindsByTime(ctx context.Context, db Querier) (finds bool, err error) {
	if !v.Timed() {
		return false, nil
	}
	err = db.QueryRow(ctx, `select exists (select from pg_index i join pg_attribute a on attrelid = indrelid and attnum = indkey[0]
		where indrelid = $1 and attname = $2 and indisvalid and indpred is null)`, v.oid, v.table.CreatedAt).Scan(&finds)
	if err != nil {
		return false, fmt.Errorf("look for an index on the time of %s.%s: %w", v.table.Schema, v.table.Name, err)
	}
	return finds, nil
}

// statement compares in two steps. An event that was streamed at or before the prefix is settled for every sink, or is not owed to it: most
// events are of that kind, and one join leaves them out for all sinks. What is left is compared for each sink. A log row of an epoch before
// the slot was made is of a stream that has ended, and counts as before the prefix. Rows of processor 0 are of no sink, and of each.
func (v *OutboxVerify) statement(q *VerifyQuery, where string) string {
	t := &v.table
	where = v.column(t.ID) + " is not null" + where
	created := "null::timestamptz"
	if v.timeType != "" {
		created = fmt.Sprintf("case when isfinite(%[1]s) then %[1]s::timestamptz end", v.column(t.CreatedAt))
	}
	later := "false"
	if !q.FilteredUntil.IsZero() {
		later = fmt.Sprintf("(%s) >= '%s'::timestamptz", created, q.FilteredUntil.UTC().Format(time.RFC3339Nano))
	}
	matches := []string{}
	for _, f := range q.Filters {
		matches = append(matches, fmt.Sprintf("case when %s then true else coalesce((%s\n), false) end", later, f))
	}
	// The schema is put only into our own parts: the name of a column may be anything.
	candidates := fmt.Sprintf(`with candidate as materialized (select o.* from (select %s as event_id, %s as aggregate_type, %s as aggregate_id, %s as event_type, %s as tenant_id, %s as created_at,
			t.xmin as xid, array[%s]::boolean[] as matches from %s t where %s offset 0) o`, v.id.event, v.text(t.AggregateType), v.text(t.AggregateID), v.text(t.EventType), v.text(t.TenantID), created,
		strings.Join(matches, ", "), pgx.Identifier{t.Schema, t.Name}.Sanitize(), where)
	return candidates + v.schema.statement(` where not exists (select from ledger.outbox_delivery_log l where l.event_id = o.event_id and l.tx_index >= 0
				and (l.epoch < $3 or (l.commit_lsn, l.tx_index) <= ($1, $2)))
			and not exists (select from ledger.outbox_parked p where p.event_id = o.event_id and p.tx_index >= 0 and (p.commit_lsn, p.tx_index) <= ($1, $2))),
		wanted as (select s.processor, c.* from candidate c cross join unnest($4::int[]) as s (processor))
		select w.processor, concat(w.event_id), w.aggregate_type, w.aggregate_id, w.event_type, w.tenant_id, w.created_at,
			pg_visible_in_snapshot(greatest($5::text::bigint - (($5::text::bigint - w.xid::text::bigint) & 4294967295), 0)::text::xid8, $6::text::pg_snapshot), w.matches
		from wanted w
		where not exists (select from ledger.outbox_delivery_log l where l.event_id = w.event_id and (l.processor_id = w.processor or l.processor_id = 0) and l.status in ('delivered', 'dead', 'discarded'))
			and not exists (select from ledger.outbox_parked p where p.event_id = w.event_id and (p.processor_id = w.processor or p.processor_id = 0))`)
}

// VerifySink is a sink as a comparison needs it.
type VerifySink struct {
	Processor int32
	Name      string
	// Since is the time before which events are not owed to the sink, nil if all are.
	Since *time.Time
	// Unfinished says that a job of the sink still walks the outbox, and may park what is unknown.
	Unfinished bool
	// Filter is the condition of the last "init --backlog where:…", or empty. Rows from before Filed that do not satisfy it are not owed.
	Filter string
	Filed  *time.Time
}

// VerifySinks reads the sinks of a connector.
func (s Schema) VerifySinks(ctx context.Context, db Querier, connector string) ([]VerifySink, error) {
	rows, err := db.Query(ctx, s.statement(`select p.id, processor_name, case when isfinite(since) then since end, 
			exists (select from ledger.outbox_backlog b where b.processor_id = p.id and b.mode = 'missing' and b.status <> 'done'), coalesce(c.filter ->> 'where', ''), c.created_at
		from ledger.outbox_processors p left join (`+selectChosen+`) as c on c.processor_id = p.id
		where connector = $1 order by p.id`), connector)
	if err != nil {
		return nil, fmt.Errorf("read the sinks: %w", err)
	}
	sinks, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v VerifySink, err error) {
		err = row.Scan(&v.Processor, &v.Name, &v.Since, &v.Unfinished, &v.Filter, &v.Filed)
		return v, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the sinks: %w", err)
	}
	return sinks, nil
}

// Settled reports whether the stream of a slot is settled beyond a witness, and whether somebody streams from the slot.
func (s Schema) Settled(ctx context.Context, db Querier, slot string, w Witness) (settled, streamed bool, err error) {
	err = db.QueryRow(ctx, s.statement(`select coalesce(confirmed_lsn >= $2::text::pg_lsn, false), coalesce((select active from pg_replication_slots r
			where r.slot_name = c.slot_name and r.database = current_database()), false)
		from ledger.outbox_checkpoints c where slot_name = $1`), slot, w.LSN).Scan(&settled, &streamed)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, false, fmt.Errorf("slot %q: %w", slot, errNotReady)
	}
	if err != nil {
		return false, false, fmt.Errorf("read how far slot %q is settled: %w", slot, err)
	}
	return settled, streamed, nil
}
