package connector

import (
	"fmt"
	"slices"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// unfinished says what is not done yet. If it returns "", everything is done, and the world is over.
func (w *simulation) unfinished() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var p *worldProcess
	var s *session
	if user := w.slot.user; user != nil {
		p = user.p
		s = p.connector.running.Load()
	}
	switch {
	case w.uncommitted > 0:
		return "transactions of applications"
	case s == nil:
		return "no session"
	case int(p.stream.done.Load()) < len(w.wal):
		return "the stream"
	case s.tracker.InFlight() > 0:
		return fmt.Sprintf("%d events in flight", s.tracker.InFlight())
	case w.slot.confirmed < w.oursEnd:
		return fmt.Sprintf("the slot is at %s, not at %s", w.slot.confirmed, w.oursEnd)
	case !w.ledger.knowsAll || p.sinks < len(w.sinks):
		return "the later sink"
	case len(w.ledger.unfinishedJobs()) > 0:
		return "a job"
	}
	w.ledger.parked.mu.Lock()
	defer w.ledger.parked.mu.Unlock()
	for i := range w.sinks {
		stuck := map[int64]bool{} // behind a message that is never answered: kept, not lost
		for _, r := range w.ledger.parked.rows {
			if r.processor != processor(i) {
				continue
			}
			e := w.events[r.id]
			stuck[r.hash] = stuck[r.hash] || e.reactions[i].kind >= reactionTimeout
			if (!r.dead || w.cfg.block) && !stuck[r.hash] {
				return fmt.Sprintf("sink%d has %v parked: dead %t, due %s, tries %d", i, e, r.dead, r.due, r.tries)
			}
		}
		if len(stuck) == 0 && !p.live(s, i) {
			return fmt.Sprintf("the lanes of sink%d are not live", i)
		}
	}
	rows := w.ledger.parked.counts()
	for i, st := range p.connector.Status().Sinks {
		if n := rows[processor(i)]; st.CountedAt.IsZero() || n != (ledger.RowCounts{Parked: st.Parked, Dead: st.DeadLetters}) {
			return fmt.Sprintf("Status has %d parked and %d dead rows of sink%d, counted at %s; the table has %+v", st.Parked, st.DeadLetters, i, st.CountedAt, n)
		}
	}
	w.over = true
	return ""
}

// check compares the committed events with what the sinks accepted and what the ledger says of them.
func (w *simulation) check() {
	for _, e := range w.sorted() {
		if e.pos.LSN == 0 {
			continue
		}
		for _, k := range w.sinks {
			w.checkEvent(e, k)
		}
		if k := (worldDelivery{0, e}); len(e.sinks) == 0 && !w.ledger.byJob[k] && w.ledger.last[worldDelivery{0, e}] != "discarded" {
			w.violation("no row", "%v, which no route wants", e)
		}
	}
	for _, k := range w.sinks {
		for _, events := range k.order {
			w.checkOrder(k, events)
		}
	}
}

func (w *simulation) checkEvent(e *worldEvent, k *worldSink) {
	a, key := k.acceptanceOf(e), worldDelivery{processor(k.n), e}
	foreign := !slices.Contains(e.sinks, k.n) // no route sends it to this sink
	row := w.ledger.parked.of(key.processor, e.id)
	parked := row != nil
	if w.ledger.leftOut[key] && a.count == 0 && !parked && w.ledger.last[key] == "" {
		return // no later job has found it either
	}
	dead := parked && row.dead
	switch last := w.ledger.last[key]; {
	case foreign && (a.count > 0 || last != "" || parked):
		w.violation("phantom", "%v at sink%d", e, k.n)
	case foreign || parked && !dead:
	case a.count == 0 && !dead && !w.ledger.discarded[key]:
		w.violation("lost", "%v was never accepted by sink%d, and is not dead (log %q)", e, k.n, last)
	case last == "":
		w.violation("no row", "%v of sink%d has no row in the log", e, k.n)
	}
	if a.count > 1+a.unknown {
		w.violation("duplicate", "%v was accepted %d times by sink%d, with %d tries of unknown outcome", e, a.count, k.n, a.unknown)
	}
}

// checkOrder checks that a sink first accepted the events of an aggregate in their order, which is that of the places from which they were
// delivered. It leaves out dead letters that let their aggregate go on, and what a person declared dead or discarded: those have lost their
// place. So has what was given to the sink before the slot was lost and parked by a job then. The rows of a job that has replaced another stand
// where the stream began after the first gap, which may be before events that were accepted earlier: so two events in the order of their
// commits are never out of order.
func (w *simulation) checkOrder(k *worldSink, events []*worldEvent) {
	var last *worldEvent
	for _, e := range events {
		key := worldDelivery{processor(k.n), e}
		if !w.cfg.block && w.ledger.dead[key] || w.ledger.displaced[key] || w.ledger.discarded[key] {
			continue
		}
		if at := k.acceptanceOf(e).places; len(at) > 1 || !at[w.ledger.place(key)] {
			continue
		}
		if last != nil && w.ledger.place(key).Compare(w.ledger.place(worldDelivery{processor(k.n), last})) < 0 && e.pos.Compare(last.pos) < 0 {
			w.violation("order", "sink%d accepted %v after %v", k.n, e, last)
			continue
		}
		last = e
	}
}
