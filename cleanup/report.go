package cleanup

import (
	"slices"
	"strings"
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
	// Bloat are the tables whose deleted rows are not vacuumed away.
	Bloat []Bloat `json:"bloat,omitempty"`
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
	// Refused says that it stays because PostgreSQL has refused to drop it: somebody has to do something.
	Refused bool `json:"refused,omitempty"`
}

// report begins a report.
func (c *Cleaner) report() Report {
	r := Report{BeganAt: time.Now()}
	r.Outbox.Retention, r.Log.Retention = seconds(c.cfg.Retention.Outbox), seconds(c.cfg.Retention.Ledger)
	r.Outbox.Partitions.Retention = r.Outbox.Retention
	return r
}

// end notes why the pass has ended early, if it has.
func (r *Report) end(err error) {
	if err != nil {
		r.Complete, r.Error = false, err.Error()
	}
	r.Seconds = time.Since(r.BeganAt).Seconds()
}

// follow adds a later pass that has not looked at all rows.
func (r *Report) follow(later *Report) {
	r.Complete, r.Blocked, r.Grants, r.Error, r.Bloat = later.Complete, later.Blocked, later.Grants, later.Error, later.Bloat
	r.Outbox.Deleted += later.Outbox.Deleted
	// Rows that waited for the stream, which is past them now.
	if more := later.Outbox.Kept.Unaccounted - r.Outbox.Kept.Unaccounted; more > 0 {
		r.Outbox.Kept.Unaccounted, r.Outbox.Kept.Unread = later.Outbox.Kept.Unaccounted, max(r.Outbox.Kept.Unread-more, 0)
		r.Outbox.Unaccounted = later.Outbox.Unaccounted
	}
}

// Lacks says what stays because of the rights that the login lacks, and what to do instead of granting them; "" if it lacks none.
func (r *Report) Lacks() (stays, instead string) {
	grants := func(privilege string) bool {
		return slices.ContainsFunc(r.Grants, func(g string) bool { return strings.HasPrefix(g, "grant "+privilege+" on ") })
	}
	switch {
	case grants("delete"):
		return "the login may not delete from the outbox, so its rows stay, and so does the log, which says what may be deleted", "retention.outbox: off keeps the rows"
	case grants("execute"):
		return "the login may not drop days of the log, so they stay", "retention.ledger: off keeps the log"
	case len(r.Grants) > 0:
		return "the login may not write what the cleanup has done, so status does not say it", "retention.outbox and retention.ledger: off keep all"
	}
	return "", ""
}

// note adds partitions of the log that were looked at. It reports whether one was dropped and there may be more to drop.
func (p *PartitionReport) note(looked []ledger.LogPartition) (more bool) {
	for _, l := range looked {
		switch l.Outcome {
		case ledger.LogDropped:
			p.Dropped, p.Bytes = append(p.Dropped, l.Name), p.Bytes+l.Bytes
			more = true
		case ledger.LogYoung, ledger.LogBehind:
			more = false
		case ledger.LogUnsettled, ledger.LogHeld, ledger.LogBusy, ledger.LogRefused, ledger.LogForeign:
			more = more && l.Outcome == ledger.LogForeign
			if p.Stays == "" {
				p.Refused = l.Outcome == ledger.LogRefused
				p.Stays = l.Name + ": " + string(l.Outcome)
				if l.Reason != "" {
					p.Stays += ": " + l.Reason
				}
			}
		}
	}
	return more
}

// noteNeeded says of a partition of the log that is old enough by itself that something needs it. That it is old enough is judged by this
// process's clock: it is only said.
func (p *PartitionReport) noteNeeded(looked []ledger.LogPartition, cutoff ledger.LogCutoff) {
	for _, l := range looked {
		old := l.Until.Before(time.Now().Add(-cutoff.Age))
		if p.Stays == "" && l.Outcome == ledger.LogYoung && old && !cutoff.Needed.IsZero() && l.Until.After(cutoff.Needed) {
			p.Stays = l.Name + ": it says what became of rows of the outbox that stay"
		}
	}
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
