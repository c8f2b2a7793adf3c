package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// firstLSN is before every LSN of a server: its first WAL segment has the number 1, and no segment is smaller than this. Parked rows
// that were renumbered have positions before it.
const firstLSN = pglogrepl.LSN(1 << 20)

// BeginRebuild makes a checkpoint that is ready building again, and returns it. What it says of the slot before stays in it: only
// SetReady replaces it. So whoever is killed in between can begin again, and still knows where the gap begins. The epoch is raised
// first, so that no session of the slot before can move the prefix afterwards.
func (s Schema) BeginRebuild(ctx context.Context, conn *pgx.Conn, slot string) (*Checkpoint, error) {
	_, err := conn.Exec(ctx, s.statement("update ledger.outbox_checkpoints set state = $2, epoch = epoch + 1, updated_at = clock_timestamp() where slot_name = $1 and state = $3"),
		slot, Building, ready)
	if err != nil {
		return nil, fmt.Errorf("write the checkpoint of slot %q: %w", slot, err)
	}
	c, err := s.ReadCheckpoint(ctx, conn, slot)
	if err == nil && c == nil {
		err = fmt.Errorf("the checkpoint of slot %q is gone: somebody has deleted it", slot)
	}
	return c, err
}

// OweSince notes from when on these sinks are owed events: the zero time means all of them.
func (s Schema) OweSince(ctx context.Context, db Execer, processors []int32, since time.Time) error {
	sql := "'-infinity'"
	args := []any{processors}
	if !since.IsZero() {
		sql, args = "$2", append(args, since)
	}
	return s.owe(ctx, db, sql, args)
}

// OweFromNow notes that these sinks are owed no event from before now.
func (s Schema) OweFromNow(ctx context.Context, db Execer, processors []int32) error {
	return s.owe(ctx, db, "now()", []any{processors})
}

func (s Schema) owe(ctx context.Context, db Execer, since string, args []any) error {
	if _, err := db.Exec(ctx, s.statement("update ledger.outbox_processors set since = "+since+" where id = any ($1)"), args...); err != nil {
		return fmt.Errorf("note since when sinks are owed events: %w", err)
	}
	return nil
}

// SnapshotXmax asks for what NewJob.SnapshotXmax is.
func (s Schema) SnapshotXmax(ctx context.Context, db Querier) (xmax uint64, err error) {
	var text string
	if err = db.QueryRow(ctx, "select pg_snapshot_xmax(pg_current_snapshot())::text").Scan(&text); err == nil {
		_, err = fmt.Sscan(text, &xmax)
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the snapshot: %w", err)
	}
	return xmax, nil
}

// ProcessorIDs returns the ids of all sinks that outbox_processors has of a connector.
func (s Schema) ProcessorIDs(ctx context.Context, db Querier, connector string) ([]int32, error) {
	rows, err := db.Query(ctx, s.statement("select id from ledger.outbox_processors where connector = $1"), connector)
	if err != nil {
		return nil, fmt.Errorf("read sinks: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[int32])
}

// EndJobs ends the unfinished jobs of these sinks: what they would still have parked is not owed any more.
func (s Schema) EndJobs(ctx context.Context, tx pgx.Tx, processors []int32) error {
	_, err := tx.Exec(ctx, s.statement(`update ledger.outbox_backlog set status = 'done', finished_at = clock_timestamp()
		where processor_id = any ($1) and status <> 'done'`), processors)
	if err != nil {
		return fmt.Errorf("end backlog jobs: %w", err)
	}
	return nil
}

// CountOwed returns how many events the ledger still owes to sinks. It counts up to a limit.
func (s Schema) CountOwed(ctx context.Context, db Querier, limit int) (n int, err error) {
	err = db.QueryRow(ctx, s.statement("select count(*) from (select from ledger.outbox_parked where status = 'parked' limit $1) as owed"), limit).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count parked rows: %w", err)
	}
	return n, nil
}

// Renumber gives parked rows positions before every LSN of a server, in the order that they have. It is for a ledger that has come from a
// server with another history: rows at or beyond the start of the new slot would be taken for events of this server's future.
//
// A row that was streamed at or before base keeps a position with an index from 0 on, and every other one gets a negative index. The
// difference matters to backlog jobs: an event that was streamed at or before base is missing for no sink. So the rows are numbered in
// groups of one kind, each group with an LSN of its own. Rows that were renumbered before stay as they are.
//
// If a sink has an unfinished job, its rows at or beyond the job's start wait behind what the job finds. They still do so afterwards, and behind
// what the job finds that replaces it: such rows come last, and the jobs' start is the LSN in front of them.
func (s Schema) Renumber(ctx context.Context, tx pgx.Tx, base checkpoint.Position) error {
	_, err := tx.Exec(ctx, s.statement(`with unfinished as (
			select processor_id, min(start_lsn) as start_lsn from ledger.outbox_backlog where status <> 'done' and mode = 'missing' group by 1),
		placed as (
			select processor_id, commit_lsn, tx_index, tx_index >= 0 and (commit_lsn, tx_index) <= ($1::pg_lsn, $2::bigint) as streamed,
				coalesce((commit_lsn, tx_index) >= (start_lsn, 0), false) as behind
			from ledger.outbox_parked left join unfinished using (processor_id) where commit_lsn >= $3::pg_lsn),
		turns as (select *, streamed is distinct from lag(streamed) over w or behind is distinct from lag(behind) over w as turn
			from placed window w as (order by behind, commit_lsn, tx_index, processor_id)),
		groups as (select *, count(*) filter (where turn) over (order by behind, commit_lsn, tx_index, processor_id) as number,
			dense_rank() over (order by behind, commit_lsn, tx_index) as place from turns),
		front as (
			select lsn, lsn + coalesce((select max(number) from groups where not behind), 0) + 1::numeric as start_lsn
			from (select coalesce(max(commit_lsn), '0/0') as lsn from ledger.outbox_parked where commit_lsn < $3::pg_lsn) as low),
		jobs as (update ledger.outbox_backlog set start_lsn = (select start_lsn from front) where status <> 'done' and mode = 'missing' and start_lsn >= $3::pg_lsn)
		update ledger.outbox_parked p
			set commit_lsn = (select lsn from front) + number::numeric + behind::int::numeric,
				tx_index = case when streamed then place else place - (1::bigint << 62) end
			from groups g where p.processor_id = g.processor_id and p.commit_lsn = g.commit_lsn and p.tx_index = g.tx_index`),
		base.LSN, base.Index, firstLSN)
	if err != nil {
		return fmt.Errorf("number parked rows anew: %w", err)
	}
	return nil
}

// DiscardOwed deletes what the ledger still owes to sinks, writes a row into the log for each, and returns how many there were. Dead
// letters stay. The log's partition of today must exist.
func (s Schema) DiscardOwed(ctx context.Context, tx pgx.Tx, slot, reason string) (int64, error) {
	tag, err := tx.Exec(ctx, s.statement(`with changed as (delete from ledger.outbox_parked where status = 'parked'
			returning event_id, processor_id, tries, commit_lsn, tx_index)
		insert into ledger.outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, error_message, commit_lsn, tx_index, epoch)
		select event_id, processor_id, tries, 'discarded', clock_timestamp(), $2, commit_lsn, tx_index,
			coalesce((select epoch from ledger.outbox_checkpoints where slot_name = $1), 0) from changed`), slot, cleanText(reason))
	if err != nil {
		return 0, fmt.Errorf("discard parked rows: %w", err)
	}
	return tag.RowsAffected(), nil
}
