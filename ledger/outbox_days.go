package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// OutboxDay is a partition of event_outbox that ended a day ago or longer.
type OutboxDay struct {
	OID  uint32
	Name string
	// From and Until bound the times of its rows, as OutboxKey.At has them; Until is exclusive.
	From, Until string
	Bytes       int64 // with indexes
}

// DayRows says which rows a day had when they were looked at.
type DayRows struct {
	Rows int64
	Hash int64 // bit_xor of hashtextextended(id::text, 0) of all of them
}

// DayOutcome says what became of a day that was to be dropped.
type DayOutcome string

// The outcomes, as the function outbox_drop_event_day gives them.
const (
	DayDropped DayOutcome = "dropped"
	DayChanged DayOutcome = "changed" // it has other rows than those that were looked at
	DayHeld    DayOutcome = "held"    // a slot is being made, or a job of outbox_backlog is unfinished
	DayBusy    DayOutcome = "busy"    // somebody uses it or event_outbox: try again later
	DayRefused DayOutcome = "refused" // its rows have to be deleted one by one
)

// ByDay reports whether the table is an event_outbox that is partitioned by day, of which the login may drop days.
func (r *OutboxRows) ByDay() bool { return r.byDay }

func (r *OutboxRows) dropsDays(ctx context.Context, db Querier) (drops bool, err error) {
	err = db.QueryRow(ctx, `select exists (select from pg_class o join pg_namespace n on n.oid = relnamespace join pg_partitioned_table on partrelid = o.oid
			join pg_attribute on attrelid = o.oid and attnum = partattrs[0]
			join pg_proc p on p.oid = to_regprocedure(format('%I.outbox_drop_event_day(oid, bigint, bigint)', $2::text))
		where o.oid = $1 and nspname = $2 and relname = 'event_outbox' and partstrat = 'r' and partnatts = 1 and attname = 'created_at'
			and has_function_privilege(p.oid, 'execute'))`, r.oid, string(r.schema)).Scan(&drops)
	return drops, err
}

// Days returns the partitions of whole days that are older than age, and ended a day ago or longer, the oldest first; none unless ByDay.
// It reads catalogs only.
func (r *OutboxRows) Days(ctx context.Context, db Querier, age time.Duration) ([]OutboxDay, error) {
	if !r.byDay {
		return nil, nil
	}
	rows, err := db.Query(ctx, `select p.oid, relname::text, coalesce(concat(substring(bound from 'FROM \(''([^'']+)''\)')::timestamptz), ''),
			concat(until::timestamptz), coalesce(pg_total_relation_size(p.oid), 0)
		from pg_inherits join pg_class p on p.oid = inhrelid cross join lateral pg_get_expr(relpartbound, p.oid) as bound
			cross join lateral substring(bound from '^FOR VALUES FROM \(.*\) TO \(''([^'']*)''\)$') as until
		where inhparent = $1 and relkind = 'r' and until is not null
			and until::timestamptz <= now() - greatest($2::bigint * interval '1 us', interval '1 day')
		order by until::timestamptz`, r.oid, age.Microseconds())
	if err != nil {
		return nil, fmt.Errorf("look at the days of event_outbox: %w", err)
	}
	days, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d OutboxDay, err error) {
		err = row.Scan(&d.OID, &d.Name, &d.From, &d.Until, &d.Bytes)
		if d.From == "" { // no lower bound
			d.From = "-infinity"
		}
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("look at the days of event_outbox: %w", err)
	}
	return days, nil
}

// DropDay drops a day with all of its rows, which the caller has looked at and which may all be deleted: see file 008 of package
// migrations. The reason is a text for people. It waits for a lock for some tenths of a second at most, and patience bounds the
// time in which the rows are counted.
func (r *OutboxRows) DropDay(ctx context.Context, db Beginner, day OutboxDay, rows DayRows, patience time.Duration) (outcome DayOutcome, reason string, err error) {
	err = r.inTurn(ctx, db, ChunkQuery{Patience: patience, LockPatience: time.Second, Explain: true}, func(tx pgx.Tx) error {
		// planChunk is for chunks: here all rows are read.
		if _, err := tx.Exec(ctx, "set local enable_seqscan = on; set local enable_bitmapscan = on"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, r.schema.statement("select outcome, coalesce(reason, '') from ledger.outbox_drop_event_day($1::oid, $2::bigint, $3::bigint)"),
			day.OID, rows.Rows, rows.Hash).Scan(&outcome, &reason)
	})
	if errors.Is(err, ErrChunkTooLong) {
		return DayRefused, "its rows were not counted within " + patience.String(), nil
	}
	return outcome, reason, err
}
