package ledger

import (
	"context"
	"fmt"
)

// Heartbeat notes in outbox_processors that the connector of this name runs.
func (s Schema) Heartbeat(ctx context.Context, db Execer, connector string) error {
	_, err := db.Exec(ctx, s.SQL("update ledger.outbox_processors set heartbeat_at = now() where connector = $1"), connector)
	return err
}

// ReadPaused says of each of these processors whether a person has paused its sink.
func (s Schema) ReadPaused(ctx context.Context, db Querier, processors []int32) (map[int32]bool, error) {
	rows, err := db.Query(ctx, s.SQL("select id, not is_active from ledger.outbox_processors where id = any ($1)"), processors)
	if err != nil {
		return nil, fmt.Errorf("read which sinks are paused: %w", err)
	}
	defer rows.Close()
	paused := map[int32]bool{}
	for rows.Next() {
		var id int32
		var is bool
		if err := rows.Scan(&id, &is); err != nil {
			return nil, fmt.Errorf("read which sinks are paused: %w", err)
		}
		paused[id] = is
	}
	return paused, rows.Err()
}
