package admin

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/shell"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// mostToDo is how many things a person is told to do. The worst come first, and most of the others follow from them.
	mostToDo = 6
	// longTransaction is how old a transaction is when it is told to be ended.
	longTransaction = time.Hour
	// littleLeft is the part of the WAL limit below which a slot is in danger.
	littleLeft = 0.2
	// bloated is how many deleted row versions outbox_parked has when autovacuum does not keep up.
	bloated = 500_000
)

// judge says what to do, the worst first, and sets the level.
func (r *statusReader) judge() {
	s := r.status
	if s.Database.Error != "" {
		r.toDo(monitoring.LevelFailed, "", "the database could not be read: %s", s.Database.Error)
	}
	if missing := s.Database.Pending; len(missing) > 0 && len(r.faults) == 0 {
		r.toDo(monitoring.LevelDegraded, "outbox-cdc init", "an older version has made the ledger: bring it up to date, which applies %s", strings.Join(missing, ", "))
	}
	for _, err := range r.faults {
		r.toDo(monitoring.LevelFailed, "", "%v", err)
	}
	r.judgeSlot()
	for i := range s.Sinks {
		r.judgeSink(&s.Sinks[i])
	}
	if n := s.NoSink.Dead; n != nil && *n > 0 {
		r.toDo(monitoring.LevelDegraded, "outbox-cdc dlq list --sink "+noSink, "%s of no sink: rows of the outbox that were no valid events", letters(*n))
	}
	if v := s.Verify; v != nil && some(v.Unaccounted) {
		r.toDo(monitoring.LevelFailed, "outbox-cdc verify", "events are missing, such as %s: they were probably never delivered; docs/verify.md says how they are", v.Example)
	}
	for _, a := range r.ails {
		r.toDo(a.level, "", "%s of the instance that streams: %s", strings.Join(a.names, ", "), a.detail)
	}
	r.judgeCleanup()
	for _, h := range s.Holders {
		r.judgeHolder(h)
	}
	if z := s.Sizes; z != nil && z.ParkedDeadRows > bloated {
		r.toDo(monitoring.LevelDegraded, "", "outbox_parked has about %d deleted rows that were not vacuumed away: look for old transactions, then vacuum it as its owner: vacuum %s.outbox_parked",
			z.ParkedDeadRows, r.cfg.Source.LedgerSchema)
	}
	slices.SortStableFunc(s.ToDo, func(a, b StatusToDo) int { return badness(b.Level) - badness(a.Level) })
	for _, t := range s.ToDo {
		s.Level = worst(s.Level, t.Level)
	}
	if left := len(s.ToDo) - mostToDo; left > 0 {
		s.ToDo = append(s.ToDo[:mostToDo:mostToDo], StatusToDo{Level: s.ToDo[mostToDo].Level, What: fmt.Sprintf("and %d more, which are not listed", left)})
	}
}

func (r *statusReader) toDo(level monitoring.Level, command, format string, args ...any) {
	r.status.ToDo = append(r.status.ToDo, StatusToDo{Level: level, What: fmt.Sprintf(format, args...), Command: command})
}

func (r *statusReader) judgeSlot() {
	s := r.status.Slot
	switch {
	case s == nil:
		return
	case s.State == SlotIdle && len(r.faults) == 0 && len(r.status.Instances) > 0:
		r.toDo(monitoring.LevelFailed, "", "nobody streams from slot %q, although an instance is connected to the database: if that lasts, its log says why", s.Name)
	case s.State == SlotIdle && len(r.faults) == 0:
		r.toDo(monitoring.LevelFailed, "outbox-cdc run", "no connector streams from slot %q, so nothing is delivered and WAL piles up: start one", s.Name)
	case s.State == SlotLost || s.State == SlotMissing || s.State == SlotForeign:
		return // the faults say it
	}
	switch left := s.LostAfterBytes; {
	case s.WALStatus == "unreserved":
		r.toDo(monitoring.LevelFailed, "", "slot %q is lost at the next checkpoint of PostgreSQL unless the connector confirms more: "+
			"raise max_slot_wal_keep_size (select pg_reload_conf() makes it count), and mend what keeps the stream", s.Name)
	case left != nil && s.KeptLimit != nil && *s.KeptLimit > 0 && float64(*left) < littleLeft*float64(*s.KeptLimit):
		r.toDo(monitoring.LevelDegraded, "", "slot %q has little left before PostgreSQL gives it up: raise max_slot_wal_keep_size, and mend what keeps the stream", s.Name)
	}
}

func (r *statusReader) judgeSink(s *StatusSink) {
	name := shell.Quote(s.Name)
	switch {
	case !s.Configured && some(s.Rows.Parked):
		r.toDo(monitoring.LevelFailed, "", "sink %s is not configured any more and events wait for it, so the connector does not start: docs/parked.md#renamed has the choices", s.Name)
	case !s.Configured:
	case s.Condition == monitoring.ConditionPaused:
		r.toDo(monitoring.LevelOK, "outbox-cdc resume "+name, "%s is paused", s.Name)
	case s.Condition == monitoring.ConditionAway || s.Condition == monitoring.ConditionFailing:
		r.toDo(monitoring.LevelDegraded, "outbox-cdc retry "+name, "%s accepts nothing: mend it, then have it asked at once", s.Name)
	case s.Condition == monitoring.ConditionUnreachable:
		r.toDo(monitoring.LevelDegraded, "outbox-cdc validate --connect", "%s cannot be used as a check has found: mend it", s.Name)
	case s.Condition == monitoring.ConditionSuspect || s.Condition == monitoring.ConditionRefusing:
		r.toDo(monitoring.LevelDegraded, "outbox-cdc events list --status failed --sink "+name, "%s answers, and refuses what it is sent: mend the receiver", s.Name)
	}
	if some(s.Rows.Dead) {
		r.toDo(monitoring.LevelDegraded, "outbox-cdc dlq list --sink "+name, "%s of %s: look at them, then retry or discard them", letters(*s.Rows.Dead), s.Name)
	}
}

// judgeCleanup says what keeps the cleanup from its work. What stays for a good reason is no problem.
func (r *statusReader) judgeCleanup() {
	c := r.status.Cleanup
	if c == nil || c.LastPass == nil || c.OutboxSeconds == nil && c.LedgerSeconds == nil {
		return
	}
	switch p := c.LastPass; {
	case len(p.Grants) > 0:
		stays, instead := p.Lacks()
		r.toDo(monitoring.LevelDegraded, "", "%s: as the owner of the tables: %s; or %s", stays, strings.Join(p.Grants, "; "), instead)
	case p.Error != "":
		r.toDo(monitoring.LevelDegraded, "", "the last pass of the cleanup has failed: %s", p.Error)
	case p.Outbox.Kept.Refused > 0:
		r.toDo(monitoring.LevelDegraded, "", "%d old rows of the outbox stay, because the database refuses to delete them: %s; see docs/retention.md#refused",
			p.Outbox.Kept.Refused, p.Outbox.Refused)
	case p.Log.Refused:
		r.toDo(monitoring.LevelDegraded, "", "old days of the log stay: %s", p.Log.Stays)
	}
	for i := range c.LastPass.Bloat {
		r.toDo(monitoring.LevelDegraded, "", "%s", c.LastPass.Bloat[i].String())
	}
	if n := c.LastPass.Outbox.Kept.Unaccounted; n > 0 {
		r.toDo(monitoring.LevelDegraded, "", "the ledger does not know %d old rows of the outbox, such as %s: docs/retention.md#unaccounted says what to do with them",
			n, c.LastPass.Outbox.Unaccounted)
	}
}

func (r *statusReader) judgeHolder(h StatusHolder) {
	if h.Since == nil || r.status.At.Sub(*h.Since) < longTransaction {
		return
	}
	switch h.Kind {
	case "transaction":
		r.toDo(monitoring.LevelDegraded, "", "a transaction of user %q (pid %d, %s) is open since %s: it keeps WAL and deleted rows; end it: select pg_terminate_backend(%d)",
			h.User, h.PID, h.State, clock(*h.Since), h.PID)
	case "prepared_transaction":
		r.toDo(monitoring.LevelDegraded, "", "the prepared transaction %q of %q waits since %s: it keeps WAL and deleted rows; commit prepared or rollback prepared ends it",
			h.Name, h.User, clock(*h.Since))
	}
}

func some(n *int64) bool { return n != nil && *n > 0 }

func letters(n int64) string {
	if n == 1 {
		return "1 dead letter"
	}
	return fmt.Sprintf("%d dead letters", n)
}

var levels = []monitoring.Level{monitoring.LevelOK, monitoring.LevelDegraded, monitoring.LevelFailed}

func badness(l monitoring.Level) int { return slices.Index(levels, l) }

// worst returns the worse of two levels.
func worst(a, b monitoring.Level) monitoring.Level { return levels[max(badness(a), badness(b))] }
