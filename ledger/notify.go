package ledger

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// changedChannel is the NOTIFY channel on which whoever has changed rows of outbox_parked, or paused or resumed a sink, says so.
// A channel belongs to the whole database, so the payload is "schema of the ledger:processor".
const changedChannel = "outbox_changed"

// notifyChanged wakes the lanes of a sink when the transaction commits.
func (s Schema) notifyChanged(ctx context.Context, tx Execer, processor int32) error {
	_, err := tx.Exec(ctx, "select pg_notify($1, $2)", changedChannel, fmt.Sprintf("%s:%d", s, processor))
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}

// ListenChanged makes a connection receive what notifyChanged sends.
func ListenChanged(ctx context.Context, conn Execer) error {
	if _, err := conn.Exec(ctx, "listen "+changedChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// ChangedProcessor returns the processor that a notification's payload names. ok is false if it speaks of another ledger.
func (s Schema) ChangedProcessor(payload string) (processor int32, ok bool) {
	id, ok := strings.CutPrefix(payload, string(s)+":")
	n, err := strconv.ParseInt(id, 10, 32)
	return int32(n), ok && err == nil
}
