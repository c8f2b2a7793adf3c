package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// MaxFresh is how many untried rows one read takes at most.
const MaxFresh = 2000

// ParkedQuery is what a lane asks of its rows in outbox_parked.
//
// A row is untried while it has no time, next_attempt_at: it was neither tried nor put off. All other parked rows count as tried.
//
// A lane reads its untried rows in passes: each read goes on where the last one ended, and leaves out the aggregates of which an
// earlier read of the pass left rows in the table, so that they stay in order.
type ParkedQuery struct {
	// The read looks for untried rows behind From, where the pass's last read ended; that read began behind Prev. Passed has
	// the hashes of the aggregates that the pass leaves out. If From is checkpoint.MinPosition, a new pass begins. It looks
	// behind Floor, because no untried row is at or before Floor.
	Prev, From checkpoint.Position
	Floor      checkpoint.Position
	Passed     map[int64]struct{}
	// Before leaves out the rows at this position and behind it; the zero value leaves out none.
	Before checkpoint.Position
	// AlsoDue are rows that count as due although their time has not come.
	AlsoDue  []checkpoint.Position
	MaxDue   int // due rows at most
	MaxHeads int // if there are more heads than this, ParkedRead.Heads has one more than this
	// MaxBytes bounds the untried rows of one read, and again the due ones. Large allows one row in all that is larger.
	MaxBytes int
	Large    bool
}

// NewPass reports whether a pass begins.
func (q *ParkedQuery) NewPass() bool { return q.From == checkpoint.MinPosition }

// Start is the position behind which untried rows are looked for.
func (q *ParkedQuery) Start() checkpoint.Position {
	if q.NewPass() {
		return q.Floor
	}
	return q.From
}

// end is the position before which rows are read.
func (q *ParkedQuery) end() checkpoint.Position {
	if q.Before == (checkpoint.Position{}) {
		return checkpoint.MaxPosition
	}
	return q.Before
}

// ParkedRead is what one read has found, in one snapshot. Tried rows of an aggregate hold it: what stands behind the first of them,
// its head, has to wait. Aggregates are told apart by their hash.
type ParkedRead struct {
	// Fresh are the untried rows that stand behind no tried row of their aggregate, in position order.
	Fresh []ParkedDelivery
	// First is where the first untried row is, fresh or not, if a pass begins; checkpoint.MinPosition: there is none.
	First checkpoint.Position
	// More says that there may be further fresh rows behind the last of Fresh.
	More bool
	// Due are the heads whose time has come, longest due first.
	Due []ParkedDelivery
	// Heads has the head of every aggregate, with the time at which it is due, by this process's clock.
	Heads map[int64]time.Time
	// Left are the hashes of the aggregates of which rows are left between Prev and From. The pass leaves them out from now on.
	Left []int64
	// Large says that a row was left out, and what stands behind it, because it is larger than MaxBytes.
	Large bool
}

// ParkedDelivery is a delivery that was parked: what a row of outbox_parked says of it, and its event, which is the caller's to keep.
type ParkedDelivery struct {
	Position      checkpoint.Position
	EventID       string // of the column event_id; empty: null
	Event         StoredEvent
	Payload       []byte
	AggregateHash int64
	Attempts      int       // tries that were refused
	Tries         int       // all tries
	TriedAt       time.Time // the first try, by this process's clock; zero: untried
}

// ParkedReader reads a lane's share of outbox_parked. For one goroutine at a time.
type ParkedReader struct {
	pool      *pgxpool.Pool
	sql       parkedSQL
	processor int32
	lane      int
	lanes     int
}

// NewParkedReader makes a reader of the rows of a sink (processor) whose aggregates belong to a lane, by the rule of router.Lane. The
// pool stays the caller's.
func (s Schema) NewParkedReader(pool *pgxpool.Pool, processor int32, lane, lanes int) *ParkedReader {
	sql := parkedSQL{fresh: s.statement(readFresh), first: s.statement(readFirst), heads: s.statement(readHeads), due: s.statement(readDue), left: s.statement(readLeft)}
	return &ParkedReader{pool: pool, sql: sql, processor: processor, lane: lane, lanes: lanes}
}

// parkedSQL are the statements, with the ledger's schema in them.
type parkedSQL struct {
	fresh, first, heads, due, left string
}

// The first try is read as how long ago it was, because the server's clock is not ours.
const parkedColumns = `commit_lsn, tx_index, event_id::text, agg_hash, attempts, tries, extract(epoch from clock_timestamp() - tried_at)::float8,
	case when fits then event end, case when fits then payload end, fits`

// forgetLarge makes pgx forget a large row. A connection keeps the last row that it has read until one with as many columns comes.
var forgetLarge = "select " + strings.Repeat("null, ", 20) + "null"

// rowBytes is what a row takes in memory. The size of a compressed event is known only by decompressing it; 16 KiB of it are 2 MiB at most.
const rowBytes = `coalesce(octet_length(payload), 0) + case when pg_column_size(event) < 16384 then pg_column_size(event) else octet_length(event::text) end`

// The first row that does not fit comes without its content, and no row behind it comes.
const readFresh = `select ` + parkedColumns + `, total from (
		select *, bytes + size <= $8 or $9 and bytes = 0 as fits from (
			select *, count(*) over () as total, sum(size) over (rows unbounded preceding) - size as bytes from (
				select *, ` + rowBytes + ` as size from (
					select commit_lsn, tx_index, event_id, agg_hash, attempts, tries, tried_at, event, payload from ledger.outbox_parked p
					where processor_id = $1 and status = 'parked' and next_attempt_at is null and (commit_lsn, tx_index) > ($2, $3) and (commit_lsn, tx_index) < ($10, $11)
						and abs(agg_hash % $4) = $5 and agg_hash <> all ($6)
						and not exists (select from ledger.outbox_parked h where h.processor_id = p.processor_id and h.agg_hash = p.agg_hash
							and (h.commit_lsn, h.tx_index) < (p.commit_lsn, p.tx_index) and h.next_attempt_at is not null)
					order by commit_lsn, tx_index limit $7) f) sized) summed
		where bytes < $8) fitting`

const readFirst = `select commit_lsn, tx_index from ledger.outbox_parked
	where processor_id = $1 and status = 'parked' and next_attempt_at is null and (commit_lsn, tx_index) > ($2, $3) and (commit_lsn, tx_index) < ($6, $7)
		and abs(agg_hash % $4) = $5
	order by commit_lsn, tx_index limit 1`

// "is true" keeps the planner from an index scan by the position: while the table was never analyzed, PostgreSQL 18 would rather read all rows
// of the sink by their key than the few heads by their own index.
const readHeads = `select distinct on (agg_hash) agg_hash, extract(epoch from next_attempt_at)::float8, extract(epoch from clock_timestamp())::float8
	from ledger.outbox_parked where processor_id = $1 and next_attempt_at is not null and abs(agg_hash % $2) = $3
		and ((commit_lsn, tx_index) < ($5, $6)) is true
	order by agg_hash, commit_lsn, tx_index limit $4`

const readDue = `with heads as materialized (select distinct on (agg_hash) commit_lsn, tx_index, next_attempt_at
		from ledger.outbox_parked where processor_id = $1 and next_attempt_at is not null and abs(agg_hash % $2) = $3
			and ((commit_lsn, tx_index) < ($9, $10)) is true
		order by agg_hash, commit_lsn, tx_index),
	due as materialized (select commit_lsn, tx_index, next_attempt_at from heads
		where next_attempt_at <= clock_timestamp() or (commit_lsn, tx_index) in (select * from unnest($7::text[]::pg_lsn[], $8::bigint[]))
		order by next_attempt_at, commit_lsn, tx_index limit $4),
	sized as (select p.*, due.next_attempt_at as due, ` + rowBytes + ` as size
		from due join ledger.outbox_parked p on p.processor_id = $1 and p.commit_lsn = due.commit_lsn and p.tx_index = due.tx_index
		where p.status = 'parked')
	select ` + parkedColumns + ` from (
		select *, bytes + size <= $5 or $6 and bytes = 0 as fits from (
			select *, sum(size) over (order by due, commit_lsn, tx_index rows unbounded preceding) - size as bytes from sized) summed
		where bytes < $5) fitting
	order by due, commit_lsn, tx_index`

const readLeft = `select distinct agg_hash from ledger.outbox_parked where processor_id = $1 and abs(agg_hash % $2) = $3
	and (commit_lsn, tx_index) > ($4, $5) and (commit_lsn, tx_index) <= ($6, $7) and (commit_lsn, tx_index) < ($8, $9) and (status = 'parked' or next_attempt_at is not null)`

// Read reads once, in a transaction of its own.
func (r *ParkedReader) Read(ctx context.Context, q ParkedQuery) (ParkedRead, error) {
	var found ParkedRead
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, r.pool, options, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, planParkedLocal); err != nil {
			return err
		}
		if err := r.readLeft(ctx, tx, q, &found); err != nil {
			return err
		}
		b := &pgx.Batch{}
		found.First = checkpoint.MinPosition
		end := q.end()
		if q.NewPass() {
			b.Queue(r.sql.first, r.processor, q.Floor.LSN, q.Floor.Index, r.lanes, r.lane, end.LSN, end.Index).Query(func(rows pgx.Rows) error {
				_, err := pgx.ForEachRow(rows, []any{&found.First.LSN, &found.First.Index}, func() error { return nil })
				return err
			})
		}
		start := q.Start()
		b.Queue(r.sql.fresh, r.processor, start.LSN, start.Index, r.lanes, r.lane, leftOut(q, found), MaxFresh, q.MaxBytes, q.Large, end.LSN, end.Index).
			Query(func(rows pgx.Rows) error { return r.scanFresh(rows, &found) })
		b.Queue("set local enable_sort = on")
		b.Queue(r.sql.heads, r.processor, r.lanes, r.lane, q.MaxHeads+1, end.LSN, end.Index).Query(func(rows pgx.Rows) error { return scanHeads(rows, &found) })
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		if err := r.readDue(ctx, tx, q, &found); err != nil || !q.Large {
			return err
		}
		_, err := tx.Exec(ctx, forgetLarge)
		return err
	})
	if err != nil {
		return ParkedRead{}, fmt.Errorf("read outbox_parked: %w", err)
	}
	return found, nil
}

var planParkedLocal = planParked("set local")

func (r *ParkedReader) readLeft(ctx context.Context, tx pgx.Tx, q ParkedQuery, found *ParkedRead) error {
	if q.NewPass() {
		return nil
	}
	rows, err := tx.Query(ctx, r.sql.left, r.processor, r.lanes, r.lane, q.Prev.LSN, q.Prev.Index, q.From.LSN, q.From.Index, q.end().LSN, q.end().Index)
	if err != nil {
		return err
	}
	found.Left, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	return err
}

// leftOut returns the hashes that the pass leaves out from now on.
func leftOut(q ParkedQuery, found ParkedRead) []int64 {
	hashes := slices.Clone(found.Left)
	for h := range q.Passed {
		hashes = append(hashes, h)
	}
	if hashes == nil {
		hashes = []int64{}
	}
	return hashes
}

func (r *ParkedReader) scanFresh(rows pgx.Rows, found *ParkedRead) error {
	total := 0
	for rows.Next() {
		row, fits, err := r.scan(rows, &total)
		if err != nil {
			return err
		}
		if !fits {
			found.Large = len(found.Fresh) == 0
			continue
		}
		found.Fresh = append(found.Fresh, row)
	}
	found.More = len(found.Fresh) > 0 && (total == MaxFresh || len(found.Fresh) < total)
	return rows.Err()
}

// readDue asks for due rows if the heads say that there are some, or are too many to say.
func (r *ParkedReader) readDue(ctx context.Context, tx pgx.Tx, q ParkedQuery, found *ParkedRead) error {
	now := time.Now()
	some := len(found.Heads) > q.MaxHeads || len(q.AlsoDue) > 0
	for _, due := range found.Heads {
		some = some || !due.After(now)
	}
	if !some {
		return nil
	}
	large := q.Large && !slices.ContainsFunc(found.Fresh, q.isLarge) // one row in all
	var also keys
	for _, p := range q.AlsoDue {
		also.add(checkpoint.Key{Processor: r.processor, Position: p})
	}
	rows, err := tx.Query(ctx, r.sql.due, r.processor, r.lanes, r.lane, q.MaxDue, q.MaxBytes, large, also.lsns, also.indexes, q.end().LSN, q.end().Index)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		row, fits, err := r.scan(rows)
		if err != nil {
			return err
		}
		if !fits {
			found.Large = found.Large || len(found.Due) == 0
			continue
		}
		found.Due = append(found.Due, row)
	}
	return rows.Err()
}

func (q *ParkedQuery) isLarge(row ParkedDelivery) bool {
	return len(row.Payload)+row.Event.metadataSize() > q.MaxBytes/2
}

// scanHeads turns times by PostgreSQL's clock into times by ours.
func scanHeads(rows pgx.Rows, found *ParkedRead) error {
	found.Heads = map[int64]time.Time{}
	var hash int64
	var due, theirs float64
	read := time.Now()
	_, err := pgx.ForEachRow(rows, []any{&hash, &due, &theirs}, func() error {
		in := min(due-theirs, 1<<30) // infinity: the row is dead, and holds its aggregate
		found.Heads[hash] = read.Add(time.Duration(in * float64(time.Second)))
		return nil
	})
	return err
}

// scan reads a row, and reports whether its content is there: whether it fits.
func (r *ParkedReader) scan(rows pgx.Rows, more ...any) (row ParkedDelivery, fits bool, err error) {
	var id *string
	var tried *float64
	var event []byte
	into := append([]any{&row.Position.LSN, &row.Position.Index, &id, &row.AggregateHash, &row.Attempts, &row.Tries, &tried, &event, &row.Payload, &fits}, more...)
	if err := rows.Scan(into...); err != nil || !fits {
		return row, false, err
	}
	if row.Event, err = decodeEvent(event); err != nil {
		return row, false, fmt.Errorf("parked row at %s of processor %d: %w", row.Position, r.processor, err)
	}
	if id != nil {
		row.EventID = *id
	}
	if tried != nil {
		row.TriedAt = time.Now().Add(-time.Duration(*tried * float64(time.Second)))
	}
	return row, true, nil
}
