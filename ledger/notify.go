package ledger

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// changedChannel is the NOTIFY channel on which whoever has changed rows of outbox_parked, or paused or resumed a sink, says so.
// A channel belongs to the whole database, so the payload is "schema of the ledger:processor". A person who wants a sink asked now
// sends ":retry" behind it. A connector of a version that does not know this takes it for a payload of another ledger, so whoever
// sends it sends the first form as well if rows were changed. The same holds for ":rows:transaction:parked:dead", which says by how much the
// numbers of the sink's rows have changed.
const changedChannel = "outbox_changed"

const (
	retrySuffix = ":retry"
	rowsMark    = ":rows:"
	settlesMark = "settles:"
)

// AskSettled makes the connector of a slot write down how far its stream is settled, also if it is idle and would not write for that alone.
func (s Schema) AskSettled(ctx context.Context, db Execer, slot string) error {
	return s.notify(ctx, db, fmt.Sprintf("%s:%s%s", s, settlesMark, slot))
}

// notifyChanged wakes the lanes of a sink when the transaction commits.
func (s Schema) notifyChanged(ctx context.Context, tx Execer, processor int32) error {
	return s.notify(ctx, tx, fmt.Sprintf("%s:%d", s, processor))
}

// notifyRetry makes the breaker of a sink ask at once when the transaction commits.
func (s Schema) notifyRetry(ctx context.Context, tx Execer, processor int32) error {
	return s.notify(ctx, tx, fmt.Sprintf("%s:%d%s", s, processor, retrySuffix))
}

// notifyRows tells the numbers of rows that the transaction has changed, and wakes the lanes of the sink, when it commits.
func (s Schema) notifyRows(ctx context.Context, tx Execer, c RowChange) error {
	_, err := tx.Exec(ctx, "select pg_notify($1, concat($2::text, pg_current_xact_id(), $3::text))", changedChannel,
		fmt.Sprintf("%s:%d%s", s, c.Processor, rowsMark), fmt.Sprintf(":%d:%d", c.Rows.Parked, c.Rows.Dead))
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return s.notifyChanged(ctx, tx, c.Processor)
}

func (s Schema) notify(ctx context.Context, tx Execer, payload string) error {
	if _, err := tx.Exec(ctx, "select pg_notify($1, $2)", changedChannel, payload); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}

// ListenChanged makes a connection receive what notifyChanged, notifyRetry and notifyRows send.
func ListenChanged(ctx context.Context, conn Execer) error {
	if _, err := conn.Exec(ctx, "listen "+changedChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// Notice is what a notification tells the connector.
type Notice struct {
	// Processor is the sink of which rows were changed, or that was paused or resumed.
	Processor int32
	// Retry says that a person wants the sink asked now, even if its breaker is open.
	Retry bool
	// Rows says by how much the numbers of the sink's rows have changed. Its Transaction is 0 if the notice does not tell.
	Rows RowChange
	// Settles is the slot whose connector is to write down how far the stream is settled; the rest is zero then.
	Settles string
}

// ParseNotice reads a notification's payload. ok is false if it speaks of another ledger, or was sent by a version of which this one
// knows nothing.
func (s Schema) ParseNotice(payload string) (n Notice, ok bool) {
	id, ok := strings.CutPrefix(payload, string(s)+":")
	if !ok {
		return Notice{}, false
	}
	if slot, asks := strings.CutPrefix(id, settlesMark); asks {
		return Notice{Settles: slot}, true
	}
	id, rows, counted := strings.Cut(id, rowsMark)
	if counted {
		n.Rows.Oldest = true
		if k, err := fmt.Sscanf(rows, "%d:%d:%d", &n.Rows.Transaction, &n.Rows.Rows.Parked, &n.Rows.Rows.Dead); k != 3 || err != nil {
			return Notice{}, false
		}
	}
	id, n.Retry = strings.CutSuffix(id, retrySuffix)
	processor, err := strconv.ParseInt(id, 10, 32)
	if err != nil {
		return Notice{}, false
	}
	n.Processor = int32(processor)
	if counted {
		n.Rows.Processor = n.Processor
	}
	return n, true
}
