package cleanup

import (
	"context"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	// bloatLeast is from how many deleted rows on a table is bloated, if they are also more than half as many as its other rows. Autovacuum
	// comes at a fifth by default (at a twentieth and a hundredth with the settings of init), so by then it has missed its turn twice; and
	// fewer rows take some ten megabytes, about which nobody has to do anything.
	bloatLeast = 50_000
	// bloatPatience is how long autovacuum has: it looks once a minute, and a vacuum of a large table takes minutes.
	bloatPatience = 10 * time.Minute
	// bloatLong is after how long a person has to do something.
	bloatLong = time.Hour
	// bloatEvery is the least time between two looks.
	bloatEvery = time.Minute
)

// Bloat is a table whose deleted rows are not vacuumed away.
type Bloat struct {
	ledger.DeadRows `json:"vacuum"`
	// Since is when this process first saw so many deleted rows there, by the server's clock.
	Since time.Time `json:"since"`
}

// Long reports whether it has lasted so long that the table grows without end.
func (b *Bloat) Long() bool { return b.At.Sub(b.Since) >= bloatLong }

// String says for a person what keeps vacuum from the rows.
func (b *Bloat) String() string {
	text := fmt.Sprintf("%s deleted rows of %s ", thousands(b.Dead), b.Table)
	switch h := b.Holder; {
	case b.AutovacuumOff:
		text += "are not vacuumed away: autovacuum is off; turn it on, for the server and for the table (autovacuum_enabled)"
	case h == nil:
		text += "are not vacuumed away: " + b.lastVacuum() + "; as the owner of the table: vacuum " + b.Table
	default:
		text += "cannot be vacuumed away: " + holderText(h) + "; see docs/retention.md#space"
	}
	return text
}

func (b *Bloat) lastVacuum() string {
	if b.VacuumedAt == nil {
		return "no vacuum has ended yet"
	}
	return "the last vacuum was at " + clock(*b.VacuumedAt)
}

func holderText(h *ledger.VacuumHolder) string {
	since := "for long"
	if h.Since != nil {
		since = "since " + clock(*h.Since)
	}
	switch h.Kind {
	case ledger.HoldsTransaction:
		return fmt.Sprintf("pid %d has had a transaction open %s", h.PID, since)
	case ledger.HoldsPrepared:
		return fmt.Sprintf("the prepared transaction %q waits %s", h.Name, since)
	case ledger.HoldsSlot:
		return fmt.Sprintf("the replication slot %q holds them (hot_standby_feedback)", h.Name)
	case ledger.HoldsReplica:
		return fmt.Sprintf("the replica %q, pid %d, reads them (hot_standby_feedback)", h.Name, h.PID)
	}
	return string(h.Kind)
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// thousands writes a number with commas.
func thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// bloatWatch finds tables that vacuum does not keep up with.
type bloatWatch struct {
	next time.Time            // when the next look may be
	many map[string]time.Time // since when a table has many deleted rows
	held map[heldBy]time.Time // since when the same one is seen to hold them
	now  []Bloat
}

// heldBy is a holder as it is known again at the next look.
type heldBy struct {
	kind ledger.HolderKind
	name string
	pid  int
}

// due reports whether a pass looks: at most once in bloatEvery, and only a pass over all rows while no table has many deleted rows.
func (w *bloatWatch) due(r *Report) bool {
	return !time.Now().Before(w.next) && (r.FromStart || len(w.many) > 0)
}

// look reads anew how it stands.
func (w *bloatWatch) look(ctx context.Context, db Database) error {
	tables, err := db.DeadRows(ctx)
	if err != nil {
		return err
	}
	w.next = time.Now().Add(bloatEvery)
	w.judge(tables)
	return nil
}

// judge finds those tables that have many deleted rows which vacuum should have removed by now. That is so if autovacuum is off, if
// somebody holds the rows for longer than bloatPatience, or if no vacuum has come for so long.
func (w *bloatWatch) judge(tables []ledger.DeadRows) {
	many, held := map[string]time.Time{}, map[heldBy]time.Time{}
	w.now = nil
	for _, d := range tables {
		if d.Dead <= bloatLeast || d.Dead <= d.Live/2 {
			continue
		}
		b := Bloat{DeadRows: d, Since: d.At}
		if since, ok := w.many[d.Table]; ok {
			b.Since = since
		}
		many[d.Table] = b.Since
		longAgo := func(t time.Time) bool { return d.At.Sub(t) >= bloatPatience }
		vacuumed := d.VacuumedAt != nil && !longAgo(*d.VacuumedAt)
		if h := d.Holder; h != nil {
			key, since := heldBy{h.Kind, h.Name, h.PID}, d.At
			if first, ok := w.held[key]; ok {
				since = first
			}
			held[key] = since
			if h.Since != nil {
				since = *h.Since
			}
			if !longAgo(since) {
				b.Holder = nil
			}
		}
		if b.Holder != nil || !vacuumed && (d.AutovacuumOff || longAgo(b.Since)) {
			b.AutovacuumOff = d.AutovacuumOff && !vacuumed // somebody vacuums by himself
			w.now = append(w.now, b)
		}
	}
	w.many, w.held = many, held
}

// withoutNumbers is what of them is worth a new report.
func withoutNumbers(all []Bloat) (same []Bloat) {
	for _, b := range all {
		same = append(same, Bloat{DeadRows: ledger.DeadRows{Table: b.Table, AutovacuumOff: b.AutovacuumOff, Holder: b.Holder}})
	}
	return same
}
