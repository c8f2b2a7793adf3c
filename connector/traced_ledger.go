package connector

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/tracing"
)

// traced returns the ledger as it is, or one that makes a span of each Commit if the connector has a tracer.
func (c *Connector) traced(l checkpoint.Ledger) checkpoint.Ledger {
	if c.cfg.Tracer == nil {
		return l
	}
	return tracedLedger{l, tracing.ForRecorder(c.cfg.Tracer, c.cfg.Source.Table)}
}

// tracedLedger is a ledger that makes a span of each Commit.
type tracedLedger struct {
	checkpoint.Ledger
	spans *tracing.Recorder
}

func (t tracedLedger) Commit(ctx context.Context, b checkpoint.Batch) error {
	rows := 0
	for i := range b.Outcomes {
		rows += len(b.Outcomes[i].Rows)
	}
	ctx, span := t.spans.Start(ctx, rows)
	err := t.Ledger.Commit(ctx, b)
	span.End(recordFailure(err))
	return err
}

// recordFailure returns what a span says of an error of Commit. The text stays away from it.
func recordFailure(err error) tracing.Failure {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return tracing.Failure{}
	case errors.As(err, &pg):
		return tracing.Failure{Class: pg.Code, SQLState: pg.Code}
	case errors.Is(err, checkpoint.ErrFenced):
		return tracing.Failure{Class: "fenced"}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return tracing.Failure{Class: "interrupted"}
	}
	return tracing.Failure{Class: "unavailable"} // the connection was lost, or could not be made
}
