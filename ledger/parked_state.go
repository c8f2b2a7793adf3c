package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// ParkedCount is what a sink has in outbox_parked.
type ParkedCount struct {
	Parked, Dead int64
	Oldest       time.Duration // for how long the oldest parked row has been parked
}

// CountParked counts the rows of these processors. It may have to look at millions of rows.
func (s Schema) CountParked(ctx context.Context, db Querier, processors []int32) (map[int32]ParkedCount, error) {
	rows, err := db.Query(ctx, s.statement(`select p.id, count(*) filter (where k.status = 'parked'), count(*) filter (where k.status = 'dead'),
			coalesce(extract(epoch from clock_timestamp() - min(k.parked_at) filter (where k.status = 'parked')), 0)::float8
		from ledger.outbox_processors p left join ledger.outbox_parked k on k.processor_id = p.id where p.id = any ($1) group by p.id`), processors)
	if err != nil {
		return nil, fmt.Errorf("count parked rows: %w", err)
	}
	counts := map[int32]ParkedCount{}
	var id int32
	var c ParkedCount
	var oldest float64
	_, err = pgx.ForEachRow(rows, []any{&id, &c.Parked, &c.Dead, &oldest}, func() error {
		c.Oldest = time.Duration(oldest * float64(time.Second))
		counts[id] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count parked rows: %w", err)
	}
	return counts, nil
}

// ParkedPolicy is what the configuration says of the times of parked rows.
type ParkedPolicy struct {
	Longest    time.Duration // no row is due later than this, from now
	DeadBlocks bool          // a dead row holds its aggregate
}

// ReviseParked makes the times of parked rows fit the configuration.
func (s Schema) ReviseParked(ctx context.Context, db Execer, processors []int32, policy ParkedPolicy) error {
	_, err := db.Exec(ctx, s.statement(`update ledger.outbox_parked set next_attempt_at = now() + $2
		where processor_id = any ($1) and next_attempt_at > now() + $2 and next_attempt_at < 'infinity'`), processors, policy.Longest)
	if err == nil && policy.DeadBlocks {
		_, err = db.Exec(ctx, s.statement(`update ledger.outbox_parked set next_attempt_at = 'infinity'
			where processor_id = any ($1) and status = 'dead' and next_attempt_at is null`), processors)
	} else if err == nil {
		_, err = db.Exec(ctx, s.statement(`update ledger.outbox_parked set next_attempt_at = null
			where processor_id = any ($1) and status = 'dead' and next_attempt_at is not null`), processors)
	}
	if err != nil {
		return fmt.Errorf("revise outbox_parked: %w", err)
	}
	return nil
}
