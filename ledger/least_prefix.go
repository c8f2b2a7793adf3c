package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// SlotPrefix says how far a slot is settled.
type SlotPrefix struct {
	Slot string `json:"slot_name"`
	// Prefix is LSN:index; everything up to there, this position included, is settled for every sink.
	Prefix string `json:"prefix"`
	// LagBytes is how much WAL the server has written since then.
	LagBytes int64 `json:"lag_bytes"`
	// RecordedAt is when the connector last wrote down how far it has come.
	RecordedAt time.Time `json:"recorded_at"`
	// Exists says that the database has this slot, and Active that somebody streams from it. In a copy of a database the checkpoint may be
	// that of a slot of the original, on the same server.
	Exists bool `json:"exists"`
	Active bool `json:"active"`
}

// LeastPrefix returns the slot that has settled least, or nil if no slot has settled anything.
func (s Schema) LeastPrefix(ctx context.Context, db Querier) (*SlotPrefix, error) {
	var p SlotPrefix
	err := db.QueryRow(ctx, s.statement(`select c.slot_name, concat(prefix_lsn, ':', prefix_index), greatest(pg_current_wal_lsn() - prefix_lsn, 0)::bigint,
			updated_at, r.slot_name is not null, coalesce(r.active, false)
		from ledger.outbox_checkpoints c left join pg_replication_slots r on r.slot_name = c.slot_name and r.database = current_database()
		where prefix_lsn is not null order by prefix_lsn, prefix_index limit 1`)).Scan(&p.Slot, &p.Prefix, &p.LagBytes, &p.RecordedAt, &p.Exists, &p.Active)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read how far slots are settled: %w", err)
	}
	return &p, nil
}
