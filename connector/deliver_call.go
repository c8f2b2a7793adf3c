package connector

import (
	"context"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// call calls Deliver, within a span if deliveries are traced.
func (l *lane) call(ctx context.Context, batch []sinks.Message) result {
	var res result
	ctx, res.span = l.spans.Start(ctx, l.number, batch)
	res.started = time.Now()
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
