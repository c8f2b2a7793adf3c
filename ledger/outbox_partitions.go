package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// outboxDaysAhead is for how many days ahead of today event_outbox gets its partitions, if it is partitioned.
const outboxDaysAhead = 14

// urgentDays is how many days ahead a missing partition is a failure. One that is further away may be made later.
const urgentDays = 3

// mostDropped is how many partitions KeepOutboxPartitions drops at most. The rest is for the next time.
const mostDropped = 10

// partitioned reports whether the ledger's own event_outbox exists and is partitioned.
func (s Schema) partitioned(ctx context.Context, db Querier) (is bool, err error) {
	err = db.QueryRow(ctx, `select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $1 and c.relname = 'event_outbox' and c.relkind = 'p')`, string(s)).Scan(&is)
	return is, err
}

// KeepOutboxPartitions makes the partitions of event_outbox of today and the next days, and drops those of old days that are empty, each
// in a transaction of its own, so that nobody waits long. It does nothing if event_outbox is not partitioned. A day of which the default
// partition has rows is left out: that is no error, because its rows have a place. The error is about a day that comes soon and could not
// be made.
func (s Schema) KeepOutboxPartitions(ctx context.Context, db interface {
	Querier
	Execer
},
) error {
	if is, err := s.partitioned(ctx, db); err != nil || !is {
		return err
	}
	// Both arguments are given, of the exact types: see MakePartitions.
	statement := s.statement("select day, state from ledger.outbox_make_event_partitions(now() + make_interval(hours => $1), 0)")
	var problems []error
	for i := range outboxDaysAhead + 1 {
		var day time.Time
		var state string
		err := db.QueryRow(ctx, statement, 24*i).Scan(&day, &state)
		if errors.Is(err, pgx.ErrNoRows) { // partitioned in another way, by its owner
			return nil
		}
		if err != nil {
			return fmt.Errorf("make the partitions of event_outbox: %w", err)
		}
		if i <= urgentDays && problems == nil {
			if text := missingDay(state); text != "" {
				problems = append(problems, fmt.Errorf("event_outbox has no partition for %s: %s", day.Format(time.DateOnly), text))
			}
		}
	}
	drop := s.statement("select ledger.outbox_drop_event_partition()")
	for range mostDropped {
		var name *string
		if err := db.QueryRow(ctx, drop).Scan(&name); err != nil {
			return errors.Join(append(problems, fmt.Errorf("drop empty partitions of event_outbox: %w", err))...)
		}
		if name == nil {
			break
		}
	}
	return errors.Join(problems...)
}

// missingDay says why a day that comes soon has no partition, and what to do; "" if it has one, or if nothing is to be done.
func missingDay(state string) string {
	const net = "its rows will go to the default partition, from which they are deleted one by one; "
	switch state {
	case "locked":
		return net + "somebody holds a lock on event_outbox or its default partition: end a transaction or statement that has read or written it for long"
	case "large":
		return net + "the default partition is so large that those who insert into it would wait while PostgreSQL reads it: see docs/partitions.md#large"
	}
	return ""
}
