package connector

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// worldBacklog is the outbox and the ledger as a job of one session sees them.
type worldBacklog struct {
	p      *worldProcess
	random random
}

// worldCursor is a job's cursor: numbers of events.
type worldCursor struct {
	At    *int `json:"at,omitempty"`
	Until *int `json:"until,omitempty"`
}

func (p *worldProcess) unfinishedJobs(ctx context.Context, processors []int32) ([]ledger.Job, error) {
	if err := p.ask(ctx, p.w.random("jobs", p.session)); err != nil {
		return nil, err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	var jobs []ledger.Job
	for _, j := range p.w.ledger.unfinishedJobs() {
		jobs = append(jobs, j.Job)
	}
	return jobs, nil
}

func (p *worldProcess) openBacklog(ctx context.Context, _ int) (backlogTable, error) {
	p.w.mu.Lock()
	p.backlogs++
	b := &worldBacklog{p, p.w.random("backlog", p.session, p.backlogs)}
	p.w.mu.Unlock()
	return b, b.ask(ctx)
}

func (b *worldBacklog) ask(ctx context.Context) error {
	b.p.w.step()
	if err := b.p.ask(ctx, b.random); err != nil {
		return err
	}
	if b.p.w.failing() && b.random.chance(0.02) {
		return errWorldNoPostgres
	}
	return nil
}

func (b *worldBacklog) xminReached(ctx context.Context, xmax uint64) (bool, error) {
	if err := b.ask(ctx); err != nil {
		return false, err
	}
	b.p.w.mu.Lock()
	defer b.p.w.mu.Unlock()
	return b.p.w.xmin() >= xmax, nil
}

func (b *worldBacklog) beginWalk(ctx context.Context) ([]byte, error) {
	if err := b.ask(ctx); err != nil {
		return nil, err
	}
	b.p.w.mu.Lock()
	defer b.p.w.mu.Unlock()
	var c worldCursor
	if rows := b.p.w.rowsAfter(nil, len(b.p.w.events)); len(rows) > 0 {
		c.Until = &rows[len(rows)-1].n
	}
	return json.Marshal(c)
}

func (b *worldBacklog) countRows(ctx context.Context, _ ledger.WalkQuery) (int64, error) {
	return int64(b.random.IntN(3)), b.ask(ctx) // it is an estimate
}

func (b *worldBacklog) estimateRows(ctx context.Context, q ledger.WalkQuery) (int64, error) {
	return b.countRows(ctx, q)
}

func (b *worldBacklog) readChunk(ctx context.Context, q ledger.WalkQuery) (provision.WalkChunk, error) {
	var c worldCursor
	if err := json.Unmarshal(q.Cursor, &c); err != nil {
		return provision.WalkChunk{}, err
	}
	if err := b.ask(ctx); err != nil || c.Until == nil {
		return provision.WalkChunk{WalkChunk: ledger.WalkChunk{Cursor: q.Cursor, End: true}}, err
	}
	found, err := b.read(&c, &q)
	if err != nil {
		return found, err
	}
	if found.Cursor, err = json.Marshal(c); err != nil {
		return found, err
	}
	return found, b.ask(ctx) // the answer takes time as well
}

func (b *worldBacklog) read(c *worldCursor, q *ledger.WalkQuery) (found provision.WalkChunk, err error) {
	w := b.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.sorted()
	var at *worldEvent
	if c.At != nil {
		at = all[*c.At]
	}
	rows := w.rowsAfter(at, len(all))
	most := 1 + b.random.IntN(w.cfg.life.chunk)
	for len(rows) > 0 && compareRows(rows[0], all[*c.Until]) <= 0 && found.Looked < most {
		e := rows[0]
		rows, c.At = rows[1:], &e.n
		if !w.chosen(q, e) {
			continue
		}
		found.Rows = append(found.Rows, provision.WalkRow{Event: e.row(), Size: 100})
		found.Looked++
	}
	found.End = found.Looked < most
	w.trace("a job reads %d rows, cursor %v, end %t", found.Looked, at, found.End)
	return found, nil
}

// row returns the event as the decoder makes it of its row.
func (e *worldEvent) row() *outbox.Event {
	row := &outbox.Event{ID: e.id, AggregateType: "t", AggregateID: e.aggregate, EventType: e.eventType(), Payload: []byte(e.payload())}
	if n, err := strconv.Atoi(e.retries); err == nil {
		row.MaxRetries = &n
	}
	return row
}

// markWAL does what ledger.Schema.MarkWAL does.
func (b *worldBacklog) markWAL(ctx context.Context, _ int64) (pglogrepl.LSN, error) {
	if err := b.ask(ctx); err != nil {
		return 0, err
	}
	w := b.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	lsn := w.end
	w.end += 50
	w.noteGrowth()
	return lsn, nil
}

func (b *worldBacklog) missing(ctx context.Context, q ledger.MissingQuery) ([]int, error) {
	if err := b.ask(ctx); err != nil {
		return nil, err
	}
	b.p.w.mu.Lock()
	var places []int
	for i, id := range q.IDs {
		if b.p.w.ledger.missing(worldDelivery{q.Processor, b.p.w.events[id]}, q.Base) {
			places = append(places, i)
		}
	}
	b.p.w.mu.Unlock()
	return places, b.ask(ctx)
}

func (b *worldBacklog) owedSince(ctx context.Context, _ int32) (time.Time, error) {
	return time.Time{}, b.ask(ctx)
}

func (b *worldBacklog) filters(ctx context.Context, j *ledger.Job) (ledger.JobFilter, ledger.Declined, error) {
	b.p.w.mu.Lock()
	d := b.p.w.ledger.declinedBy(j)
	b.p.w.mu.Unlock()
	return j.Filter, d, b.ask(ctx)
}
