package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// OutboxRows deletes old rows of the outbox, a chunk at a time. It needs the right to select from the table and to delete from it.
//
// It deletes a row only if the ledger has a row of the event, in the log or in outbox_parked, that stands at or before the least prefix of
// all slots: everything at that position is settled for every sink. Each chunk is one statement, so that the prefix, the ledger's rows and
// the outbox's rows are of one snapshot.
//
// As in MappedOutbox no function and no operator of the table's types runs with our rights. Its triggers on delete do.
type OutboxRows struct {
	outboxShape
	schema Schema
	grant  string // see Grant
	byDay  bool   // see ByDay
}

// OutboxKey is the place of a row in the order in which the rows are walked.
type OutboxKey struct {
	At string // the time as the table's column has it, in UTC
	ID string // as the index has it; "" is before all ids
}

// Witness is a moment at which rows were looked at. A row that could be seen then, and that the ledger does not know although the
// stream is settled beyond that moment, never came on the stream.
type Witness struct {
	Snapshot string // pg_snapshot; "" for no moment
	LSN      string // pg_lsn: at least what had been written then
}

// ChunkQuery says which rows DeleteChunk looks at.
type ChunkQuery struct {
	// Age is how old a row has to be, by PostgreSQL's clock.
	Age time.Duration
	// From is the row with which the chunk begins; nil for the beginning of the table.
	From *OutboxKey
	// After leaves out the row From.
	After bool
	// Until leaves out rows of this time, as OutboxKey.At has it, and later; "" for no bound.
	Until string
	// WholeDays leaves out rows of the UTC day that has only in part reached Age.
	WholeDays bool
	Limit     int
	// Witness decides about the rows that the ledger does not know.
	Witness Witness
	// Patience bounds the statement, and LockPatience how long it waits for the lock of one row.
	Patience, LockPatience time.Duration
	// Explain deletes nothing. Chunk.Deleted is then what would be deleted.
	Explain bool
}

// KeptRows counts the rows that are old enough and stay, by the reason.
type KeptRows struct {
	// Beyond counts the rows that some slot or sink has not settled yet.
	Beyond int64 `json:"beyond_prefix"`
	// Unread counts the rows that the ledger does not know, and that may still come on the stream.
	Unread int64 `json:"unread"`
	// Unaccounted counts the rows that the ledger does not know and that will not come on the stream any more.
	Unaccounted int64 `json:"unaccounted"`
	// Locked counts the rows that another transaction has locked.
	Locked int64 `json:"locked"`
	// Refused counts the rows that the database does not let us delete: a foreign key or a trigger of the user's.
	Refused int64 `json:"refused"`
}

// Total returns how many rows stay.
func (k KeptRows) Total() int64 { return k.Beyond + k.Unread + k.Unaccounted + k.Locked + k.Refused }

// Add adds the rows of o.
func (k *KeptRows) Add(o KeptRows) {
	k.Beyond += o.Beyond
	k.Unread += o.Unread
	k.Unaccounted += o.Unaccounted
	k.Locked += o.Locked
	k.Refused += o.Refused
}

// Chunk is what DeleteChunk has done.
type Chunk struct {
	// Blocked says why nothing may be deleted at all now; "" if it may.
	Blocked string
	Deleted int64
	Kept    KeptRows
	// Last is the last row of the chunk; nil if there is no row that is old enough.
	Last *OutboxKey
	// Waiting is the first row that stays for a reason that may end soon: it is beyond the prefix, unread or locked. It may be nil.
	Waiting *OutboxKey
	// Full says that the chunk has Limit rows, so that there may be more.
	Full bool
	// LogNeeded is the time of the oldest log row of a row that stays, the zero time if there is none: such a row is needed to
	// delete the outbox's row later.
	LogNeeded time.Time
	// Logged is the time of the oldest log row of all rows of the chunk, the zero time if there is none.
	Logged time.Time
	// Witness is of this chunk. Decides says that the stream is settled beyond the witness of the query.
	Witness Witness
	Decides bool
	// Unaccounted is the id of one row that will never come on the stream, "" if there is none.
	Unaccounted string
	// Hash is made of the ids of the rows that Explain counts as Deleted: see DayRows.
	Hash int64
}

// The errors of DeleteChunk.
var (
	// ErrMayNotDelete says that the login lacks a right; the error has the statement that grants it.
	ErrMayNotDelete = errors.New("the login may not delete rows of the outbox")
	// ErrRowLocked says that a row of the chunk is locked, and nothing was deleted.
	ErrRowLocked = errors.New("a row of the outbox is locked")
	// ErrRowRefused says that the database has refused to delete a row of the chunk, and nothing was deleted.
	ErrRowRefused = errors.New("the database refuses to delete a row of the outbox")
	// ErrChunkTooLong says that the chunk was not done within its patience, and nothing was deleted.
	ErrChunkTooLong = errors.New("the rows of the outbox were not looked through in time")
	// ErrCleanupRuns says that another session deletes from the same table just now.
	ErrCleanupRuns = errors.New("another session deletes old rows of the outbox")
)

// OpenOutboxRows looks at the outbox's columns in the catalogs. t.Patience is not used, and t.CreatedAt must not be empty.
func (s Schema) OpenOutboxRows(ctx context.Context, db Querier, t OutboxTable) (*OutboxRows, error) {
	idType, err := s.EventIDType(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("look at the ledger: %w", err)
	}
	shape, err := readShape(ctx, db, t, idType)
	if err != nil {
		return nil, err
	}
	if shape.timeType == "" {
		return nil, fmt.Errorf("%w: rows of %s.%s have no time; name its column as source.columns.created_at", ErrOutboxTable, t.Schema, t.Name)
	}
	r := &OutboxRows{outboxShape: *shape, schema: s}
	err = db.QueryRow(ctx, `select case when has_table_privilege(c.oid, 'delete') then '' else format('grant delete on table %I.%I to %I', nspname, relname, current_user) end
		from pg_class c join pg_namespace n on n.oid = relnamespace where c.oid = $1`, r.oid).Scan(&r.grant)
	if err != nil {
		return nil, fmt.Errorf("look at the rights on %s.%s: %w", t.Schema, t.Name, err)
	}
	if r.byDay, err = r.dropsDays(ctx, db); err != nil {
		return nil, fmt.Errorf("look at the partitions of %s.%s: %w", t.Schema, t.Name, err)
	}
	return r, nil
}

// Grant returns the statement that the owner of the table has to run before rows can be deleted, "" if the login may.
func (r *OutboxRows) Grant() string { return r.grant }

// Zoneless reports whether the column of the rows' times is a timestamp without time zone. Its times count as UTC.
func (r *OutboxRows) Zoneless() bool { return r.timeType == "timestamp" }

// name is the table in SQL.
func (r *OutboxRows) name() string {
	return pgx.Identifier{r.table.Schema, r.table.Name}.Sanitize()
}

// chunkRule is the part of a chunk's statement that says what may be deleted. "least" has one row. A log row with an epoch before every
// slot_epoch is of a history that no slot streams any more.
const chunkRule = `with least as materialized (
		select case when $8::boolean then date_trunc('day', now() - $1::bigint * interval '1 us', 'UTC') else now() - $1::bigint * interval '1 us' end as cutoff, min(confirmed_lsn) as confirmed, min(slot_epoch) as slot_epoch,
			(array_agg(prefix_lsn order by prefix_lsn, prefix_index))[1] as prefix_lsn,
			(array_agg(prefix_index order by prefix_lsn, prefix_index))[1] as prefix_index,
			case when count(*) = 0 then 'no slot has a checkpoint'
				when bool_or(state <> 'ready' or num_nulls(prefix_lsn, prefix_index, confirmed_lsn) > 0) then 'a slot is being made'
				when (select count(*) from ledger.outbox_backlog where status <> 'done') > 0 then 'a job of outbox_backlog is unfinished'
				else '' end as blocked,
			pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next_xid
		from ledger.outbox_checkpoints)`

// chunkJudge is the part that says of each row what becomes of it. A transaction that locks a row writes its id into the row's xmax, and
// has a lock on its own id as long as it runs. (An xmax may be the id of several transactions. What that locks is found out by waiting.)
const chunkJudge = `, holders as materialized (select transactionid from pg_locks where locktype = 'transactionid' and granted and exists (select from walked where xmax <> '0'::xid)),
	judged as materialized (
		select w.*, j.*, w.xmax in (select transactionid from holders) as held,
			not j.known and l.confirmed >= $5::text::pg_lsn and pg_visible_in_snapshot(
				greatest(l.next_xid - ((l.next_xid - w.xmin::text::bigint) & 4294967295), 0)::text::xid8, $6::text::pg_snapshot) as unaccounted
		from walked w cross join least l cross join lateral (
			select count(*) > 0 as known, min(completed_at) as logged_at,
				coalesce(bool_or(tx_index < 0 or epoch < l.slot_epoch or (commit_lsn, tx_index) <= (l.prefix_lsn, l.prefix_index)), false) as settled
			from (
				select commit_lsn, tx_index, epoch, completed_at from ledger.outbox_delivery_log where event_id = w.event_id
				union all select commit_lsn, tx_index, null, null from ledger.outbox_parked where event_id = w.event_id) rows) j)`

// chunkResult is the part that adds up.
const chunkResult = `select l.blocked, (select count(*) from gone),
		count(j) filter (where j.settled and not j.held), count(j) filter (where j.known and not j.settled),
		count(j) filter (where not j.known and not coalesce(j.unaccounted, false)), count(j) filter (where j.unaccounted),
		count(j) filter (where j.settled and j.held),
		(array_agg(array[concat(j.at), concat(j.id)] order by j.n desc) filter (where j.n is not null))[1:1],
		(array_agg(array[concat(j.at), concat(j.id)] order by j.n) filter (where j.n is not null and case when j.settled then j.held else not coalesce(j.unaccounted, false) end))[1:1],
		min(j.logged_at) filter (where not (j.settled and not j.held)), min(j.logged_at),
		coalesce((array_agg(concat(j.event_id) order by j.n) filter (where j.unaccounted))[1], ''),
		pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, coalesce(l.confirmed >= $5::text::pg_lsn, false),
		coalesce(bit_xor(hashtextextended(concat(j.id), 0)) filter (where j.settled and not j.held), 0)
	from least l left join judged j on true group by l.blocked, l.confirmed`

// statement is that of a chunk.
func (r *OutboxRows) statement(q *ChunkQuery) string {
	at, id := r.column(r.table.CreatedAt), r.id.raw
	where := fmt.Sprintf("%s < (select cutoff from least where blocked = '')::%s and %s is not null and ($7::text is null or %s < $7::text::%s)",
		at, r.timeType, r.column(r.table.ID), at, r.timeType)
	switch {
	case q.From == nil:
		where += " and $3::text is null and $4::text is null"
	case q.From.ID == "" && !q.After:
		where += fmt.Sprintf(" and %s >= $3::text::%s and $4::text is not null", at, r.timeType)
	case q.After:
		where += fmt.Sprintf(" and (%s, %s) > ($3::text::%s, $4::text::%s)", at, id, r.timeType, r.id.parameter)
	default:
		where += fmt.Sprintf(" and (%s, %s) >= ($3::text::%s, $4::text::%s)", at, id, r.timeType, r.id.parameter)
	}
	// The schema is put only into our own parts: the name of a column may be anything.
	walked := fmt.Sprintf(", walked as materialized (select row_number() over () as n, w.* from (select t.ctid as tid, t.tableoid as part, t.xmin, t.xmax, %[1]s as at, %[2]s as id, %[3]s as event_id "+
		"from %[4]s t where %[5]s order by %[1]s, %[2]s limit $2) w)", at, id, r.id.event, r.name(), where)
	// The time lets the server leave out partitions.
	gone := fmt.Sprintf(", gone as (delete from %s t using judged j where j.settled and not j.held and t.ctid = j.tid and t.tableoid = j.part and %s = j.at returning 1) ", r.name(), at)
	if q.Explain {
		gone = ", gone as (select from judged j where j.settled and not j.held) "
	}
	return r.schema.statement(chunkRule) + walked + r.schema.statement(chunkJudge) + gone + chunkResult
}

// oldest is the statement of OldestRow.
func (r *OutboxRows) oldest() string {
	return fmt.Sprintf("with least as (select (case when $2::boolean then date_trunc('day', now() - $1::bigint * interval '1 us', 'UTC') "+
		"else now() - $1::bigint * interval '1 us' end)::%[4]s as cutoff) "+
		"select coalesce(at, concat(cutoff)), coalesce(id, ''), at is not null from least left join (select concat(%[1]s) as at, concat(%[2]s) as id from %[3]s t "+
		"where %[1]s < (select cutoff from least) and %[5]s is not null order by %[1]s, %[2]s limit 1) t on true",
		r.column(r.table.CreatedAt), r.id.raw, r.name(), r.timeType, r.column(r.table.ID))
}

// planChunk makes the planner walk the index on the time, and look for each row in the indexes of the ledger and by its place in the
// table. To lose a deletion in a crash does no harm, so nobody waits for it to be durable.
const planChunk = `set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off; set local enable_hashjoin = off; set local enable_mergejoin = off; set local enable_material = off; ` +
	`set local jit = off; set local max_parallel_workers_per_gather = 0; set local synchronous_commit = off; set local plan_cache_mode = force_custom_plan`

// DeleteChunk looks at the next rows that are old enough, and deletes those that may be.
func (r *OutboxRows) DeleteChunk(ctx context.Context, db Beginner, q ChunkQuery) (Chunk, error) {
	var c Chunk
	err := r.inTurn(ctx, db, q, func(tx pgx.Tx) (err error) {
		c, err = r.chunk(ctx, tx, q)
		return err
	})
	return c, err
}

// OldestRow looks for the first row that is old enough. If there is none, it returns the place before which there is none. It may have to
// step over what was deleted and is not vacuumed away yet.
func (r *OutboxRows) OldestRow(ctx context.Context, db Beginner, q ChunkQuery) (place OutboxKey, found bool, err error) {
	err = r.inTurn(ctx, db, q, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, r.oldest(), q.Age.Microseconds(), q.WholeDays).Scan(&place.At, &place.ID, &found)
	})
	return place, found, err
}

// notRefused are the classes of errors that do not come from a row: connection, state of the transaction, resources, operators, system.
// All others may: a foreign key, or whatever a trigger of the user's does.
var notRefused = []string{"08", "0A", "25", "28", "3D", "40", "53", "54", "55", "57", "58", "F0", "XX"}

// inTurn runs do in a transaction, unless another session cleans the same table up just now.
func (r *OutboxRows) inTurn(ctx context.Context, db Beginner, q ChunkQuery, do func(tx pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("%s; set local statement_timeout = %d; set local lock_timeout = %d", planChunk,
			max(q.Patience.Milliseconds(), 1), max(q.LockPatience.Milliseconds(), 1))); err != nil {
			return err
		}
		var free bool
		err := tx.QueryRow(ctx, "select pg_try_advisory_xact_lock('pg_attribute'::regclass::oid::int, $1::bigint::int)", int64(int32(r.oid))).Scan(&free)
		if err != nil {
			return err
		}
		if !free {
			return ErrCleanupRuns
		}
		return do(tx)
	})
	pg, _ := errors.AsType[*pgconn.PgError](err)
	if pg == nil {
		return err
	}
	name := r.table.Schema + "." + r.table.Name
	switch {
	case pg.Code == "55P03" || pg.Code == "40P01": // lock_timeout, deadlock
		return fmt.Errorf("%w: %s: %w", ErrRowLocked, name, err)
	case pg.Code == "57014":
		return fmt.Errorf("%w: %s, within %s: %w", ErrChunkTooLong, name, q.Patience, err)
	case pg.Code == "42501" && r.grant != "":
		return fmt.Errorf("%w: %s", ErrMayNotDelete, r.grant)
	case pg.Code == "42501" && !q.Explain: // a trigger's, or row security
		return fmt.Errorf("%w: %s: %s", ErrRowRefused, name, pg.Message)
	case !q.Explain && !slices.Contains(notRefused, pg.Code[:2]):
		return fmt.Errorf("%w: %s: %s", ErrRowRefused, name, pg.Message)
	}
	return fmt.Errorf("delete old rows of %s: %w", name, err)
}

func (r *OutboxRows) chunk(ctx context.Context, tx pgx.Tx, q ChunkQuery) (Chunk, error) {
	var at, id any
	if q.From != nil {
		at, id = q.From.At, q.From.ID
	}
	var lsn, snapshot, until any
	if q.Until != "" {
		until = q.Until
	}
	if q.Witness.Snapshot != "" {
		lsn, snapshot = q.Witness.LSN, q.Witness.Snapshot
	}
	var c Chunk
	var may int64
	var last, waiting [][]string
	var needed, logged *time.Time
	err := tx.QueryRow(ctx, r.statement(&q), q.Age.Microseconds(), q.Limit, at, id, lsn, snapshot, until, q.WholeDays).Scan(&c.Blocked, &c.Deleted, &may, &c.Kept.Beyond, &c.Kept.Unread,
		&c.Kept.Unaccounted, &c.Kept.Locked, &last, &waiting, &needed, &logged, &c.Unaccounted, &c.Witness.Snapshot, &c.Witness.LSN, &c.Decides, &c.Hash)
	if err != nil {
		return Chunk{}, err
	}
	c.Kept.Refused = may - c.Deleted // a trigger may leave out rows without an error
	c.Last, c.Waiting = keyOf(last), keyOf(waiting)
	c.Full = may+c.Kept.Beyond+c.Kept.Unread+c.Kept.Unaccounted+c.Kept.Locked == int64(q.Limit)
	if needed != nil {
		c.LogNeeded = *needed
	}
	if logged != nil {
		c.Logged = *logged
	}
	return c, nil
}

// keyOf returns the key that chunkResult has written, nil if there is none.
func keyOf(rows [][]string) *OutboxKey {
	if len(rows) == 0 {
		return nil
	}
	return &OutboxKey{At: rows[0][0], ID: rows[0][1]}
}

// oldestMetrics is at how many rows DeleteMetrics looks for each one that it may delete. Rows were written in the order of their times, but for
// those of hours, which are written when the hour begins.
const oldestMetrics = 10

// DeleteMetrics deletes at most limit windows of outbox_metrics that ended this long ago, and returns how many. It looks at the oldest rows only: the
// table has a row a minute, and a pass that looked at all would read them all each minute.
func (s Schema) DeleteMetrics(ctx context.Context, db Execer, age time.Duration, limit int) (int64, error) {
	tag, err := db.Exec(ctx, s.statement(`delete from ledger.outbox_metrics where id in (
		select id from (select id, time_window from ledger.outbox_metrics order by id limit $3) oldest
		where upper(time_window) < now() - $1::bigint * interval '1 us' order by id limit $2)`), age.Microseconds(), limit, oldestMetrics*limit)
	return tag.RowsAffected(), err
}
