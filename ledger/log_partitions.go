package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// LogPartition is a partition of outbox_delivery_log.
type LogPartition struct {
	Name string
	// From and Until bound the times of its rows; Until is exclusive. They are zero where there is no bound.
	From, Until time.Time
	Bytes       int64 // with indexes
	// Outcome is what DropLogPartition has done with the partition, or what PlanLogDrop says that it would do. LogPartitions leaves it empty.
	Outcome LogOutcome
	// Reason is a text for people; "" if Outcome says it all.
	Reason string
}

// LogOutcome says what became of a partition of the log that was to be dropped, and why it stays.
type LogOutcome string

// The outcomes, as the function outbox_drop_log_partitions gives them.
const (
	LogDropped   LogOutcome = "dropped"
	LogYoung     LogOutcome = "young"     // it is to be kept longer, or may still be written
	LogUnsettled LogOutcome = "unsettled" // it has rows beyond the prefix of a slot
	LogHeld      LogOutcome = "held"      // a slot is being made, or a job of outbox_backlog is unfinished
	LogBusy      LogOutcome = "busy"      // somebody uses it or the log: try again later
	LogRefused   LogOutcome = "refused"   // PostgreSQL has refused to drop it
	LogForeign   LogOutcome = "foreign"   // it is not ours, and was passed over
	LogBehind    LogOutcome = "behind"    // an older one has to stay
)

// LogCutoff says which partitions of the log may be dropped.
type LogCutoff struct {
	// Age is how old all rows of a partition have to be, by PostgreSQL's clock.
	Age time.Duration
	// Needed is the time of the oldest row that something else needs, the zero time if there is none. Its partition stays, with all that
	// are newer.
	Needed time.Time
}

// DropLogPartition drops the oldest partition of the log if all of its rows are old enough, and if no session needs them any more: see file 007 of package migrations. It returns the partitions that it has looked at, the oldest first. If the last
// one was dropped, call it again for the next one. It never waits for a lock longer than a few tenths of a second.
//
// It must be a transaction of its own: the COMMIT then ends the lock on the log.
func (s Schema) DropLogPartition(ctx context.Context, db Querier, cutoff LogCutoff) ([]LogPartition, error) {
	all, err := s.callLogDrop(ctx, db, cutoff, "false")
	if err != nil {
		return nil, fmt.Errorf("drop a partition of the delivery log: %w", err)
	}
	return all, nil
}

// PlanLogDrop returns all partitions of the log, the oldest first, with what would become of them if DropLogPartition was called now until
// nothing more can be dropped. It changes nothing and locks nothing.
func (s Schema) PlanLogDrop(ctx context.Context, db Querier, cutoff LogCutoff) ([]LogPartition, error) {
	all, err := s.callLogDrop(ctx, db, cutoff, "true")
	if err != nil {
		return nil, fmt.Errorf("look which partitions of the delivery log may be dropped: %w", err)
	}
	return all, nil
}

// callLogDrop gives both arguments their exact types, as MakePartitions does. dryRun is a boolean of SQL.
func (s Schema) callLogDrop(ctx context.Context, db Querier, cutoff LogCutoff, dryRun string) ([]LogPartition, error) {
	rows, err := db.Query(ctx, s.statement(`select partition, lower_bound, upper_bound, coalesce(bytes, 0), outcome, coalesce(reason, '')
		from ledger.outbox_drop_log_partitions(least(now() - $1::interval, $2::timestamptz), `+dryRun+`)`),
		pgtype.Interval{Microseconds: cutoff.Age.Microseconds(), Valid: true}, timeOrNil(cutoff.Needed))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanLogPartition)
}

// LogPartitions returns all partitions of the log with their sizes, the oldest first. It reads catalogs only.
func (s Schema) LogPartitions(ctx context.Context, db Querier) ([]LogPartition, error) {
	rows, err := db.Query(ctx, `with child as (
			select c.oid, relname::text as name, pg_get_expr(relpartbound, c.oid) as bound
			from pg_inherits join pg_class c on c.oid = inhrelid
			where inhparent = (select l.oid from pg_class l join pg_namespace n on n.oid = l.relnamespace where nspname = $1 and relname = 'outbox_delivery_log'))
		select name, substring(bound from 'FROM \(''([^'']+)''\)')::timestamptz, substring(bound from 'TO \(''([^'']+)''\)')::timestamptz as until,
			coalesce(pg_total_relation_size(oid), 0), '', ''
		from child order by until, name`, string(s))
	if err != nil {
		return nil, fmt.Errorf("look at the partitions of the delivery log: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanLogPartition)
	if err != nil {
		return nil, fmt.Errorf("look at the partitions of the delivery log: %w", err)
	}
	return all, nil
}

func scanLogPartition(row pgx.CollectableRow) (p LogPartition, err error) {
	var from, until pgtype.Timestamptz
	err = row.Scan(&p.Name, &from, &until, &p.Bytes, &p.Outcome, &p.Reason)
	p.From, p.Until = from.Time, until.Time // zero if they are infinite
	return p, err
}

// RetentionState is the row of outbox_retention.
type RetentionState struct {
	// LogDroppedUntil is the end of the newest partition of the log that was dropped with rows in it; zero if there was none.
	LogDroppedUntil time.Time
	// LastPassAt is when the last pass of the cleanup has written its report; zero if none has.
	LastPassAt time.Time
	// Report is what the pass has written, a JSON object.
	Report json.RawMessage
}

// ReadRetention reads the row of outbox_retention.
func (s Schema) ReadRetention(ctx context.Context, db Querier) (RetentionState, error) {
	var r RetentionState
	var dropped, pass *time.Time
	err := db.QueryRow(ctx, s.statement("select log_dropped_until, last_pass_at, report from ledger.outbox_retention")).Scan(&dropped, &pass, &r.Report)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return r, fmt.Errorf("read outbox_retention: %w", err)
	}
	if dropped != nil {
		r.LogDroppedUntil = *dropped
	}
	if pass != nil {
		r.LastPassAt = *pass
	}
	return r, nil
}

// WriteRetentionReport writes the report of a pass of the cleanup, a JSON object, with the present time.
func (s Schema) WriteRetentionReport(ctx context.Context, db Execer, report json.RawMessage) error {
	_, err := db.Exec(ctx, s.statement(`insert into ledger.outbox_retention as r (id, last_pass_at, report) values (1, clock_timestamp(), $1::jsonb)
		on conflict (id) do update set last_pass_at = excluded.last_pass_at, report = excluded.report`), report)
	if err != nil {
		return fmt.Errorf("write outbox_retention: %w", err)
	}
	return nil
}
