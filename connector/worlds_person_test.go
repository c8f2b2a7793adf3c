package connector

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// worldListener is a connection with LISTEN.
type worldListener struct {
	p       *worldProcess
	random  random
	notices chan *pgconn.Notification
	broken  chan struct{} // closed by cut
	isCut   bool          // the world's mutex guards it
}

func (p *worldProcess) listen(ctx context.Context) (listener, error) {
	w := p.w
	w.mu.Lock()
	w.listeners++
	r := w.random("listener", w.listeners)
	w.mu.Unlock()
	if err := p.ask(ctx, r); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p.heard = &worldListener{p: p, random: r, notices: make(chan *pgconn.Notification, 100), broken: make(chan struct{})}
	return p.heard, nil
}

// cut breaks the connection. The world's lock is held.
func (l *worldListener) cut() {
	if !l.isCut {
		l.isCut = true
		close(l.broken)
	}
}

func (l *worldListener) close() {
	l.p.w.mu.Lock()
	defer l.p.w.mu.Unlock()
	l.cut()
}

// WaitForNotification is listener's.
func (l *worldListener) WaitForNotification(ctx context.Context) (*pgconn.Notification, error) {
	select {
	case <-l.broken:
		return nil, errWorldBroken
	case <-l.p.killed:
		return nil, errWorldKill
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case n := <-l.notices:
		return n, l.p.reachesPostgres(ctx)
	}
}

// ask is a question by this connection.
func (l *worldListener) ask(ctx context.Context) error {
	err := l.p.ask(ctx, l.random)
	select {
	case <-l.broken:
		return errWorldBroken
	default:
		return err
	}
}

func (l *worldListener) activity(ctx context.Context, processors []int32) (map[int32]ledger.Activity, error) {
	if err := l.ask(ctx); err != nil {
		return nil, err
	}
	return l.p.w.activity(processors), nil
}

// notify tells the connector that a person has changed something of a sink. The connector may not hear it: there is no connection, or
// it breaks, or it has lost the notification and nobody knows. Then the lanes find out when they read again.
func (w *simulation) notify(r random, sink int, suffix string) {
	fate, delay := r.Float64(), r.between(timeUnit/10, 5*timeUnit)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.living {
		l := p.heard
		switch {
		case l == nil || l.isCut:
		case fate < 0.7:
			w.after(delay, func() {
				select {
				case l.notices <- &pgconn.Notification{Payload: fmt.Sprintf("public:%d%s", processor(sink), suffix)}:
				default:
				}
			})
		case fate < 0.85:
			l.cut()
		}
	}
}

// activity returns which sinks a person has paused.
func (w *simulation) activity(processors []int32) map[int32]ledger.Activity {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[int32]ledger.Activity{}
	for _, id := range processors {
		all[id] = ledger.Active
		if w.paused[id] {
			all[id] = ledger.Paused
		}
	}
	return all
}

// pause pauses a sink, or resumes it.
func (w *simulation) pause(r random, sink int, to ledger.Activity) {
	w.mu.Lock()
	w.trace("PERSON pauses sink%d: %t", sink, to == ledger.Paused)
	w.paused[processor(sink)] = to == ledger.Paused
	w.mu.Unlock()
	w.notify(r, sink, "")
}

// personActs changes a dead letter of each sink, and now and then a parked row.
func (w *simulation) personActs(r random) {
	if !w.up() {
		return
	}
	for s := range w.cfg.sinks {
		x, kill, pick := r.Float64(), r.chance(0.1), r.IntN(1<<20)
		what := discardDeadLetter
		switch {
		case kill:
			what = declareDead
		case x < 0.6:
			what = retryDeadLetter
		}
		w.notify(r, s, w.ledger.makeChange(s, pick, what))
		if w.cfg.retryNow && r.chance(0.1) {
			w.ledger.makeDue(s)
			w.notify(r, s, ":retry")
		}
	}
}

// unblock settles dead letters under on_dead_letter: block, where a person has to act before everything can be settled.
func (w *simulation) unblock() {
	if w.cfg.block {
		w.ledger.settleDead()
	}
}

// revise does what ledger.Schema.ReviseParked does.
func (l *memLedger) revise(policy ledger.ParkedPolicy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	latest := time.Now().Add(policy.Longest)
	for _, r := range l.rows {
		switch {
		case r.dead && policy.DeadBlocks:
			r.due = forever
		case r.dead:
			r.due = time.Time{}
		case r.due.After(latest):
			r.due = latest
		}
	}
}

// countParked does what ledger.Schema.CountParked does, but for the age of the oldest row.
func (p *worldProcess) countParked(ctx context.Context, processors []int32) (ledger.ParkedCounts, error) {
	w := p.w
	w.mu.Lock()
	w.counts++
	r := w.random("count", w.counts)
	w.mu.Unlock()
	if err := p.ask(ctx, r); err != nil {
		return ledger.ParkedCounts{}, err
	}
	w.mu.Lock()
	w.ledger.parked.mu.Lock()
	rows := w.ledger.parked.counts()
	next := w.ledger.changes + 1
	found := ledger.ParkedCounts{Sinks: map[int32]ledger.ParkedCount{}, Point: ledger.CountPoint{
		Batch: w.ledger.seq, Snapshot: ledger.Snapshot{Min: next, Max: next},
	}}
	w.ledger.parked.mu.Unlock()
	w.mu.Unlock()
	for _, id := range processors {
		found.Sinks[id] = ledger.ParkedCount{RowCounts: rows[id]}
	}
	if !p.slept(ctx, r.between(time.Millisecond, 5*timeUnit)) {
		return ledger.ParkedCounts{}, errWorldUnanswered
	}
	return found, nil
}

func (p *worldProcess) oldestParked(context.Context, ledger.OldestQuery) (ledger.OldestParked, error) {
	return ledger.OldestParked{}, p.ofKeeper()
}
