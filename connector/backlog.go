package connector

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

const (
	// chunkRows and chunkBytes bound how much of the outbox one step of a job takes into memory.
	chunkRows  = 5000
	chunkBytes = 4 << 20
	// firstAsk is how long a job waits for the stream before it asks for another keepalive. The next waits double, up to lastAsk.
	firstAsk = 20 * time.Millisecond
	lastAsk  = time.Second
	// xminPace is how often a job looks whether the transactions have ended for which its first chunk has to wait.
	xminPace = 200 * time.Millisecond
	// stepRetry is how long a job waits after a step that failed, at first. The next waits double, up to stepRetryMost.
	stepRetry     = 500 * time.Millisecond
	stepRetryMost = 10 * time.Second
)

// The rows of a job have the positions (start, id·2^40 + ordinal − 2^62). The index is negative, so it is none that the stream has given, and
// the row stands before everything that the stream brings after the gap.
const (
	firstJobIndex = -(int64(1) << 62)
	jobRows       = int64(1) << 40
)

// backlogDatabase is PostgreSQL as jobs need it.
type backlogDatabase interface {
	// unfinishedJobs returns the unfinished jobs of these sinks.
	unfinishedJobs(ctx context.Context, processors []int32) ([]ledger.Job, error)
	// openBacklog looks at the outbox's columns.
	openBacklog(ctx context.Context, maxEventBytes int) (backlogTable, error)
}

// backlogTable is the outbox and the ledger as one job sees them: pgBacklog, or a test's.
type backlogTable interface {
	// xminReached reports whether all transactions with a lower id have ended, for everybody to see.
	xminReached(ctx context.Context, xmax uint64) (bool, error)
	// owedSince returns the time of the first rows that a job with a base looks at; zero for all.
	owedSince(ctx context.Context, processor int32) (time.Time, error)
	// filters returns a job's filter as it stands in the ledger now, and what the init before the job has left out.
	filters(ctx context.Context, j *ledger.Job) (ledger.JobFilter, ledger.Declined, error)
	// beginWalk returns the cursor of a walk of all rows that can be seen now.
	beginWalk(ctx context.Context) ([]byte, error)
	// countRows returns how many rows are behind a cursor, exactly if that is known soon.
	countRows(ctx context.Context, q ledger.WalkQuery) (int64, error)
	// estimateRows returns about how many rows are behind a cursor. It reads none of them.
	estimateRows(ctx context.Context, q ledger.WalkQuery) (int64, error)
	// readChunk reads the next chunk.
	readChunk(ctx context.Context, q ledger.WalkQuery) (provision.WalkChunk, error)
	// markWAL returns an LSN at or behind the commit of everything that could be seen before, and makes the stream come to it soon.
	markWAL(ctx context.Context, job int64) (pglogrepl.LSN, error)
	// missing returns the places in q.IDs of those events that are missing.
	missing(ctx context.Context, q ledger.MissingQuery) ([]int, error)
}

// backlogJob parks the rows of the outbox that a sink has never got, a chunk at a time; the lanes deliver them as they deliver any parked
// row. Its goroutine runs as long as the job is unfinished and the session reads.
//
// Why nothing is lost, and nothing parked twice:
//
//  1. The first chunk is read when everything that was committed before the slot was made can be seen. What becomes visible later comes on
//     the stream. So the walk ends at the last row of that moment.
//  2. A chunk is compared with the ledger when the stream is settled through an LSN that was asked for after the chunk was read. What the
//     stream has brought of the chunk's rows is in the ledger then.
//  3. The rows of a chunk and the cursor behind them are one transaction of the recorder. A kill leaves both or neither.
//
// A chunk is parked when the lanes have found all rows of the chunk before, or these wait behind held rows of their aggregates. So memory stays
// bounded, and outbox_parked too as long as the sink accepts. Meanwhile the next chunk is read and compared.
type backlogJob struct {
	row      ledger.Job
	sink     *sharedSink
	lanes    []*lane
	tracker  *checkpoint.Tracker
	router   *router.Router
	ask      func()                                          // asks the server for a keepalive
	open     func(ctx context.Context) (backlogTable, error) // opens table
	shown    *shownJob
	report   func(error)                          // tells health how the last step went
	letter   func(e *outbox.Event, invalid error) // tells of a row that is no valid event
	out      chan<- checkpoint.Outcomes           // to the recorder
	recorded chan uint64                          // from it
	noEvents chan struct{}                        // who holds its value may write dead letters of rows that are no valid events
	logger   *slog.Logger

	table   backlogTable
	query   ledger.WalkQuery // without the cursor
	given   uint64           // the last outcomes that the recorder was given
	targets []router.Target
}

// run takes step after step until the job is done or ctx ends. A step that fails is tried again.
func (j *backlogJob) run(ctx context.Context) {
	j.logger.Info("a backlog job begins, or goes on", "sink", j.sink.name, "job", j.row.ID, "reason", string(j.row.Reason), "walked", j.row.Walked, "parked", j.row.Ordinal)
	pause := stepRetry
	for {
		done, err := j.step(ctx)
		if ctx.Err() != nil {
			return
		}
		j.report(err)
		switch {
		case err != nil:
			j.table = nil            // what is wrong may be mended in the outbox's columns, or in the filter
			_ = wait.For(ctx, pause) // the next step sees that ctx has ended
			pause = min(2*pause, stepRetryMost)
		case done:
			j.logger.Info("a backlog job is done", "sink", j.sink.name, "job", j.row.ID, "walked", j.row.Walked, "parked", j.row.Ordinal)
			j.sink.backlog.end()
			j.shown.end()
			for _, l := range j.lanes {
				l.ask(askReread)
			}
			return
		default:
			pause = stepRetry
		}
	}
}

// step takes the next chunk, and reports whether it was the last one.
func (j *backlogJob) step(ctx context.Context) (done bool, err error) {
	if err := j.begin(ctx); err != nil {
		return false, err
	}
	chunk, err := j.table.readChunk(ctx, j.behind(j.row.Cursor))
	if err != nil {
		return false, err
	}
	if err := j.awaitStream(ctx); err != nil {
		return false, err
	}
	rows, release, err := j.outcomes(ctx, chunk.Rows)
	if err != nil {
		return false, err
	}
	defer release()
	if len(rows) > 0 {
		if err := j.sink.backlog.awaitDry(ctx); err != nil {
			return false, err
		}
	}
	step := checkpoint.JobStep{
		Job: j.row.ID, Cursor: chunk.Cursor, Ordinal: j.row.Ordinal + int64(len(rows)), Walked: j.row.Walked + int64(chunk.Looked), Estimate: j.row.Estimate, Done: chunk.End,
	}
	if step.Walked > step.Estimate && !step.Done { // the estimate was too low
		left, err := j.table.estimateRows(ctx, j.behind(step.Cursor))
		if err != nil {
			return false, err
		}
		step.Estimate = step.Walked + left
	}
	if err := j.give(ctx, checkpoint.Outcomes{Rows: rows, Job: &step, Urgent: true}); err != nil {
		return false, err
	}
	j.row.Cursor, j.row.Ordinal, j.row.Walked, j.row.Estimate = step.Cursor, step.Ordinal, step.Walked, step.Estimate
	j.shown.step(j.row)
	if len(rows) > 0 {
		j.lanes[0].state.parked(rows)
		j.sink.backlog.parked(rows[0].Position)
		for _, l := range j.lanes {
			l.ask(askChunk)
		}
	}
	return step.Done, nil
}

// begin opens what the steps need, and begins the walk of a job that has not begun.
func (j *backlogJob) begin(ctx context.Context) error {
	if j.table != nil {
		return nil
	}
	table, err := j.open(ctx)
	if err != nil {
		return err
	}
	j.query = ledger.WalkQuery{MaxRows: chunkRows, MaxBytes: chunkBytes}
	if j.row.Base != (checkpoint.Position{}) {
		if j.query.Since, err = table.owedSince(ctx, j.row.Processor); err != nil {
			return err
		}
	}
	if j.query.Filter, j.query.Declined, err = table.filters(ctx, &j.row); err != nil {
		return err
	}
	if len(j.row.Cursor) == 0 {
		if err := j.awaitXmin(ctx, table); err != nil {
			return err
		}
		cursor, err := table.beginWalk(ctx)
		if err != nil {
			return err
		}
		// Until now the estimate was that of whoever has filed the job, who may have counted other rows.
		if j.row.Estimate, err = table.countRows(ctx, j.behind(cursor)); err != nil {
			return err
		}
		j.row.Cursor = cursor
	}
	j.table = table
	j.shown.step(j.row)
	return nil
}

// behind asks for the rows behind a cursor.
func (j *backlogJob) behind(cursor []byte) ledger.WalkQuery {
	q := j.query
	q.Cursor = cursor
	return q
}

// awaitXmin waits until everything that was committed before the slot was made can be seen.
func (j *backlogJob) awaitXmin(ctx context.Context, table backlogTable) error {
	if j.row.SnapshotXmax == 0 {
		return nil
	}
	for said := false; ; said = true {
		reached, err := table.xminReached(ctx, j.row.SnapshotXmax)
		if err != nil || reached {
			return err
		}
		if !said {
			j.shown.wait("the end of the transactions that ran when the slot was made")
			j.logger.Info("a backlog job waits until the transactions have ended that ran when the slot was made", "sink", j.sink.name, "job", j.row.ID, "before_xid", j.row.SnapshotXmax)
		}
		if err := wait.For(ctx, xminPace); err != nil {
			return err
		}
	}
}

// awaitStream waits until the stream is settled through an LSN that is behind the commits of all rows that were read.
func (j *backlogJob) awaitStream(ctx context.Context) error {
	lsn, err := j.table.markWAL(ctx, j.row.ID)
	if err != nil {
		return err
	}
	settled := j.tracker.SettledThrough(lsn)
	for wait := firstAsk; ; wait = min(2*wait, lastAsk) {
		if !j.tracker.Seen(lsn) {
			j.ask()
		}
		t := time.NewTimer(wait)
		select {
		case <-settled:
			t.Stop()
			return nil
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// outcomes returns what the recorder has to write of these rows: the missing ones are parked. A row that is no valid event is a dead letter of
// no sink, once for all jobs. Until release is called, no other job makes such dead letters.
func (j *backlogJob) outcomes(ctx context.Context, rows []provision.WalkRow) (list []checkpoint.Outcome, release func(), err error) {
	release = func() {}
	var owed, odd []provision.WalkRow
	for _, row := range rows {
		switch {
		case row.Invalid != nil:
			odd = append(odd, row)
		case j.routed(row.Event):
			owed = append(owed, row)
		}
	}
	if owed, err = j.missing(ctx, j.row.Processor, owed); err != nil {
		return nil, release, err
	}
	if len(odd) > 0 {
		select {
		case j.noEvents <- struct{}{}:
			release = func() { <-j.noEvents }
		case <-ctx.Done():
			return nil, release, context.Cause(ctx)
		}
		if odd, err = j.missing(ctx, 0, odd); err != nil {
			release()
			return nil, func() {}, err
		}
	}
	now := time.Now()
	for _, row := range append(owed, odd...) {
		e := row.Event
		o := checkpoint.Outcome{
			Row: checkpoint.RowInsert, Status: checkpoint.Parked, Processor: j.row.Processor, EventID: e.ID, StartedAt: now, CompletedAt: now,
			Position: checkpoint.Position{LSN: j.row.Start, Index: firstJobIndex + j.row.ID*jobRows + j.row.Ordinal + int64(len(list))},
			Parked: &checkpoint.ParkedState{
				AggregateHash: router.AggregateHash(e.AggregateType, e.AggregateID), Event: storedEvent(e, time.Time{}).Encode(), Payload: e.Payload,
			},
		}
		if row.Invalid != nil {
			o.Status, o.Processor, o.Error = checkpoint.Dead, 0, row.Invalid.Error()
			o.Parked.AggregateHash = 0
			j.letter(e, row.Invalid)
		}
		list = append(list, o)
	}
	return list, release, nil
}

// routed reports whether the routes of today lead the event to the job's sink.
func (j *backlogJob) routed(e *outbox.Event) bool {
	j.targets = j.router.Route(e, j.targets[:0])
	for _, t := range j.targets {
		if t.Processor == j.row.Processor {
			return true
		}
	}
	return false
}

// missing returns those of the rows that are missing for a processor. A row without an id cannot be found in the ledger.
func (j *backlogJob) missing(ctx context.Context, processor int32, rows []provision.WalkRow) ([]provision.WalkRow, error) {
	var ids []string
	var named []int
	keep := make([]bool, len(rows))
	for i := range rows {
		if id := rows[i].Event.ID; id != "" {
			ids, named = append(ids, id), append(named, i)
		} else {
			keep[i] = true
		}
	}
	if len(ids) > 0 {
		found, err := j.table.missing(ctx, ledger.MissingQuery{Processor: processor, Base: j.row.Base, IDs: ids})
		if err != nil {
			return nil, err
		}
		for _, n := range found {
			keep[named[n]] = true
		}
	}
	var list []provision.WalkRow
	for i := range rows {
		if keep[i] {
			list = append(list, rows[i])
		}
	}
	return list, nil
}

// give hands a step to the recorder, and waits until it is committed.
func (j *backlogJob) give(ctx context.Context, o checkpoint.Outcomes) error {
	j.given++
	o.Seq, o.Recorded = j.given, j.recorded
	select {
	case j.out <- o:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		select {
		case seq := <-j.recorded:
			if seq >= j.given {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// makeJobs makes the unfinished jobs of the session's sinks, before their lanes begin.
func (s *session) makeJobs(ctx context.Context, routes []router.Route) error {
	rows, err := s.c.db.unfinishedJobs(ctx, s.processors())
	if err != nil {
		return err
	}
	noEvents := make(chan struct{}, 1)
	open := func(ctx context.Context) (backlogTable, error) {
		return s.c.db.openBacklog(ctx, s.c.cfg.Delivery.MaxEventBytes)
	}
	for _, row := range rows {
		lanes := s.bySink[row.Processor]
		sink := lanes[0].sharedSink
		goes := &dutyReport{c: s.c, duty: fmt.Sprintf("backlog of %s", sink.name)}
		sink.backlog.begin(row.Start, len(lanes))
		shown := &s.c.sinks[sink.name].job
		shown.begin(row)
		s.jobs = append(s.jobs, &backlogJob{
			row: row, sink: sink, lanes: lanes, tracker: s.tracker, router: router.New(routes), ask: s.stream.AskKeepalive, open: open, shown: shown,
			report: func(err error) { goes.report(s.c.explainLock(context.WithoutCancel(ctx), err)) }, letter: s.c.tellInvalid, out: s.outcomes, recorded: make(chan uint64, 1), noEvents: noEvents, logger: s.c.cfg.Logger,
		})
	}
	return nil
}

// tellInvalid counts a row that is no valid event, and tells the log of it.
func (c *Connector) tellInvalid(e *outbox.Event, invalid error) {
	c.noSink.invalid.Add(1)
	letter := deadLetter{eventID: e.ID, eventType: e.EventType, aggregateType: e.AggregateType, cause: invalid}
	if c.outages.noSink.add(letter, time.Now()) {
		letter.log(c.cfg.Logger)
	}
}
