package connector

import (
	"time"
)

const (
	// rereadEvery is how often a live lane reads the table even if nobody has said that it changed.
	rereadEvery = 30 * time.Second
	// catchUpPace is how long a lane stays live at least before it catches up again.
	catchUpPace = 250 * time.Millisecond
	// awayPace is the longest wait before a destination that is away is asked again in place. One request every 10 s costs
	// little. Without it everything would wait minutes for a destination that has recovered.
	awayPace = 10 * time.Second
)

// shouldCatchUp reports whether a live lane has to read the table: the sink is paused, rows were changed, one is due, or the lane holds
// too many aggregates.
func (l *lane) shouldCatchUp(now time.Time) bool {
	if l.paused.Load() {
		return true
	}
	if len(l.inHand) > 0 {
		return false // what the lane has in hand goes first
	}
	due := len(l.held) > 0 && !now.Before(l.heldUntil)
	if !l.tableChanged && !due && len(l.held) <= l.maxHeld {
		if len(l.held) > 0 {
			l.wakeAt(l.heldUntil)
		}
		return false
	}
	if now.Before(l.catchUpAt) {
		l.wakeAt(l.catchUpAt)
		return false
	}
	return true
}

// stepLive delivers arrivals. It parks those of a held aggregate, behind the rows that the aggregate has in the table.
func (l *lane) stepLive(now time.Time) {
	if !l.mayDeliver() {
		return
	}
	if len(l.inHand) > 0 {
		l.deliverAgain(now)
		return
	}
	if len(l.pending) == 0 {
		return
	}
	if len(l.pending) < l.delivery.BatchSize && l.fast() {
		if at := l.started.Add(deliverPace); now.Before(at) {
			l.wakeAt(at)
			return
		}
	}
	p := l.permitted(now)
	if !p.ok {
		return
	}
	most := l.delivery.BatchSize
	if p.probe || l.away && l.inPlace() {
		most = 1 // each try of each message is a row in the ledger
	}
	l.deliverSome(now, &l.pending, most, l.behindHeld)
}

// behindHeld parks an arrival if a failure holds its aggregate, and reports whether it did.
func (l *lane) behindHeld(d *delivery) bool {
	_, held := l.held[d.hash]
	if held {
		l.park(d)
	}
	return held
}

// deliverAgain tries again, in place, what the sink has not accepted.
func (l *lane) deliverAgain(now time.Time) {
	if now.Before(l.retryAt) {
		l.wakeAt(l.retryAt)
		return
	}
	p := l.permitted(now)
	if !p.ok {
		return
	}
	most := l.delivery.BatchSize
	if p.probe || l.away {
		most = 1
	}
	l.deliverSome(now, &l.inHand, most, l.behindHeld)
}

// deliverSome takes at most most messages off the front of a list and starts their Deliver. It drops those for which leave returns true:
// they were parked, or stay in the table.
func (l *lane) deliverSome(now time.Time, list *[]*delivery, most int, leave func(*delivery) bool) {
	batch := (*list)[:0:0]
	n := 0
	for ; n < len(*list) && len(batch) < most; n++ {
		if d := (*list)[n]; !leave(d) {
			batch = append(batch, d)
		}
	}
	clear((*list)[:n]) // the list's array lives on; settled deliveries must not
	if *list = (*list)[n:]; len(*list) == 0 {
		*list = nil
	}
	if len(batch) == 0 {
		l.wakeAt(now)
		return
	}
	p := l.breaker.claim(l.number, now)
	if !p.ok { // another lane was faster
		*list = append(batch, *list...)
		return
	}
	l.start(now, batch, p)
}
