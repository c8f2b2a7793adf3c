package admin

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// PauseResult says what Pause or Resume did to one sink.
type PauseResult struct {
	Sink   string `json:"sink"`
	Paused bool   `json:"paused"`
	// Changed is false if the sink was already as it should be.
	Changed bool `json:"changed"`
	// Waiting counts the deliveries to this sink that are parked.
	Waiting int64 `json:"waiting"`
}

// sinkActivity is the column is_active of outbox_processors.
type sinkActivity bool

const (
	sinkActive sinkActivity = true
	sinkPaused sinkActivity = false
)

// Pause stops deliveries to sinks until Resume: the connector parks their events. The state is kept in the ledger, so it
// outlives the process; a running connector is told at once. If a sink is not known, nothing is changed, and the error lists
// the sinks that are.
func Pause(ctx context.Context, c Config, sinks []string) ([]PauseResult, error) {
	return setActivity(ctx, c, sinks, sinkPaused)
}

// Resume lets the connector deliver to paused sinks again.
func Resume(ctx context.Context, c Config, sinks []string) ([]PauseResult, error) {
	return setActivity(ctx, c, sinks, sinkActive)
}

func setActivity(ctx context.Context, c Config, sinks []string, activity sinkActivity) ([]PauseResult, error) {
	var results []PauseResult
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		ids, err := l.processorIDs(sinks)
		if err != nil {
			return err
		}
		if len(sinks) == 0 || slices.Contains(ids, 0) {
			return l.unknownSink(noSink)
		}
		return pgx.BeginFunc(ctx, l.conn, func(tx pgx.Tx) error {
			for _, id := range ids {
				r, err := l.setActivityOf(ctx, tx, id, activity)
				if err != nil {
					return fmt.Errorf("sink %q: %w", l.sinkName(id), err)
				}
				results = append(results, r)
			}
			return nil
		})
	})
	return results, err
}

func (l *ledgerConn) setActivityOf(ctx context.Context, tx pgx.Tx, id int32, activity sinkActivity) (PauseResult, error) {
	r := PauseResult{Sink: l.sinkName(id), Paused: activity == sinkPaused}
	tag, err := tx.Exec(ctx, l.sql("update ledger.outbox_processors set is_active = $2 where id = $1 and is_active <> $2"), id, bool(activity))
	if err != nil {
		return r, err
	}
	r.Changed = tag.RowsAffected() > 0
	if err := tx.QueryRow(ctx, l.sql("select count(*) from ledger.outbox_parked where processor_id = $1 and status = 'parked'"), id).Scan(&r.Waiting); err != nil {
		return r, err
	}
	// The connector is notified even if nothing changed: somebody who repeats the command wants it to take effect.
	return r, l.notify(ctx, tx, id)
}
