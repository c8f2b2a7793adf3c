package connector

import (
	"context"
	"slices"
	"sync"
	"time"
)

// worldSenderTimeout is how long the server keeps the slot for a process that it does not hear.
const worldSenderTimeout = 15 * time.Second

// linkFault is what goes wrong between a process and the rest of the world.
type linkFault int

const (
	linkWhole  linkFault = iota
	linkCut              // PostgreSQL cannot be reached, and the sinks can
	linkFrozen           // the process stands still
	linkDeaf             // nothing comes on the replication connection any more, and its server does not hear the process either
)

// worldLink is what connects a process with PostgreSQL and with its sinks.
type worldLink struct {
	mu    sync.Mutex
	fault linkFault
	over  chan struct{} // closed when the fault is over; nil if there is none
	lost  *worldStream  // that the process finds broken then
}

// now returns what is wrong with the link, and what is closed when that is over.
func (l *worldLink) now() (linkFault, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault, l.over
}

func (l *worldLink) isWhole() bool {
	f, _ := l.now()
	return f == linkWhole
}

// breaks reports whether the link was whole. It is not from now on.
func (l *worldLink) breaks(f linkFault) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault != linkWhole {
		return false
	}
	l.fault, l.over = f, make(chan struct{})
	return true
}

// mend ends the fault.
func (l *worldLink) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == linkWhole {
		return
	}
	if l.lost != nil {
		l.lost.fail(errWorldBroken)
	}
	close(l.over)
	l.fault, l.over, l.lost = linkWhole, nil, nil
}

// lose notes that the server has ended this stream meanwhile.
func (l *worldLink) lose(s *worldStream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = s
}

// reachesPostgres waits as long as the process cannot reach PostgreSQL. What was asked before it was frozen is answered when it thaws; a
// connection does not outlive a cut network.
func (p *worldProcess) reachesPostgres(ctx context.Context) error {
	f, over := p.link.now()
	if f == linkWhole || f == linkDeaf {
		return nil
	}
	if err := p.waits(ctx, over); err != nil || f == linkFrozen {
		return err
	}
	return errWorldBroken
}

// runs waits as long as the process is frozen.
func (p *worldProcess) runs(ctx context.Context) error {
	if f, over := p.link.now(); f == linkFrozen {
		return p.waits(ctx, over)
	}
	return nil
}

func (p *worldProcess) waits(ctx context.Context, over <-chan struct{}) error {
	select {
	case <-over:
		return nil
	case <-p.killed:
		return errWorldKill
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// cutOff freezes a process for a while, or takes its way to PostgreSQL away, or that of its stream: mostly of the one that streams. Its sinks then can be reached all
// the same, unless it is frozen. The server gives its slot to another one when it has not heard it for worldSenderTimeout.
//
// The goroutines of a frozen process cannot be stopped here: timers go on. But nothing that it asks for happens before it thaws. What it would
// do by an old answer it does too early then, so that the check for this sees it all the same.
func (w *simulation) cutOff(r random, f linkFault) {
	p := w.foremost()
	if others := w.alive(); r.chance(0.2) && len(others) > 0 {
		p = others[r.IntN(len(others))]
	}
	if f == linkCut && r.chance(0.3) {
		f = linkDeaf
	}
	if p == nil || !w.failing() || !p.link.breaks(f) {
		return
	}
	lasts := r.between(timeUnit, 300*timeUnit)
	w.trace("PROCESS %d is cut off for %s: %s", p.n, lasts, []string{"", "cut", "frozen", "deaf"}[f])
	w.mu.Lock()
	w.stats.Cuts++
	p.wasCut = true
	s := p.stream
	w.mu.Unlock()
	notices := r.between(worldSenderTimeout/3, worldSenderTimeout)
	if r.chance(0.5) { // somebody ends the server's process that sends the stream
		notices = r.between(0, time.Second)
	}
	w.after(notices, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		f, _ := p.link.now()
		if s == nil || f == linkWhole || w.slot.user != s {
			return
		}
		w.trace("THE SERVER has not heard process %d, and lets go of its slot", p.n)
		w.slot.user = nil
		if f == linkFrozen {
			p.link.lose(s)
			return
		}
		w.after(r.between(0, 20*time.Second), func() { s.fail(errWorldBroken) }) // its own time-outs
	})
	w.after(lasts, func() {
		w.trace("PROCESS %d is there again", p.n)
		p.link.mend()
	})
}

// breakStream breaks a replication connection, and the server gives its slot to others at once.
func (w *simulation) breakStream(s *worldStream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.release(s)
	s.fail(errWorldBroken)
}

// worldLease is the connection of a session's lease.
type worldLease struct {
	p      *worldProcess
	random random
}

func (p *worldProcess) openLease(ctx context.Context) (leaseConnection, error) {
	l := worldLease{p, p.w.random("lease", p.session)}
	return l, p.ask(ctx, l.random)
}

// epoch is leaseConnection's. The answer comes some time after the server has found it.
func (l worldLease) epoch(ctx context.Context) (int32, error) {
	if err := l.p.ask(ctx, l.random); err != nil {
		return 0, err
	}
	l.p.w.mu.Lock()
	found := l.p.w.ledger.epoch
	l.p.w.mu.Unlock()
	if !l.p.slept(ctx, l.random.between(time.Millisecond, timeUnit)) {
		return 0, context.Cause(ctx)
	}
	return found, l.p.reachesPostgres(ctx)
}

func (l worldLease) close() {}

// alive returns the processes that run.
func (w *simulation) alive() []*worldProcess {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.living)
}

// foremost returns the process that streams, else any that runs, else nil.
func (w *simulation) foremost() *worldProcess {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.slot.user != nil && slices.Contains(w.living, w.slot.user.p):
		return w.slot.user.p
	case len(w.living) > 0:
		return w.living[0]
	}
	return nil
}

// processes runs one process after the other, or several such rows of them side by side.
func (w *simulation) processes(ctx context.Context) {
	var all sync.WaitGroup
	for i := range max(1, w.cfg.life.instances) {
		all.Go(func() { w.succession(ctx, i) })
	}
	all.Wait()
}

// succession runs one process after the other.
func (w *simulation) succession(ctx context.Context, instance int) {
	for n := 1; ctx.Err() == nil; n++ {
		r := w.random("process", n+1000*instance)
		w.mu.Lock()
		if w.cfg.laneChange && r.chance(0.4) {
			w.lanes = 1 + r.IntN(3)
		}
		w.mu.Unlock()
		w.newProcess(n + 1000*instance).run()
		slept(ctx, r.between(timeUnit, 60*timeUnit))
	}
}

// begins checks that no session begins a Deliver after a newer one has begun one. The world's lock is held.
func (c *worldClient) begins() {
	switch w := c.w; {
	case c.epoch > w.delivering:
		w.delivering = c.epoch
	case c.epoch < w.delivering:
		w.violation("fenced", "sink%d is given something by session %d of process %d, epoch %d, after epoch %d has begun to deliver", c.n, c.session, c.p.n, c.epoch, w.delivering)
	}
}
