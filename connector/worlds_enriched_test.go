package connector

import (
	"cmp"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// enrichLife draws what else happens in the life of a slot. Each thing has random numbers of its own, so that the other draws of a seed stay as
// they are.
func (c *worldConfig) enrichLife(filter, server, later random) {
	l := &c.life
	l.filter = l.filled && filter.chance(0.5)
	if server.chance(0.5) {
		l.renumbers = 0.4
	}
	// Of two processes with different configurations the older one would not know the sink.
	l.later = later.chance(0.5) && c.sinks > 1 && l.instances == 1
}

// wants reports whether the filter of init wants a row.
func (w *simulation) wants(e *worldEvent) bool {
	return w.random("wanted", e.n).chance(0.6)
}

// leaveOut notes what the filter of init leaves out of the rows from before the slot, and returns the filter. The world's lock is held.
func (l *worldLedger) leaveOut(start pglogrepl.LSN) (f ledger.JobFilter) {
	if !l.w.cfg.life.filter {
		return f
	}
	l.declined = time.Now()
	for _, e := range l.w.events {
		if e.pos.LSN == 0 || e.pos.LSN >= start {
			if !e.created.IsZero() && e.created.Before(l.declined) { // the time is early enough for all that is written later: see ledger.Declined
				l.declined = e.created.Truncate(20 * timeUnit)
			}
			continue
		}
		for _, s := range e.sinks {
			if p := processor(s); (!l.unknown(p) || l.w.joined) && !l.w.wants(e) {
				l.leftOut[worldDelivery{p, e}] = true
				l.w.stats.LeftOut++
			}
		}
	}
	return ledger.JobFilter{Where: "wanted"}
}

// chosen reports whether a walk finds a row. The world's lock is held.
func (w *simulation) chosen(q *ledger.WalkQuery, e *worldEvent) bool {
	return (q.Filter.Where == "" || w.wants(e)) && (q.Declined.Filter.Where == "" || !e.created.Before(q.Declined.Before) || w.wants(e))
}

// declinedBy does what ledger.Schema.Declined does. The world's lock is held.
func (l *worldLedger) declinedBy(j *ledger.Job) ledger.Declined {
	for _, chosen := range slices.Backward(l.jobs) {
		if chosen.ID < j.ID && chosen.Processor == j.Processor && (chosen.Reason == ledger.JobOfInit || chosen.Reason == ledger.JobOfSink) {
			return ledger.Declined{Filter: chosen.Filter, Before: l.declined}
		}
	}
	return ledger.Declined{}
}

// mayFind reports whether a job may park what init has left out: a later job cannot tell for certain which rows are from before init.
func (l *worldLedger) mayFind(j *worldJob, k worldDelivery) bool {
	return l.leftOut[k] && j.Reason != ledger.JobOfInit && !k.event.created.Before(l.declined)
}

// configured returns how many sinks the configuration has. The world's lock is held.
func (w *simulation) configured() int {
	if w.cfg.life.later && !w.joined {
		return len(w.sinks) - 1
	}
	return len(w.sinks)
}

// join configures the last sink, and starts the connector anew.
func (w *simulation) join() {
	w.mu.Lock()
	w.joined = true
	w.stats.Joined++
	w.trace("PERSON configures sink%d", len(w.sinks)-1)
	w.mu.Unlock()
	for _, p := range w.alive() {
		p.stop()
	}
}

// unknown reports whether the ledger has never heard of a processor. The world's lock is held.
func (l *worldLedger) unknown(p int32) bool {
	return !l.knowsAll && p == processor(l.w.cfg.sinks-1)
}

// register does what ledger.Schema.RegisterProcessors does: it files the job of a sink that is new and has a backlog. What the stream is still to
// bring it brings to this sink as well; everything before is the job's.
func (l *worldLedger) register(all []ledger.Processor) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	last := len(l.w.sinks) - 1
	if l.knowsAll || len(all) <= last {
		return
	}
	l.knowsAll = true
	p := processor(last)
	for _, tx := range l.w.wal {
		for _, e := range tx.events {
			k := worldDelivery{p, e}
			if slices.Contains(e.sinks, last) && e.pos.Compare(l.prefix) > 0 && tx.commit >= l.confirmed && tx.commit >= l.w.slot.start {
				l.byJob[k] = false
				a := l.aggregate(p, e)
				a.events = append(a.events, e)
			}
		}
	}
	job := *all[last].Backlog
	job.Processor, job.SnapshotXmax = p, l.w.nextXid
	l.file(job, l.prefix)
	l.w.trace("JOB of sink%d: start %s, prefix %s", last, job.Start, l.prefix)
}

// worldMove is a parked row that was renumbered.
type worldMove struct{ from, to checkpoint.Position }

// worldFirstLSN is before all that a slot brings, and behind all that was renumbered.
const worldFirstLSN = pglogrepl.LSN(1 << 20)

// original returns the position that a position would be without the renumbering. The order of such positions is that of the deliveries.
func (l *worldLedger) original(k worldDelivery, at checkpoint.Position) checkpoint.Position {
	if move, is := l.renumbered[k]; is && at == move.to {
		return move.from
	}
	if at.LSN < worldFirstLSN {
		if j := l.jobOf(at); j != nil {
			at.LSN = j.start
		}
	}
	return at
}

// renumber does what ledger.Schema.Renumber does: what waits behind an unfinished job comes last. The world's lock is held.
func (l *worldLedger) renumber(base checkpoint.Position) {
	l.parked.mu.Lock()
	defer l.parked.mu.Unlock()
	starts := map[int32]pglogrepl.LSN{}
	for _, j := range l.unfinishedJobs() {
		starts[j.Processor] = j.Start
	}
	isBehind := func(r *memRow) bool {
		start, is := starts[r.processor]
		return is && r.pos.Compare(checkpoint.Position{LSN: start}) >= 0
	}
	var lsn pglogrepl.LSN
	for _, r := range l.parked.rows {
		if r.pos.LSN < worldFirstLSN {
			lsn = max(lsn, r.pos.LSN)
		}
	}
	var place int64
	for _, behind := range []bool{false, true} {
		if behind { // the jobs' start
			lsn++
			for _, j := range l.unfinishedJobs() {
				if j.Start >= worldFirstLSN {
					j.Start = lsn
				}
			}
		}
		var last checkpoint.Position
		var kind, any bool
		for i, r := range l.parked.rows { // in the order of positions, which stays
			if r.pos.LSN < worldFirstLSN || isBehind(r) != behind {
				continue
			}
			streamed := r.pos.Index >= 0 && r.pos.Compare(base) <= 0
			if !any || streamed != kind {
				lsn++
			}
			if !any || r.pos != last {
				place++
			}
			any, kind, last = true, streamed, r.pos
			to := checkpoint.Position{LSN: lsn, Index: place}
			if !streamed {
				to.Index += firstOfJobs
			}
			k := worldDelivery{r.processor, l.w.events[r.id]}
			l.renumbered[k] = worldMove{r.pos, to}
			l.places[k] = to
			copied := *r // a lane may hold the row that it has read
			copied.pos = to
			l.parked.rows[i] = &copied
			l.w.stats.Renumbered++
		}
	}
	slices.SortFunc(l.parked.rows, func(a, b *memRow) int {
		return cmp.Or(a.pos.Compare(b.pos), int(a.processor-b.processor))
	})
	l.w.trace("PARKED rows are numbered anew, base %s", base)
}

// mayStandAt reports whether a message of this event may come with this position. For a moment a session that was replaced may still send what it
// read before the rows were renumbered.
func (c *worldClient) mayStandAt(e *worldEvent, at checkpoint.Position) bool {
	move, is := c.w.ledger.renumbered[worldDelivery{processor(c.n), e}]
	return is && c.epoch < c.w.ledger.epoch && at == move.from || c.worldSink.mayStandAt(e, at)
}
