package admin

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// PauseResult says what Pause or Resume did to one sink.
type PauseResult struct {
	Sink   string `json:"sink"`
	Paused bool   `json:"paused"`
	// Changed is false if the sink was already as it should be.
	Changed bool `json:"changed"`
	// Waiting counts the deliveries to this sink that are parked.
	Waiting int64 `json:"waiting"`
	// SinkNow is what has become of it within a few seconds. Slot is the replication slot of the connector.
	SinkNow
	Slot string `json:"slot"`
}

// Pause stops deliveries to sinks until Resume: the connector parks their events. The state is kept in the ledger, so it
// outlives the process; a running connector is told at once. If a sink is not known, nothing is changed, and the error lists
// the sinks that are.
func Pause(ctx context.Context, c Config, sinks []string) ([]PauseResult, error) {
	return setActivity(ctx, c, sinks, ledger.Paused)
}

// Resume lets the connector deliver to paused sinks again.
func Resume(ctx context.Context, c Config, sinks []string) ([]PauseResult, error) {
	return setActivity(ctx, c, sinks, ledger.Active)
}

func setActivity(ctx context.Context, c Config, sinks []string, activity ledger.Activity) ([]PauseResult, error) {
	var results []PauseResult
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		ids, err := l.processorIDs(sinks)
		if err != nil {
			return err
		}
		if len(sinks) == 0 || slices.Contains(ids, 0) {
			return l.unknownSink(noSink)
		}
		before, err := l.readNow(ctx)
		if err != nil {
			return err
		}
		err = pgx.BeginFunc(ctx, l.conn, func(tx pgx.Tx) error {
			for _, id := range ids {
				changed, parked, err := l.schema().SetActivity(ctx, tx, id, activity)
				if err != nil {
					return fmt.Errorf("sink %q: %w", l.sinkName(id), err)
				}
				results = append(results, PauseResult{Sink: l.sinkName(id), Paused: activity == ledger.Paused, Changed: changed, Waiting: parked, Slot: c.Source.Slot})
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, id := range ids {
			l.sinkByID(id).Active = activity == ledger.Active
		}
		outcomes, _, err := l.watchOutcome(ctx, before, ids)
		for i, id := range ids {
			results[i].SinkNow = outcomes[id]
		}
		return err
	})
	return results, err
}
