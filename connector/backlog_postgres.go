package connector

import (
	"context"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

func (p *postgres) unfinishedJobs(ctx context.Context, processors []int32) ([]ledger.Job, error) {
	return p.UnfinishedJobs(ctx, p.pool, processors)
}

func (p *postgres) openBacklog(ctx context.Context, maxEventBytes int) (backlogTable, error) {
	if err := p.source.provision().CheckOrder(ctx, p.pool); err != nil {
		return nil, err
	}
	walk, err := p.source.provision().OpenWalk(ctx, p.pool, maxEventBytes)
	if err != nil {
		return nil, err
	}
	return &pgBacklog{p, walk}, nil
}

// pgBacklog is the real outbox, and the ledger.
type pgBacklog struct {
	*postgres
	walk *provision.Walk
}

func (b *pgBacklog) xminReached(ctx context.Context, xmax uint64) (bool, error) {
	return b.XminReached(ctx, b.pool, xmax)
}

func (b *pgBacklog) owedSince(ctx context.Context, processor int32) (time.Time, error) {
	return b.OwedSince(ctx, b.pool, processor)
}

func (b *pgBacklog) filters(ctx context.Context, j *ledger.Job) (ledger.JobFilter, ledger.Declined, error) {
	return b.Filters(ctx, b.pool, j)
}

func (b *pgBacklog) beginWalk(ctx context.Context) ([]byte, error) {
	return b.walk.Begin(ctx, b.pool)
}

func (b *pgBacklog) countRows(ctx context.Context, q ledger.WalkQuery) (int64, error) {
	return b.walk.Count(ctx, b.pool, q)
}

func (b *pgBacklog) estimateRows(ctx context.Context, q ledger.WalkQuery) (int64, error) {
	return b.walk.Estimate(ctx, b.pool, q)
}

func (b *pgBacklog) readChunk(ctx context.Context, q ledger.WalkQuery) (provision.WalkChunk, error) {
	return b.walk.Read(ctx, b.pool, q)
}

func (b *pgBacklog) markWAL(ctx context.Context, job int64) (pglogrepl.LSN, error) {
	return b.MarkWAL(ctx, b.pool, job)
}

func (b *pgBacklog) missing(ctx context.Context, q ledger.MissingQuery) ([]int, error) {
	return b.Missing(ctx, b.pool, q)
}
