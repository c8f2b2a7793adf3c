package ledger

import (
	"context"
	"fmt"
	"time"
)

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
