package ledger

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// makeDueRows is how many rows one transaction of MakeDue changes. It locks them until it ends, and a lane that wants to settle one
// of them has to wait.
const makeDueRows = 500

// notDue selects the parked rows of a sink that have a time: those that were tried, and those that the sink has put off. Dead rows
// have no time, or infinity.
const notDue = `status = 'parked' and next_attempt_at is not null and next_attempt_at < 'infinity'`

// CountNotDue counts the rows of these processors that MakeDue would change.
func (c *Client) CountNotDue(ctx context.Context, processors []int32) (n int, err error) {
	err = c.conn.QueryRow(ctx, c.schema.statement(`select count(*) from ledger.outbox_parked where processor_id = any ($1) and `+notDue+`
		and next_attempt_at > clock_timestamp()`), processors).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count rows that are not due: %w", err)
	}
	return n, nil
}

// makeDue changes the first $6 rows of a sink behind a place in idx_outbox_retry_ready, and returns the place of the last one. The
// index holds only rows that have a time, so that a million others cost nothing. A changed row keeps its place in it.
const makeDue = `with found as (select agg_hash, commit_lsn, tx_index from ledger.outbox_parked
		where processor_id = $1 and (agg_hash, commit_lsn, tx_index) > ($3, $4, $5) and ` + notDue + ` and next_attempt_at > $2
		order by agg_hash, commit_lsn, tx_index limit $6 for update),
	changed as (update ledger.outbox_parked p set next_attempt_at = $2 from found f
		where p.processor_id = $1 and p.commit_lsn = f.commit_lsn and p.tx_index = f.tx_index)
	select agg_hash, commit_lsn, tx_index, (select count(*) from found) from found
	order by agg_hash desc, commit_lsn desc, tx_index desc limit 1`

// MakeDue makes the rows of a sink due that wait for their next attempt, and tells a running connector that a person wants this sink
// asked now, even if its breaker is open. It calls progress after each transaction with the number of rows that it has changed.
//
// All rows become due at one time, the time of the call, so that lanes try them in the order of their positions. A row that is tried
// meanwhile and not accepted may be made due once more. An error in the middle leaves the rows that were changed before it.
func (c *Client) MakeDue(ctx context.Context, processor int32, progress func(rows int)) error {
	walk := dueWalk{schema: c.schema, processor: processor, hash: math.MinInt64, position: checkpoint.MinPosition}
	if err := c.conn.QueryRow(ctx, "select clock_timestamp()").Scan(&walk.now); err != nil {
		return fmt.Errorf("read the server's time: %w", err)
	}
	for rows := makeDueRows; rows == makeDueRows; progress(rows) {
		var next dueWalk
		err := c.transact(ctx, func(tx pgx.Tx) (err error) {
			next, rows, err = walk.step(ctx, tx)
			return err
		})
		if err != nil {
			return fmt.Errorf("make rows due: %w", err)
		}
		walk = next
	}
	return nil
}

// dueWalk is how far MakeDue has come.
type dueWalk struct {
	schema    Schema
	processor int32
	now       time.Time // the time at which the rows become due, by the server's clock
	told      bool      // the connector knows that it has to ask
	hash      int64     // with position: the last row's place in the index
	position  checkpoint.Position
}

// step changes the next rows. It returns how many these are, and the walk as it stands behind them.
func (w dueWalk) step(ctx context.Context, tx pgx.Tx) (next dueWalk, rows int, err error) {
	next = w
	found, err := tx.Query(ctx, w.schema.statement(makeDue), w.processor, w.now, w.hash, w.position.LSN, w.position.Index, makeDueRows)
	if err != nil {
		return w, 0, err
	}
	last := []any{&next.hash, &next.position.LSN, &next.position.Index, &rows}
	if _, err := pgx.ForEachRow(found, last, func() error { return nil }); err != nil {
		return w, 0, err
	}
	if !w.told { // with the first rows, because an open breaker may have no other message to ask with
		if err := w.schema.notifyRetry(ctx, tx, w.processor); err != nil {
			return w, 0, err
		}
		next.told = true
	}
	if rows > 0 { // after that: the sink must know that it has to ask before its lanes read the rows
		err = w.schema.notifyChanged(ctx, tx, w.processor)
	}
	return next, rows, err
}
