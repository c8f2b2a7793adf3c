package main

import (
	"fmt"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/config"
)

// cleanupText says what was deleted, or would be, and then why the rest stays.
func cleanupText(cfg config.Config, r admin.CleanupResult) string {
	t := cleanupLines{outbox: cfg.Source.Table, verb: "deleted"}
	if r.DryRun {
		t.verb = "would delete"
	}
	outbox, ledger := cfg.Retention.Outbox, cfg.Retention.Ledger
	if outbox.Off() {
		t.add("%s: every row stays, because retention.outbox is off", t.outbox)
	} else {
		t.deleted(r.Outbox, outbox)
	}
	if ledger.Off() {
		t.add("the delivery log: every day stays, because retention.ledger is off")
	} else {
		t.partitions("the delivery log", r.Log, ledger)
	}
	if r.Metrics > 0 {
		t.add("%s %s of outbox_metrics that ended more than 30d ago", t.verb, count(r.Metrics, "window"))
	}
	if r.Blocked != "" {
		t.add("nothing may be deleted now: %s", r.Blocked)
	}
	t.grants(&r.Report)
	if !outbox.Off() {
		t.kept(r)
		if outbox.Duration() > 0 {
			t.add("rows of %s that are younger than %s stay", t.outbox, outbox)
		}
	}
	return strings.Join(t.lines, "\n") + "\n"
}

type cleanupLines struct {
	lines        []string
	outbox, verb string
}

func (t *cleanupLines) add(format string, args ...any) {
	t.lines = append(t.lines, fmt.Sprintf(format, args...))
}

func (t *cleanupLines) deleted(o cleanup.OutboxReport, age config.Age) {
	least := ""
	if o.More {
		least = "at least "
	}
	t.add("%s %s%s of %s older than %s", t.verb, least, count(o.Deleted, "row"), t.outbox, age)
	if len(o.Partitions.Dropped) > 0 || o.Partitions.Stays != "" {
		t.partitions(t.outbox, o.Partitions, age)
	}
	if o.More {
		t.add("this has looked at %s that are old enough, and there are more", count(o.Deleted+o.Kept.Total(), "row"))
	}
}

func (t *cleanupLines) partitions(of string, p cleanup.PartitionReport, age config.Age) {
	if len(p.Dropped) == 0 {
		t.add("%s no day of %s older than %s", t.verb, of, age)
	} else {
		t.add("%s %s of %s older than %s (%d MB): %s", t.verb, count(int64(len(p.Dropped)), "day"), of, age, p.Bytes>>20, strings.Join(p.Dropped, ", "))
	}
	if p.Stays != "" {
		t.add("older days of %s stay: %s", of, p.Stays)
	}
}

// grants says which rights the login lacks.
func (t *cleanupLines) grants(r *cleanup.Report) {
	if len(r.Grants) == 0 {
		return
	}
	t.add("the login of source.dsn lacks a right; the owner gives it by")
	for _, g := range r.Grants {
		t.add("  %s;", g)
	}
	stays, instead := r.Lacks()
	t.add("until then: %s; or do without: %s", stays, instead)
}

// kept says why rows of the outbox stay that are old enough.
func (t *cleanupLines) kept(r admin.CleanupResult) {
	k := r.Outbox.Kept
	reasons := []struct {
		rows int64
		text string
	}{
		{k.Beyond, "not settled yet: " + slotText(r)},
		{k.Unread, "the ledger has nothing of these: the stream has not come that far, or they were written before the slot was made"},
		{k.Unaccounted, "unaccounted: the ledger has nothing of these, and the stream is past them, such as " + clean(r.Outbox.Unaccounted) +
			"; they are never deleted by this: see docs/retention.md#unaccounted"},
		{k.Locked, "locked by another transaction: they go next time"},
		{k.Refused, "the database refuses to delete them: " + clean(r.Outbox.Refused) + "; see docs/retention.md#refused"},
	}
	for _, reason := range reasons {
		if reason.rows > 0 {
			are, stay := "are", "stay"
			if reason.rows == 1 {
				are, stay = "is", "stays"
			}
			t.add("%s of %s %s old enough and %s: %s", count(reason.rows, "row"), t.outbox, are, stay, reason.text)
		}
	}
}

func slotText(r admin.CleanupResult) string {
	s := r.Slot
	if s == nil {
		return "nobody could say how far the slots are"
	}
	text := fmt.Sprintf("slot %s has settled everything up to %s, %d MB behind the server", s.Slot, s.Prefix, s.LagBytes>>20)
	switch {
	case !s.Exists:
		text += ", and this database has no such slot (see docs/retention.md, and docs/copies.md for a copy)"
	case !s.Active:
		text += ", and nobody streams from it"
	}
	return text
}

func count(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
