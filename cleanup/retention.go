// Package cleanup deletes what nobody needs any more: rows of the outbox that are settled for every sink, partitions of the log, and old
// windows of metrics. The connector that streams does it all the time, and a person by a command; both do it by this package.
package cleanup

import (
	"math"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// Forever is the age of what is never deleted.
const Forever time.Duration = math.MaxInt64

// Retention says how long rows are kept. Ages are by PostgreSQL's clock.
type Retention struct {
	// Outbox is for rows of the outbox, by their created_at. 0 deletes a row as soon as it is settled.
	Outbox time.Duration
	// Ledger is for partitions of outbox_delivery_log. It is not less than Outbox, unless Outbox is Forever.
	Ledger time.Duration
}

// Deletes says what is not kept for ever.
func (r Retention) Deletes() provision.Cleanup {
	return provision.Cleanup{Outbox: r.Outbox != Forever, Ledger: r.Ledger != Forever}
}
