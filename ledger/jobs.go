package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// A job of outbox_backlog parks rows of the outbox for one sink that the stream does not carry, or that a person wants again. It delivers
// nothing itself: the lanes deliver what it has parked. A sink has one unfinished job at most.

// JobReason says what has filed a job.
type JobReason string

// The reasons of jobs.
const (
	JobOfInit      JobReason = "init"      // the first start on a filled table
	JobOfResync    JobReason = "resync"    // the slot was made anew
	JobOfReconcile JobReason = "reconcile" // the slot was found ahead of the checkpoint, or on another timeline
	JobOfSink      JobReason = "sink"      // a new sink with "backlog: all"
)

// JobFilter says which rows of the outbox a job compares. Its zero value means all.
type JobFilter struct {
	Since time.Time `json:"since,omitzero"`  // rows of this time and later
	Where string    `json:"where,omitempty"` // an SQL condition on the columns of the outbox
}

// NewJob is a job to be filed.
type NewJob struct {
	Processor int32
	Reason    JobReason
	// Base is the prefix before the gap: an event that was streamed at or before it is not missing. It is zero if there was no stream.
	Base checkpoint.Position
	// Start is where the stream begins after the gap, or after an earlier one whose job was not finished. The job's rows have positions
	// before (Start, 0), and what stands behind waits for the job.
	Start pglogrepl.LSN
	// SnapshotXmax is pg_snapshot_xmax after the slot was made. The job reads its first rows once no older transaction runs, because a row
	// may be committed and not visible yet. 0: it need not wait.
	SnapshotXmax uint64
	Filter       JobFilter
	Estimate     int64 // how many rows it will compare, for people; 0: nobody knows
}

// Job is a job that is not finished.
type Job struct {
	ID int64
	NewJob
	Cursor  []byte // JSON: the keys of the last row that was compared; empty: it has not begun
	Ordinal int64  // how many rows it has parked
	Walked  int64  // how many rows it has compared
	Filed   time.Time
}

// FileJobs files jobs, in the caller's transaction. A job replaces an unfinished one of the same sink, and takes the lower base of the two,
// so that nothing is left out that the other one would still have found. It takes the lower start as well: what the stream has brought since
// that one was filed waits behind the rows that it has not parked yet. It does not take over the filter: see Declined.
func (s Schema) FileJobs(ctx context.Context, tx pgx.Tx, jobs []NewJob) error {
	for i := range jobs {
		if err := s.fileJob(ctx, tx, &jobs[i]); err != nil {
			return fmt.Errorf("file a backlog job: %w", err)
		}
	}
	return nil
}

func (s Schema) fileJob(ctx context.Context, tx pgx.Tx, j *NewJob) error {
	filter, err := json.Marshal(j.Filter)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, s.statement(`with replaced as (
			update ledger.outbox_backlog set status = 'done', finished_at = clock_timestamp() where processor_id = $1 and status <> 'done' and mode = 'missing'
			returning base_lsn, base_index, start_lsn)
		insert into ledger.outbox_backlog (processor_id, mode, reason, base_lsn, base_index, start_lsn, snapshot_xmax, filter, estimate, status)
		select $1, 'missing', $2, base_lsn, base_index, least($5::pg_lsn, (select min(start_lsn) from replaced)), nullif($6::text, '0')::xid8,
			$7::jsonb, nullif($8, 0), 'running'
		from (select $3::pg_lsn, $4::bigint union all select base_lsn, base_index from replaced) as b (base_lsn, base_index)
		order by base_lsn, base_index limit 1`),
		j.Processor, j.Reason, j.Base.LSN, j.Base.Index, j.Start, fmt.Sprint(j.SnapshotXmax), filter, j.Estimate)
	return err
}

// UnfinishedJobs returns the unfinished jobs of these sinks.
func (s Schema) UnfinishedJobs(ctx context.Context, db Querier, processors []int32) ([]Job, error) {
	rows, err := db.Query(ctx, s.statement(`select id, processor_id, coalesce(reason, ''), coalesce(base_lsn, '0/0'), coalesce(base_index, 0), coalesce(start_lsn, '0/0'),
			coalesce(snapshot_xmax::text, '0'), coalesce(filter, '{}'), coalesce(cursor::text, ''), ordinal, walked, coalesce(estimate, 0), created_at
		from ledger.outbox_backlog where processor_id = any ($1) and status <> 'done' and mode = 'missing' order by id`), processors)
	if err != nil {
		return nil, fmt.Errorf("read backlog jobs: %w", err)
	}
	jobs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Job, error) {
		var j Job
		var xmax, cursor string
		err := row.Scan(&j.ID, &j.Processor, &j.Reason, &j.Base.LSN, &j.Base.Index, &j.Start, &xmax, &j.Filter, &cursor, &j.Ordinal, &j.Walked, &j.Estimate, &j.Filed)
		if err == nil {
			_, err = fmt.Sscan(xmax, &j.SnapshotXmax)
		}
		j.Cursor = []byte(cursor)
		return j, err
	})
	if err != nil {
		return nil, fmt.Errorf("read backlog jobs: %w", err)
	}
	return jobs, nil
}

// JobProgress is how far a job has come, for people.
type JobProgress struct {
	Job
	Finished time.Time // zero as long as it is not
	Replaced bool      // it was not finished when a later job of the sink took its place
}

// ReadJobs returns the jobs of these sinks that are not finished, and those that have finished within a time. They are in the order in which
// they were filed.
func (s Schema) ReadJobs(ctx context.Context, db Querier, processors []int32, within time.Duration) ([]JobProgress, error) {
	rows, err := db.Query(ctx, s.statement(`select id, processor_id, coalesce(reason, ''), coalesce(filter, '{}'), ordinal, walked, coalesce(estimate, 0), created_at, finished_at,
			exists (select from ledger.outbox_backlog later where later.processor_id = j.processor_id and later.mode = j.mode and later.id > j.id and later.created_at <= j.finished_at)
		from ledger.outbox_backlog j where processor_id = any ($1) and mode = 'missing' and (status <> 'done' or finished_at > clock_timestamp() - $2 * interval '1 s') order by id`),
		processors, within.Seconds())
	if err != nil {
		return nil, fmt.Errorf("read backlog jobs: %w", err)
	}
	jobs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (JobProgress, error) {
		var j JobProgress
		var finished *time.Time
		err := row.Scan(&j.ID, &j.Processor, &j.Reason, &j.Filter, &j.Ordinal, &j.Walked, &j.Estimate, &j.Filed, &finished, &j.Replaced)
		if finished != nil {
			j.Finished = *finished
		}
		return j, err
	})
	if err != nil {
		return nil, fmt.Errorf("read backlog jobs: %w", err)
	}
	return jobs, nil
}

// writeJobSteps writes how far jobs have come. A job that was replaced meanwhile stays as it is.
func (w *BatchWriter) writeJobSteps(ctx context.Context, batch []checkpoint.Outcomes) error {
	q := &pgx.Batch{}
	for i := range batch {
		if step := batch[i].Job; step != nil {
			q.Queue(w.cfg.Schema.statement(`update ledger.outbox_backlog set cursor = $2::jsonb, ordinal = $3, walked = $4, estimate = coalesce(nullif($6::bigint, 0), estimate),
				status = case when $5 then 'done' else status end, finished_at = case when $5 then clock_timestamp() end
				where id = $1 and status <> 'done'`), step.Job, string(step.Cursor), step.Ordinal, step.Walked, step.Done, step.Estimate)
		}
	}
	if q.Len() == 0 {
		return nil
	}
	if err := w.conn.SendBatch(ctx, q).Close(); err != nil {
		return fmt.Errorf("write how far a backlog job has come: %w", err)
	}
	return nil
}
