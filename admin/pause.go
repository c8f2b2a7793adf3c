package admin

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Paused says what Pause or Resume has done to a sink.
type Paused struct {
	Sink   string `json:"sink"`
	Paused bool   `json:"paused"`
	// Changed: it was not so before.
	Changed bool `json:"changed"`
	// Waiting is how many deliveries of it are parked.
	Waiting int64 `json:"waiting"`
}

// Pause keeps events of sinks parked from now on, also beyond the end of the process, until Resume. A connector that runs
// is told. A sink that is not known is an error that names those which are, and nothing is changed.
func Pause(ctx context.Context, c Config, sinks []string) ([]Paused, error) {
	return setActive(ctx, c, sinks, false)
}

// Resume lets sinks that were paused be delivered to again.
func Resume(ctx context.Context, c Config, sinks []string) ([]Paused, error) {
	return setActive(ctx, c, sinks, true)
}

func setActive(ctx context.Context, c Config, sinks []string, active bool) ([]Paused, error) {
	var result []Paused
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		ids, err := l.named(sinks)
		if err != nil {
			return err
		}
		if len(sinks) == 0 || slices.Contains(ids, 0) {
			return l.unknown(NoSink)
		}
		return pgx.BeginFunc(ctx, l.conn, func(tx pgx.Tx) error {
			for _, id := range ids {
				p, err := l.activate(ctx, tx, id, active)
				if err != nil {
					return fmt.Errorf("sink %q: %w", l.name(id), err)
				}
				result = append(result, p)
			}
			return nil
		})
	})
	return result, err
}

func (l *ledgerConn) activate(ctx context.Context, tx pgx.Tx, id int32, active bool) (Paused, error) {
	p := Paused{Sink: l.name(id), Paused: !active}
	tag, err := tx.Exec(ctx, l.sql("update ledger.outbox_processors set is_active = $2 where id = $1 and is_active <> $2"), id, active)
	if err != nil {
		return p, err
	}
	p.Changed = tag.RowsAffected() > 0
	if err := tx.QueryRow(ctx, l.sql("select count(*) from ledger.outbox_parked where processor_id = $1 and status = 'parked'"), id).Scan(&p.Waiting); err != nil {
		return p, err
	}
	return p, l.tell(ctx, tx, id) // also where nothing has changed: whoever says it twice wants it done
}
