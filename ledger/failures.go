package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// mostFailures is how many of the newest failed tries ReadFailures looks at.
const mostFailures = 200_000

// FailureRun is a run of failed tries of a sink, as the log has them: no two of them that follow each other are further apart than
// FailuresQuery.Gap. The log does not have why a try failed but as a text: a run is an outage of the destination, or single messages that it
// refuses again and again.
type FailureRun struct {
	Processor   int32
	From, Until time.Time // the first and the last of the tries
	Tries       int64
	LastError   string
	// Minutes counts the whole minutes of the run, and Accepted those of them in which the sink has accepted something.
	Minutes, Accepted int64
}

// FailuresQuery says which failures ReadFailures reads.
type FailuresQuery struct {
	Processors []int32
	From       time.Time
	// Gap is the longest time between two failed tries of a run. It is longer than a sink is ever left alone.
	Gap time.Duration
}

// Failures are runs of failed tries, in order of time.
type Failures struct {
	Runs []FailureRun
	// More says that the log has more failed tries than were looked at, which are older.
	More bool
	// Died counts the deliveries that have become dead letters, by processor. 0 is for what belongs to no sink.
	Died map[int32]int64
}

// A minute in which a sink has accepted something has a row p50.
const readFailures = `with tries as (
		select processor_id, completed_at, coalesce(error_message, '') as error,
			lag(completed_at) over (partition by processor_id order by completed_at) as before
		from (select processor_id, completed_at, error_message from ledger.outbox_delivery_log
			where status = 'failed' and completed_at >= $2 order by completed_at desc limit $4) newest
		where processor_id = any ($1)),
	numbered as (
		select *, count(*) filter (where before is null or completed_at - before > $3) over (partition by processor_id order by completed_at) as run from tries),
	runs as (
		select processor_id, min(completed_at) as first, max(completed_at) as last, count(*) as tries, (array_agg(error order by completed_at desc))[1] as error
		from numbered group by processor_id, run),
	accepted as materialized (
		select distinct processor_id, lower(time_window) as minute from ledger.outbox_metrics
		where metric_type = 'p50' and processor_id = any ($1) and lower(time_window) >= $2)
	select r.processor_id, r.first, r.last, r.tries, r.error,
		greatest(0, extract(epoch from date_trunc('minute', r.last) - date_trunc('minute', r.first + interval '1 minute'))::bigint / 60),
		(select count(*) from accepted a where a.processor_id = r.processor_id and a.minute > r.first and a.minute + interval '1 minute' <= r.last)
	from runs r order by r.first, r.processor_id`

// ReadFailures reads what the log has of failed tries and of deaths.
func (s Schema) ReadFailures(ctx context.Context, db Querier, q FailuresQuery) (f Failures, err error) {
	rows, err := db.Query(ctx, s.statement(readFailures), q.Processors, q.From, q.Gap, mostFailures)
	if err != nil {
		return f, fmt.Errorf("read the failed tries: %w", err)
	}
	var all int64
	f.Runs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r FailureRun, err error) {
		err = row.Scan(&r.Processor, &r.From, &r.Until, &r.Tries, &r.LastError, &r.Minutes, &r.Accepted)
		all += r.Tries
		return r, err
	})
	if err != nil {
		return f, fmt.Errorf("read the failed tries: %w", err)
	}
	f.More = all == mostFailures
	f.Died = map[int32]int64{}
	rows, err = db.Query(ctx, s.statement(`select processor_id, count(*) from ledger.outbox_delivery_log
		where status = 'dead' and completed_at >= $1 group by processor_id`), q.From)
	if err != nil {
		return f, fmt.Errorf("count what has died: %w", err)
	}
	var id int32
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&id, &n}, func() error { f.Died[id] = n; return nil })
	if err != nil {
		return f, fmt.Errorf("count what has died: %w", err)
	}
	return f, nil
}
