package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// maxChangeTries is how often a change is tried that the server has ended to resolve a deadlock.
const maxChangeTries = 5

// Action is what a person does to rows of outbox_parked.
type Action string

// The actions.
const (
	Retry   Action = "retry"   // make a dead letter due again, with no try counted
	Discard Action = "discard" // delete a dead letter, and write a row into the log
	Kill    Action = "kill"    // make a parked event a dead letter, and write a row into the log
)

// actionRows says by how much an action changes the numbers of a sink's rows, for each row.
var actionRows = map[Action]RowCounts{
	Retry:   {Parked: 1, Dead: -1},
	Discard: {Dead: -1},
	Kill:    {Parked: -1, Dead: 1},
}

// Change is a change that a person makes to rows of outbox_parked.
type Change struct {
	Action Action
	Reason string // for the log: who discards or kills, and why
	Slot   string // of the connector
	// DeadBlocks says that a dead letter holds its aggregate until a person acts.
	DeadBlocks bool
}

// Change makes a change to the rows with these keys, in one transaction, and wakes the lanes of their sinks. It returns how many rows
// were changed: a row is left out if it has not, or no longer, the status that the change is for.
func (c *Client) Change(ctx context.Context, change Change, keys []checkpoint.Key) (n int, err error) {
	err = c.transact(ctx, func(tx pgx.Tx) (err error) {
		n, err = c.schema.changeRows(ctx, tx, change, keys)
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// transact calls f in a transaction, and again in another one if the server has ended it because of a deadlock: the connector may
// settle some of the same rows at the same time, and lock them in another order.
func (c *Client) transact(ctx context.Context, f func(pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, c.conn, f)
		var deadlock bool
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
			deadlock = pg.Code == "40P01"
		}
		switch {
		case try == maxChangeTries:
			return err
		case missingPartition(err): // of today, because no connector, which makes them, has run for long
			if perr := c.schema.MakePartitions(ctx, c.conn); perr != nil {
				return errors.Join(err, perr)
			}
		case !deadlock:
			return err
		}
	}
}

// retryRows makes dead letters due now. If there were tries and the sink refused them all (attempts = tries), the destination
// cannot have the message, and the row becomes untried. Otherwise the destination may have accepted a try, or the last try is not recorded.
// Then tries becomes 1 with attempts 0: one try that was not refused stands for all of them, so that no lane takes the message
// for one that is new to the destination (connector/unsent.go).
const retryRows = `update ledger.outbox_parked p set status = 'parked', attempts = 0,
		tries = case when p.tries = 0 or p.attempts < p.tries then 1 else 0 end, tried_at = null, next_attempt_at = now()
	from ` + rowsOfKeys + ` and p.status = 'dead' and p.processor_id <> 0 returning p.processor_id`

// logChange writes a row of the log for each row that the statement before it has put into "changed".
const logChange = `insert into ledger.outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, error_message, commit_lsn, tx_index, epoch)
	select event_id, processor_id, tries, $4, clock_timestamp(), $5, commit_lsn, tx_index,
		coalesce((select epoch from ledger.outbox_checkpoints where slot_name = $6), 0) from changed`

const discardRows = `with changed as (delete from ledger.outbox_parked p using ` + rowsOfKeys + ` and p.status = 'dead'
		returning p.event_id, p.processor_id, p.tries, p.commit_lsn, p.tx_index),
	logged as (` + logChange + `)
	select processor_id from changed`

// killRows makes parked events dead letters. A try may be under way, whose answer the recorder will not write into a row that is
// dead. So attempts becomes less than tries, and a later retryRows treats the row as one that the destination may have accepted.
const killRows = `with changed as (update ledger.outbox_parked p set status = 'dead', next_attempt_at = $7::text::timestamptz,
			attempts = least(p.attempts, greatest(p.tries - 1, 0)),
			error_message = left(concat($5::text, '; before that: ' || nullif(p.error_message, '')), $8)
		from ` + rowsOfKeys + ` and p.status = 'parked'
		returning p.event_id, p.processor_id, p.tries, p.commit_lsn, p.tx_index),
	logged as (` + logChange + `)
	select processor_id from changed`

func (s Schema) changeRows(ctx context.Context, tx pgx.Tx, change Change, all []checkpoint.Key) (int, error) {
	var k keys
	for _, key := range all {
		k.add(key)
	}
	sql, args := retryRows, []any{k.processors, k.lsns, k.indexes}
	reason := cleanText(change.Reason)
	switch change.Action {
	case Discard:
		sql, args = discardRows, append(args, "discarded", reason, change.Slot)
	case Kill:
		var next *string
		if change.DeadBlocks {
			next = new("infinity")
		}
		sql, args = killRows, append(args, "dead", reason, change.Slot, next, maxErrorText)
	}
	rows, err := tx.Query(ctx, s.statement(sql), args...)
	if err != nil {
		return 0, fmt.Errorf("change rows: %w", err)
	}
	changed, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return 0, fmt.Errorf("change rows: %w", err)
	}
	var perSink []RowChange
	for _, processor := range changed {
		if processor != 0 { // it belongs to no sink
			perSink = addRows(perSink, RowChange{Processor: processor, Rows: actionRows[change.Action]})
		}
	}
	for _, c := range perSink {
		if err := s.notifyRows(ctx, tx, c); err != nil {
			return 0, err
		}
	}
	return len(changed), nil
}
