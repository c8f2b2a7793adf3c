package connector

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// compareChunkRows is how many rows of the outbox are compared with the ledger at once.
	compareChunkRows = 1000
	// compareEvery is how long after the end of a pass the next one begins, if anything was settled since then.
	compareEvery = 30 * time.Second
	// compareShare is how long the comparison rests after a chunk, as a multiple of what the chunk took: it takes 1 % of the time. While events
	// come and it is more than compareBehind behind, it takes 4 %.
	compareShare, compareShareBehind = 99, 24
	compareBehind                    = 10 * time.Minute
	compareRestMost                  = 30 * time.Second
	// compareAll is how often a pass looks at all rows, and compareAgain how far before the begin of the last pass the others begin: a
	// transaction that was open for long commits rows with old times.
	compareAll   = 24 * time.Hour
	compareAgain = time.Hour
	// compareRecheck is how often events that are missing are looked for again, while nothing is settled.
	compareRecheck = 5 * time.Minute
	// maxUnknown bounds the events that are kept in memory. If more are missing, the number is at least this.
	maxUnknown = 10_000
)

// accountsDatabase is PostgreSQL as the comparison of the outbox with the ledger needs it.
type accountsDatabase interface {
	// accounts returns what compares, and the sinks of the connector. It returns nil if rows cannot be found by their time.
	accounts(ctx context.Context) (accountsTable, []ledger.VerifySink, error)
}

// accountsTable is the outbox as the comparison needs it.
type accountsTable interface {
	// compareChunk compares the next rows behind from.
	compareChunk(ctx context.Context, q ledger.VerifyQuery, from *ledger.OutboxKey, take func(*ledger.VerifyPoint, *ledger.Unknown) error) (ledger.VerifyChunk, error)
	// compareEvents compares the events of q.IDs.
	compareEvents(ctx context.Context, q ledger.VerifyQuery, take func(*ledger.VerifyPoint, *ledger.Unknown) error) (ledger.VerifyPoint, error)
}

type pgAccounts struct {
	*ledger.OutboxVerify
	db ledger.Beginner
}

func (p *postgres) accounts(ctx context.Context) (accountsTable, []ledger.VerifySink, error) {
	v, err := p.OpenVerify(ctx, p.pool, p.source.provision().OutboxTable())
	if err != nil {
		return nil, nil, err
	}
	finds, err := v.FindsByTime(ctx, p.pool)
	if err != nil || !finds {
		return nil, nil, err
	}
	sinks, err := p.VerifySinks(ctx, p.pool, p.connector)
	return pgAccounts{v, p.pool}, sinks, err
}

func (a pgAccounts) compareChunk(ctx context.Context, q ledger.VerifyQuery, from *ledger.OutboxKey, take func(*ledger.VerifyPoint, *ledger.Unknown) error) (ledger.VerifyChunk, error) {
	return a.CompareChunk(ctx, a.db, ledger.VerifyChunkQuery{VerifyQuery: q, From: from, Limit: compareChunkRows}, take)
}

func (a pgAccounts) compareEvents(ctx context.Context, q ledger.VerifyQuery, take func(*ledger.VerifyPoint, *ledger.Unknown) error) (ledger.VerifyPoint, error) {
	return a.CompareEvents(ctx, a.db, q, take)
}

// accounts is what the comparison has found. It outlives sessions, and belongs to keepAccounts of the session that runs.
type accounts struct {
	shown atomic.Pointer[monitoring.AccountsStatus]

	pass struct {
		running bool
		from    *ledger.OutboxKey // behind which the next chunk begins
		began   time.Time
		all     bool                // it looks at all rows
		prefix  checkpoint.Position // when it began
	}
	allAt    time.Time           // when the last pass that has looked at all rows began
	complete bool                // there was such a pass
	upTo     time.Time           // rows of earlier times were compared
	settled  checkpoint.Position // the prefix when the last complete pass began: what was settled until then was compared
	checked  time.Time           // when missing was last looked at again
	unknown  []unknownEvents
	missing  map[string]struct{} // ids of events that some sink lacks
	told     bool                // the log says so
}

// unknownEvents are events of a chunk of which the ledger did not say what has become of them. They are missing if it still does not once
// the stream is settled beyond the witness.
type unknownEvents struct {
	witness ledger.Witness
	lsn     pglogrepl.LSN // of the witness
	ids     []string
}

// compareStep is what one step of the comparison works with.
type compareStep struct {
	table   accountsTable
	owing   *Owing
	query   ledger.VerifyQuery
	tracker *checkpoint.Tracker // of the session
}

// keepAccounts compares the outbox with the ledger until ctx ends, in small steps and behind the prefix, so that a loss shows by itself. An
// idle outbox is not compared again.
func (c *Connector) keepAccounts(ctx context.Context, s *session) {
	goes := dutyReport{c: c, duty: "accounts"}
	a := &c.kept.accounts
	for pause := time.Duration(0); ; {
		if wait.For(ctx, max(pause, 100*time.Millisecond)) != nil {
			return
		}
		began, arrived := time.Now(), s.arrived()
		window := s.tracker.Snapshot(began)
		if !a.due(began, window.Prefix) {
			a.idle(c, began.Add(-window.Lag))
			pause = compareEvery
			continue
		}
		err := c.compareSome(ctx, s)
		if ctx.Err() != nil {
			return
		}
		goes.report(err)
		switch {
		case err != nil:
			pause = dutyRetry
		case !a.pass.running:
			pause = compareEvery
		default:
			share := compareShare
			if s.arrived() > arrived && time.Since(a.upTo) > compareBehind {
				share = compareShareBehind
			}
			pause = min(time.Since(began)*time.Duration(share), compareRestMost)
		}
	}
}

// due reports whether there is anything to compare: a pass runs, something was settled since the last one, something is unknown, or it is
// time to look again at what is missing.
func (a *accounts) due(now time.Time, prefix checkpoint.Position) bool {
	return a.pass.running || !a.complete || prefix != a.settled || len(a.unknown) > 0 || len(a.missing) > 0 && now.Sub(a.checked) >= compareRecheck
}

// compareSome makes one step: it decides about what was unknown, and compares the next chunk.
func (c *Connector) compareSome(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	table, sinks, err := c.db.accounts(ctx)
	if err != nil {
		return err
	}
	a := &c.kept.accounts
	if table == nil {
		a.complete, a.settled = true, s.tracker.Snapshot(time.Now()).Prefix // nothing can be compared
		return nil
	}
	owing := NewOwing(&c.cfg, sinks)
	step := compareStep{table: table, owing: owing, query: owing.Query(c.cfg.Source.Slot), tracker: s.tracker}
	if err := a.decide(ctx, step); err != nil {
		return err
	}
	if err := a.chunk(ctx, step); err != nil {
		return err
	}
	a.tell(c)
	return nil
}

// decide looks again at what was unknown, if the stream is settled beyond it, and now and then at what is missing.
func (a *accounts) decide(ctx context.Context, step compareStep) error {
	confirmed := step.tracker.Confirmed()
	for len(a.unknown) > 0 {
		u := &a.unknown[0]
		if u.lsn > confirmed {
			step.tracker.WriteIdle() // an idle connector would not write it down for a long time
			break
		}
		still, decides, err := step.lacking(ctx, u.witness, u.ids)
		if err != nil {
			return err
		}
		if !decides {
			break
		}
		for id := range still {
			if len(a.missing) < maxUnknown {
				a.missing[id] = struct{}{}
			}
		}
		a.unknown = a.unknown[1:]
	}
	now := time.Now()
	if len(a.missing) == 0 || now.Sub(a.checked) < compareEvery {
		return nil
	}
	a.checked = now
	var ids []string
	for id := range a.missing {
		ids = append(ids, id)
	}
	// They were missing before, so every moment before now decides.
	still, _, err := step.lacking(ctx, ledger.Witness{}, ids)
	if err != nil {
		return err
	}
	for id := range a.missing {
		if _, lacks := still[id]; !lacks {
			delete(a.missing, id)
		}
	}
	return nil
}

// lacking returns which of these events some sink still lacks. Without a witness all of them are decided about.
func (step compareStep) lacking(ctx context.Context, w ledger.Witness, ids []string) (still map[string]struct{}, decides bool, err error) {
	still = map[string]struct{}{}
	q, always := step.query, w.Snapshot == ""
	q.IDs = ids
	if q.Witness = w; always {
		q.Witness = ledger.Witness{Snapshot: "1:1:", LSN: "0/0"}
	}
	p, err := step.table.compareEvents(ctx, q, func(p *ledger.VerifyPoint, u *ledger.Unknown) error {
		if always {
			u.Seen = true
		}
		if step.owing.Judge(p, u) == Missing {
			still[u.ID] = struct{}{}
		}
		return nil
	})
	return still, p.Decides, err
}

// chunk compares the next rows of the pass. If none runs, it begins one.
func (a *accounts) chunk(ctx context.Context, step compareStep) error {
	now := time.Now()
	if a.missing == nil {
		a.missing = map[string]struct{}{}
	}
	if len(a.unknown) > maxUnknown/compareChunkRows {
		return nil // what is unknown is decided first
	}
	prefix := step.tracker.Snapshot(now).Prefix
	if !a.pass.running {
		if a.complete && prefix == a.settled {
			return nil
		}
		a.begin(now)
		a.pass.prefix = prefix
	}
	var u unknownEvents
	chunk, err := step.table.compareChunk(ctx, step.query, a.pass.from, func(p *ledger.VerifyPoint, e *ledger.Unknown) error {
		decided := *p
		decided.Decides = true // it is asked again, when it is
		if e.Seen = true; step.owing.Judge(&decided, e) == Missing && !slices.Contains(u.ids, e.ID) {
			if _, known := a.missing[e.ID]; !known {
				u.ids = append(u.ids, e.ID)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(u.ids) > 0 {
		u.witness = chunk.Witness
		if u.lsn, err = pglogrepl.ParseLSN(u.witness.LSN); err != nil {
			return err
		}
		a.unknown = append(a.unknown, u)
	}
	if chunk.Last != nil {
		a.pass.from = chunk.Last
	}
	if chunk.UpTo.After(a.upTo) {
		a.upTo = chunk.UpTo
	}
	if chunk.End {
		a.pass.running, a.complete, a.settled = false, true, a.pass.prefix
	}
	return nil
}

// begin begins a pass: at the first row now and then, and otherwise a while before the begin of the last one.
func (a *accounts) begin(now time.Time) {
	last := a.pass.began
	a.pass.running, a.pass.began, a.pass.from = true, now, nil
	if a.pass.all = !a.complete || now.Sub(a.allAt) >= compareAll; a.pass.all {
		a.allAt = now
		return
	}
	a.pass.from = &ledger.OutboxKey{At: last.Add(-compareAgain).UTC().Format("2006-01-02 15:04:05.999999")}
}

// idle notes that nothing is left to compare of what was settled until then.
func (a *accounts) idle(c *Connector, until time.Time) {
	if a.shown.Load() == nil {
		return // nothing can be compared
	}
	if len(a.unknown) == 0 && until.After(a.upTo) {
		a.upTo = until
	}
	a.tell(c)
}

// tell shows what was found.
func (a *accounts) tell(c *Connector) {
	st := &monitoring.AccountsStatus{UpTo: a.upTo, WorkedAt: time.Now()}
	if a.complete || len(a.missing) > 0 {
		n := int64(len(a.missing))
		st.Missing = &n
	}
	for id := range a.missing {
		if st.Example == "" || id < st.Example {
			st.Example = id
		}
	}
	a.shown.Store(st)
	switch lost := len(a.missing) > 0; {
	case lost && !a.told:
		c.cfg.Logger.Error("events are missing: the stream is past them, and the ledger does not know what has become of them; outbox-cdc verify names them, see docs/verify.md",
			"events", len(a.missing), "event_id", st.Example)
	case !lost && a.told:
		c.cfg.Logger.Info("no event is missing any more")
	}
	a.told = len(a.missing) > 0
}
