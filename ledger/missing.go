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

// A row of the outbox is missing for a sink if the ledger knows nothing that has become of it there. All three must hold:
//
//  1. outbox_parked has no row of the event for this sink;
//  2. the log has no row of the event for this sink that ends a delivery (delivered, dead or discarded);
//  3. nothing says, for any sink, that the event was streamed at or before the base, which is the prefix before the gap. An event that was
//     streamed then, and that the routes of that time did not give to this sink, would otherwise look like a loss.
//
// Beside that a row may not be owed at all: because of outbox_processors.since, of a job's filter, or because no route leads to the sink.
//
// missingRule has event_id in the place of {id}, the processor in that of {processor}, and the base in {base_lsn} and {base_index}.
const missingRule = `not exists (select from ledger.outbox_parked p where p.event_id = {id}
			and (p.processor_id = {processor} or p.tx_index >= 0 and (p.commit_lsn, p.tx_index) <= ({base_lsn}, {base_index})))
		and not exists (select from ledger.outbox_delivery_log l where l.event_id = {id}
			and (l.processor_id = {processor} and l.status in ('delivered', 'dead', 'discarded') or l.tx_index >= 0 and (l.commit_lsn, l.tx_index) <= ({base_lsn}, {base_index})))`

// MissingQuery says which rows of the outbox to compare with the ledger.
type MissingQuery struct {
	Processor int32
	// Base is the prefix before the gap; zero if nothing was streamed before.
	Base checkpoint.Position
	IDs  []string // of the events
}

// Missing returns which of the events are missing for a sink: their places in q.IDs, in order.
func (s Schema) Missing(ctx context.Context, db Beginner, q MissingQuery) ([]int, error) {
	var missing []int
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set transaction read only; "+planByIndex); err != nil {
			return err
		}
		uuids, err := s.uuidIDs(ctx, tx, "outbox_delivery_log")
		if err != nil {
			return err
		}
		idType := "text"
		if uuids {
			idType = "uuid"
		}
		base := q.Base
		if base == (checkpoint.Position{}) {
			base = checkpoint.MinPosition
		}
		rule := strings.NewReplacer("{id}", "i.id", "{processor}", "$2", "{base_lsn}", "$3", "{base_index}", "$4").Replace(missingRule)
		rows, err := tx.Query(ctx, s.statement(fmt.Sprintf("select n - 1 from unnest($1::text[]::%s[]) with ordinality as i (id, n) where %s order by n", idType, rule)),
			q.IDs, q.Processor, base.LSN, base.Index)
		if err != nil {
			return err
		}
		missing, err = pgx.CollectRows(rows, pgx.RowTo[int])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("compare rows of the outbox with the ledger: %w", err)
	}
	return missing, nil
}

// planByIndex makes the planner look for each event in the indexes of the ledger.
const planByIndex = "set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_hashjoin = off; set local enable_mergejoin = off; " +
	"set local enable_material = off; set local jit = off; set local max_parallel_workers_per_gather = 0; set local plan_cache_mode = force_custom_plan"

// OwedSince returns the time of the first rows that a job with a base looks at, or the zero time for all rows: an hour before
// outbox_processors.since, or the begin of the newest partition of the log that was dropped, whichever is later. Both are earlier by the
// age of the oldest transaction that runs now, because the times of its rows are older than its commit. Events before since are not owed.
// What has become of events before the dropped partition nobody can know: they would all look as if they were missing.
func (s Schema) OwedSince(ctx context.Context, db Querier, processor int32) (time.Time, error) {
	var since *time.Time
	err := db.QueryRow(ctx, s.statement(`select greatest(case when isfinite(p.since) then p.since - interval '1 hour' end, r.log_dropped_until - interval '1 day')
			- coalesce((select greatest(now() - min(xact_start), interval '0') from pg_stat_activity), interval '0')
		from ledger.outbox_processors p left join ledger.outbox_retention r on true where p.id = $1`), processor).Scan(&since)
	if err != nil {
		return time.Time{}, fmt.Errorf("read since when events are owed to processor %d: %w", processor, err)
	}
	if since == nil {
		return time.Time{}, nil
	}
	return *since, nil
}

// Declined is what an "init --backlog" has left out: rows from before a time that its filter does not want. They are owed to nobody, however
// often the slot is made anew. Its zero value is nothing.
type Declined struct {
	Filter JobFilter
	Before time.Time
}

// since returns a time before which all rows are left out; zero if there is none.
func (l *Declined) since() time.Time {
	if l.Filter.Since.After(l.Before) {
		return l.Before
	}
	return l.Filter.Since
}

// selectChosen reads the filter that was chosen last for the rows from before a sink's stream: by an "init --backlog", or by "backlog: all" of
// a new sink. It is in force for all later jobs of the sink, which have no filter of their own.
const selectChosen = `select distinct on (processor_id) id, processor_id, coalesce(filter, '{}') as filter, created_at
	from ledger.outbox_backlog where mode = 'missing' and reason in ('init', 'sink') order by processor_id, id desc`

// declined returns what the init before a job has left out. As in OwedSince, the time is earlier than that of the init by an hour and by the
// age of the oldest transaction: the times of rows that were written after it may be earlier.
func (s Schema) declined(ctx context.Context, db Querier, j *Job) (l Declined, err error) {
	err = db.QueryRow(ctx, s.statement(`select filter, created_at - interval '1 hour'
			- coalesce((select greatest(now() - min(xact_start), interval '0') from pg_stat_activity), interval '0')
		from (`+selectChosen+`) as chosen where processor_id = $1 and id < $2 and filter <> '{}'`), j.Processor, j.ID).Scan(&l.Filter, &l.Before)
	if errors.Is(err, pgx.ErrNoRows) {
		return Declined{}, nil
	}
	if err != nil {
		return Declined{}, fmt.Errorf("read what init has left out for processor %d: %w", j.Processor, err)
	}
	return l, nil
}

// XminReached reports whether all transactions with a lower id than xmax have ended, for everybody to see.
func (s Schema) XminReached(ctx context.Context, db Querier, xmax uint64) (reached bool, err error) {
	err = db.QueryRow(ctx, "select pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8", fmt.Sprint(xmax)).Scan(&reached)
	if err != nil {
		return false, fmt.Errorf("ask for the oldest transaction: %w", err)
	}
	return reached, nil
}

// MarkWAL returns an LSN at or behind the commit of every row that could be seen before the call. It also writes and flushes some WAL
// behind it. Otherwise the stream might not come to this LSN for a long time: what nobody waits for is flushed late, or not at all on an
// idle server.
func (s Schema) MarkWAL(ctx context.Context, db Querier, job int64) (lsn pglogrepl.LSN, err error) {
	err = db.QueryRow(ctx, s.statement("update ledger.outbox_backlog set walked = walked where id = $1 returning pg_current_wal_insert_lsn()"), job).Scan(&lsn)
	if err != nil {
		return 0, fmt.Errorf("ask how far the server has written: %w", err)
	}
	return lsn, nil
}
