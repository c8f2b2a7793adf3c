package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// ReadDeaths returns when the deliveries of these events died, as the log has it: a delivery that was retried may have died several
// times, and the newest death counts. Deliveries whose death the log does not have, because its partition was dropped, are missing.
func (c *Client) ReadDeaths(ctx context.Context, eventIDs []string) (map[checkpoint.Key]time.Time, error) {
	rows, err := c.conn.Query(ctx, c.schema.statement(`select processor_id, commit_lsn, tx_index, max(completed_at) from ledger.outbox_delivery_log
		where event_id = any ($1::`+c.idType()+`[]) and status = 'dead' group by processor_id, commit_lsn, tx_index`), eventIDs)
	if err != nil {
		return nil, fmt.Errorf("look for deaths in the log: %w", err)
	}
	deaths := map[checkpoint.Key]time.Time{}
	var k checkpoint.Key
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&k.Processor, &k.Position.LSN, &k.Position.Index, &at}, func() error {
		deaths[k] = at
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for deaths in the log: %w", err)
	}
	return deaths, nil
}
