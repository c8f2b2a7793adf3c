package connector

import (
	"context"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// may reports whether the lane may begin a Deliver, as far as breaker and lease know.
func (l *lane) may(now time.Time) permission {
	p := l.breaker.may(l.number, now)
	p.lease = l.lease.wait(now)
	return p
}

// call calls Deliver, within a span if deliveries are traced. It looks at the lease once more, because the process may have been frozen
// since the lane has decided.
func (l *lane) call(ctx context.Context, batch []sinks.Message) result {
	res := result{started: time.Now()}
	if res.unbegun = l.lease.wait(res.started) > 0; res.unbegun {
		return res
	}
	ctx, res.span = l.spans.Start(ctx, l.number, batch)
	l.state.work.delivering.begin(res.started)
	if composite, ok := l.sink.(sinks.Chooser); ok {
		res.errs, res.members = composite.DeliverBy(ctx, batch)
	} else {
		res.errs = l.sink.Deliver(ctx, batch)
	}
	res.completed = time.Now()
	l.state.work.delivering.end(res.completed)
	res.span.End(res.errs)
	return res
}

// ended evaluates what a Deliver has answered, if it has begun.
func (l *lane) ended(work, deliver context.Context, res result) error {
	if res.unbegun {
		l.takeBack()
		return nil
	}
	return l.finish(work, deliver, res)
}

// takeBack takes back the messages of a Deliver that has not begun, because the lease had ended meanwhile: the process was frozen, for
// example. They are tried again before anything else, as soon as there is a lease.
func (l *lane) takeBack() {
	r := l.running
	l.running = nil
	clear(l.again.messages)
	var again []*delivery
	for _, d := range r.messages {
		switch {
		case d.discarded:
		case d.row: // it is in the table, or was parked meanwhile
			l.table.changed = true
		default:
			again = append(again, d)
		}
	}
	l.hand.list = append(again, l.hand.list...)
	l.breaker.judge(verdict{probe: r.probe})
}
