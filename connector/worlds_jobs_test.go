package connector

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// worldJob is a row of outbox_backlog.
type worldJob struct {
	ledger.Job
	// Border is where the stream begins, which brings everything behind it.
	border checkpoint.Position
	start  pglogrepl.LSN // before it was renumbered
	done   bool
	last   *worldEvent // that it has parked
}

// The positions of a job's rows: id·2^40 + ordinal − 2^62.
const (
	firstOfJobs = -(int64(1) << 62)
	rowsOfAJob  = int64(1) << 40
)

// loses notes what no stream brings any more, because it will begin at this LSN. The world's lock is held.
func (l *worldLedger) loses(before pglogrepl.LSN) {
	l.aggregates = map[string]*worldAggregate{}
	for _, tx := range l.w.wal {
		for _, e := range tx.events {
			for _, p := range processors(e) {
				k := worldDelivery{p, e}
				if tx.commit < before || l.unknown(p) {
					l.byJob[k] = l.byJob[k] || !l.settled[k]
					continue
				}
				a := l.aggregate(p, e)
				a.events = append(a.events, e)
				if l.settled[k] {
					a.settled++
				}
			}
		}
	}
}

// bridge files a job for each sink and stores the new prefix, as one transaction. Everything that committed before start comes by them. The
// world's lock is held.
func (l *worldLedger) bridge(reason ledger.JobReason, start pglogrepl.LSN, xmax uint64) {
	l.loses(start)
	base := l.prefix
	if l.epoch == 0 {
		base = checkpoint.Position{}
	}
	var filter ledger.JobFilter
	if l.w.cfg.life.filled && len(l.jobs) == 0 {
		reason, filter = ledger.JobOfInit, l.leaveOut(start)
	}
	if l.w.random("another server", l.epoch).chance(l.w.cfg.life.renumbers) {
		l.renumber(base)
	}
	for i := range l.w.sinks {
		j := ledger.NewJob{Processor: processor(i), Reason: reason, Base: base, Start: start, SnapshotXmax: xmax, Filter: filter}
		switch {
		case !l.unknown(processor(i)):
		case !l.w.joined:
			continue
		default: // the command registers it
			l.knowsAll = true
			if reason != ledger.JobOfInit {
				j.Reason, j.Base = ledger.JobOfSink, checkpoint.Position{}
			}
		}
		l.file(j, beginsAt(start))
	}
	l.prefix, l.confirmed = beginsAt(start), start
	l.epoch++ // nobody records any more who has not seen this
	l.w.trace("JOBS of %s: base %s, start %s, xmax %d", reason, base, start, xmax)
}

// file does what ledger.Schema.FileJobs does.
func (l *worldLedger) file(j ledger.NewJob, border checkpoint.Position) {
	first := j.Start
	for _, old := range l.jobs {
		if old.Processor == j.Processor && !old.done {
			old.done = true
			if old.Base.Compare(j.Base) < 0 {
				j.Base = old.Base
			}
			j.Start, first = min(j.Start, old.Start), min(first, old.start)
			if old.border.Compare(border) > 0 { // that of a new sink: the prefix, which may lie within a transaction
				border = old.border
			}
		}
	}
	l.w.stats.Jobs++
	l.jobs = append(l.jobs, &worldJob{start: first, Job: ledger.Job{ID: int64(len(l.jobs) + 1), NewJob: j}, border: border})
}

// unfinishedJobs returns the jobs that are not done. The world's lock is held.
func (l *worldLedger) unfinishedJobs() (jobs []*worldJob) {
	for _, j := range l.jobs {
		if !j.done {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// jobOf returns the job to which a position belongs, or nil if a stream has brought it.
func (l *worldLedger) jobOf(at checkpoint.Position) *worldJob {
	if at.Index >= 0 {
		return nil
	}
	id := (at.Index - firstOfJobs) / rowsOfAJob
	if id < 1 || id > int64(len(l.jobs)) || l.jobs[id-1].Start != at.LSN {
		l.w.violation("position", "%s is of no job", at)
		return nil
	}
	return l.jobs[id-1]
}

// mayStandAt reports whether a row of this delivery may be at this position: where the stream has brought it, or where a job has parked it.
func (l *worldLedger) mayStandAt(k worldDelivery, at checkpoint.Position) bool {
	if place, is := l.renumbered[k]; is {
		return at == place.to
	}
	if at == k.event.pos {
		return true
	}
	j := l.jobOf(at)
	return j != nil && j.Processor == k.processor
}

// mayStandAt reports whether a message of this event may come with this position.
func (s *worldSink) mayStandAt(e *worldEvent, at checkpoint.Position) bool {
	k := worldDelivery{processor(s.n), e}
	if place, is := s.w.ledger.places[k]; is {
		return at == place
	}
	return at == e.pos
}

// place returns where a delivery was settled, before it was renumbered if it was.
func (l *worldLedger) place(k worldDelivery) checkpoint.Position {
	if place, is := l.places[k]; is {
		return l.original(k, place)
	}
	return k.event.pos
}

// missing reports whether a job with this base has to park an event for a processor: there is no row of this processor that settles it, and no
// stream has brought it at or before the base.
func (l *worldLedger) missing(k worldDelivery, base checkpoint.Position) bool {
	if l.settled[k] {
		return false
	}
	if k.event.pos.Compare(base) > 0 {
		return true
	}
	for p := range int32(len(l.w.sinks) + 1) {
		if place, is := l.places[worldDelivery{p, k.event}]; is && place.Index >= 0 {
			return false
		}
	}
	return true
}

// step does what the recorder's transaction does to the job of these outcomes, and checks what the job has parked.
func (l *worldLedger) step(o checkpoint.Outcomes) {
	if o.Job == nil {
		for _, row := range o.Rows {
			if row.Row == checkpoint.RowInsert && row.Position.Index < 0 {
				l.w.violation("job", "%s is parked by a job without a step of it", row.EventID)
			}
		}
		return
	}
	s := o.Job
	if s.Job < 1 || s.Job > int64(len(l.jobs)) {
		l.w.violation("job", "there is no job %d", s.Job)
		return
	}
	j := l.jobs[s.Job-1]
	for _, row := range o.Rows {
		l.parkedByJob(j, l.w.events[row.EventID], row)
	}
	l.w.trace("    job %d of processor %d: %d rows, cursor %s, ordinal %d, walked %d, done %t", j.ID, j.Processor, len(o.Rows), s.Cursor, s.Ordinal, s.Walked, s.Done)
	if j.done { // it was replaced meanwhile
		return
	}
	if s.Ordinal < j.Ordinal || s.Walked < j.Walked || len(s.Cursor) > 0 && !json.Valid(s.Cursor) {
		l.w.violation("job", "job %d moves from %d of %d to %d of %d, cursor %s", j.ID, j.Ordinal, j.Walked, s.Ordinal, s.Walked, s.Cursor)
	}
	j.Cursor, j.Ordinal, j.Walked, j.done = s.Cursor, s.Ordinal, s.Walked, s.Done
	if !j.done {
		return
	}
	for _, tx := range l.w.wal {
		for _, e := range tx.events {
			if k := (worldDelivery{j.Processor, e}); e.pos.Compare(j.border) <= 0 && l.owedTo(k) && !l.settled[k] {
				l.w.violation("job", "job %d of processor %d is done, and %v, created at %s, is not settled", j.ID, j.Processor, e, fmtTime(l.w, e))
			}
		}
	}
}

// parkedByJob checks a row that a job has parked.
func (l *worldLedger) parkedByJob(j *worldJob, e *worldEvent, o checkpoint.Outcome) {
	k := worldDelivery{o.Processor, e}
	l.w.stats.JobRows++
	switch {
	case o.Row != checkpoint.RowInsert || o.Status != checkpoint.Parked || l.jobOf(o.Position) != j || j.Processor != o.Processor:
		l.w.violation("job", "job %d of processor %d has %+v", j.ID, j.Processor, o)
	case !l.owedTo(k) && !l.mayFind(j, k):
		l.w.violation("job", "job %d parks %v, which is not owed to processor %d", j.ID, e, o.Processor)
	case e.pos.Compare(j.border) > 0:
		l.w.violation("job", "job %d parks %v, which the stream brings", j.ID, e)
	case j.last != nil && compareRows(j.last, e) >= 0:
		l.w.violation("job", "job %d parks %v, created at %s, after %v, created at %s", j.ID, e, fmtTime(l.w, e), j.last, fmtTime(l.w, j.last))
	}
	j.last = e
}

func fmtTime(w *simulation, e *worldEvent) string {
	return fmt.Sprintf("%.3f", e.created.Sub(w.began).Seconds())
}

// owedTo reports whether an event is owed to a sink at all.
func (l *worldLedger) owedTo(k worldDelivery) bool {
	return k.processor > 0 && slices.Contains(k.event.sinks, int(k.processor)-1) && !l.leftOut[k]
}

// compareRows compares two rows of the outbox in the order of created_at and id.
func compareRows(a, b *worldEvent) int {
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id))
}

// rowsAfter returns the rows of the outbox that can be seen, behind this one. The world's lock is held.
func (w *simulation) rowsAfter(last *worldEvent, most int) (rows []*worldEvent) {
	for _, tx := range w.wal {
		if !tx.visible {
			continue
		}
		for _, e := range tx.events {
			if last == nil || compareRows(e, last) > 0 {
				rows = append(rows, e)
			}
		}
	}
	slices.SortFunc(rows, compareRows)
	return rows[:min(most, len(rows))]
}

// of returns the row of an event, or nil.
func (l *memLedger) of(processor int32, event string) *memRow {
	for _, r := range l.rows {
		if r.processor == processor && r.id == event {
			return r
		}
	}
	return nil
}
