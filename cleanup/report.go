package cleanup

import (
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Report says what one pass has done. As JSON it stands in outbox_retention.report.
type Report struct {
	// BeganAt and Seconds say when the pass was, by this process's clock. Rests are a part of it.
	BeganAt time.Time `json:"began_at"`
	Seconds float64   `json:"duration_seconds"`
	// DryRun says that nothing was deleted: Deleted and Dropped are what would be.
	DryRun bool `json:"dry_run,omitempty"`
	// FromStart says that the pass has looked at all old rows of the outbox, and not only at those that no earlier pass has looked at.
	FromStart bool `json:"from_start"`
	// Complete says that nothing has ended the pass early.
	Complete bool `json:"complete"`
	// Blocked says why nothing may be deleted at all now; "" if it may.
	Blocked string `json:"blocked,omitempty"`
	// Grants are the statements by which the owner of the tables gives the rights that the login lacks.
	Grants []string `json:"grants,omitempty"`
	// Error says why the pass has ended early, or what could not be done; "" if all could.
	Error string `json:"error,omitempty"`

	Outbox  OutboxReport    `json:"outbox"`
	Log     PartitionReport `json:"log"`
	Metrics int64           `json:"metrics_deleted"` // windows of outbox_metrics
}

// OutboxReport is what became of old rows of the outbox.
type OutboxReport struct {
	// Retention is how long rows are kept, in seconds; nil for ever.
	Retention *float64 `json:"retention_seconds"`
	Deleted   int64    `json:"deleted"`
	// More says that a dry run has stopped counting at its limit: there is more of everything.
	More bool            `json:"more,omitempty"`
	Kept ledger.KeptRows `json:"kept"`
	// Unaccounted is the id of one of the rows that never came on the stream.
	Unaccounted string `json:"unaccounted_example,omitempty"`
	// Refused is what the database says of a row that it does not let us delete.
	Refused    string          `json:"refused_because,omitempty"`
	Partitions PartitionReport `json:"partitions"`
}

// PartitionReport is what became of old partitions.
type PartitionReport struct {
	// Retention is how long partitions are kept, in seconds; nil for ever.
	Retention *float64 `json:"retention_seconds"`
	Dropped   []string `json:"dropped,omitempty"`
	Bytes     int64    `json:"dropped_bytes"`
	// Stays says why the oldest partition that is old enough stays; "" if there is none.
	Stays string `json:"stays,omitempty"`
}

// Changed reports whether the pass has changed anything in the database.
func (r *Report) Changed() bool {
	return !r.DryRun && (r.Outbox.Deleted > 0 || r.Metrics > 0 || len(r.Log.Dropped) > 0 || len(r.Outbox.Partitions.Dropped) > 0)
}

// seconds is an age as a report has it.
func seconds(age time.Duration) *float64 {
	if age == Forever {
		return nil
	}
	s := age.Seconds()
	return &s
}
