package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// worldProcess is one process of the connector: Connector.Run, with the world's PostgreSQL as its database. The world's mutex guards
// session, stream and heard.
type worldProcess struct {
	w         *simulation
	n         int
	lanes     int // of each sink
	sinks     int // that are configured
	connector *Connector
	killed    chan struct{}
	stop      context.CancelFunc // what SIGTERM does

	session  int            // the number of its session, or of the last one if none runs; 0: there was none
	epoch    int32          // of this session
	stream   *worldStream   // of this session
	heard    *worldListener // the last one
	link     worldLink
	wasCut   bool
	backlogs int             // that were opened
	rules    []*processRules // by sink
}

var (
	errWorldKill   = errors.New("kill -9")
	errWorldBroken = errors.New("the replication connection is lost")
)

func (w *simulation) logger() *slog.Logger {
	if *worldsTrace {
		return slog.New(slog.NewTextHandler(os.Stdout, nil))
	}
	return slog.New(slog.DiscardHandler)
}

func (w *simulation) newProcess(n int) *worldProcess {
	c := &w.cfg
	w.mu.Lock()
	p := &worldProcess{w: w, n: n, lanes: w.lanes, sinks: w.configured(), killed: make(chan struct{})}
	w.mu.Unlock()
	cfg := Config{
		Name:   "world",
		Source: Source{DSN: "postgres://u@h/world", Slot: "world", Table: "public.event_outbox", LedgerSchema: "public", Columns: worldColumns},
		Routes: worldRoutes(c.sinks, p.sinks),
		Delivery: DeliveryConfig{
			BatchSize: c.batch, Lanes: p.lanes, Timeout: 200 * timeUnit, DrainTimeout: 25 * time.Second, MaxRetries: c.maxRetries,
			Retry: Retry{Initial: time.Second, Max: 5 * time.Minute}, ParkAfter: 10 * time.Second, GiveUpAfter: c.giveUpAfter, DeadBlocks: c.block,
			MaxInFlight: c.ring, MaxInFlightBytes: 1 << 30, MaxEventBytes: 1 << 20,
		},
		Breaker: BreakerConfig{Enabled: c.breaker, MaxFailures: c.maxFailures, ResetTimeout: c.reset}, Retention: keepsAll,
		Metrics: monitoring.NewMetrics("", nil), Health: &monitoring.Health{}, Logger: w.logger(),
	}
	if c.never {
		cfg.Delivery.ParkAfter = 0
	}
	for i, s := range w.sinks[:p.sinks] {
		cfg.Sinks = append(cfg.Sinks, Sink{
			Name: sinkName(i), Backlog: w.cfg.life.later && i == len(w.sinks)-1, Topic: worldTemplate("{event_type}"), Key: worldTemplate("{aggregate_id}"), OneTry: s.oneTry,
			Open: func() (sinks.Sink, error) {
				return &worldClient{s, p, p.rules[i], p.session, p.epoch, rested{map[int]time.Time{}, map[int]int{}}}, nil
			},
		})
	}
	p.connector = newConnector(cfg, func() (database, error) { return p, nil })
	p.connector.maxHeld = c.maxHeld
	for i, s := range w.sinks {
		p.rules = append(p.rules, &processRules{})
		if i >= p.sinks {
			continue
		}
		b := p.connector.sinks[sinkName(i)].breaker
		changed := b.changed
		b.changed = func(to breakerState, asksAt time.Time) {
			changed(to, asksAt)
			s.breakerIs(p.rules[i], to)
		}
	}
	return p
}

func sinkName(sink int) string { return fmt.Sprint("sink", sink) }

func worldTemplate(text string) router.Template {
	t, err := router.ParseTemplate(text)
	if err != nil {
		panic(err)
	}
	return t
}

// worldRoutes send an event to the sinks that its type names: each 1 in the type stands for one sink. Only the first ones are configured.
func worldRoutes(sinks, configured int) []Route {
	var routes []Route
	for set := 1; set < 1<<sinks; set++ {
		r := Route{Match: router.Match{EventType: []string{fmt.Sprintf("%03b.*", set)}}}
		for i := range configured {
			if set&(1<<i) != 0 {
				r.Sinks = append(r.Sinks, sinkName(i))
			}
		}
		if len(r.Sinks) > 0 {
			routes = append(routes, r)
		}
	}
	return routes
}

// run runs the process until it is killed or stopped. Nothing else may end it.
func (p *worldProcess) run() {
	w := p.w
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	p.stop = stop
	w.mu.Lock()
	w.living = append(w.living, p)
	outdated := p.sinks < w.configured()
	w.mu.Unlock()
	if outdated {
		stop()
	}
	w.trace("PROCESS %d begins, with %d lanes a sink", p.n, p.lanes)
	var watching sync.WaitGroup
	watching.Go(func() { p.watch(ctx) })
	err := p.connector.Run(ctx)
	w.trace("PROCESS %d has ended: %v", p.n, err)
	if ctx.Err() == nil && !p.mayEnd(err) {
		w.violation("ended", "process %d: %v", p.n, err)
	}
	stop()
	watching.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.living = slices.DeleteFunc(w.living, func(other *worldProcess) bool { return other == p })
	w.release(p.stream)
	p.forgetSession()
}

// mayEnd reports whether the process may end of this error: the slot is lost, or PostgreSQL could not be reached from the start.
func (p *worldProcess) mayEnd(err error) bool {
	switch exitcode.Of(err) {
	case exitcode.SlotLost:
		return p.w.slotRefused() != nil
	case exitcode.Unavailable:
		return p.wasCut
	default:
		return false
	}
}

// forgetSession is called when a session has ended, in whatever way. What the session knew of a delivery and did not record, nobody
// knows from here on.
func (p *worldProcess) forgetSession() {
	for _, k := range p.w.sinks {
		for _, a := range k.acceptances {
			a.unknown += a.known[p.session]
			delete(a.known, p.session)
		}
	}
}

// isKilled reports whether the process is dead. Nothing that it does from then on has an effect.
func (p *worldProcess) isKilled() bool {
	select {
	case <-p.killed:
		return true
	default:
		return false
	}
}

// slept waits for d and returns true, or false if ctx ends or the process is killed before that.
func (p *worldProcess) slept(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return !p.isKilled()
	case <-ctx.Done():
	case <-p.killed:
	}
	return false
}

// ask is what every question to PostgreSQL comes to: it takes some time, and fails if the server is down.
func (p *worldProcess) ask(ctx context.Context, r random) error {
	switch took := r.between(time.Millisecond, timeUnit); {
	case p.isKilled():
		return errWorldKill
	case !p.slept(ctx, took):
		return context.Cause(ctx)
	}
	if err := p.reachesPostgres(ctx); err != nil {
		return err
	}
	if !p.w.up() {
		return errWorldNoPostgres
	}
	return nil
}

// kill ends the process as kill -9 does.
func (p *worldProcess) kill(why string) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.isKilled() {
		return
	}
	w.trace("PROCESS %d dies in session %d: %s", p.n, p.session, why)
	w.stats.Kills++
	for i, k := range w.sinks {
		lanes := map[int]int{}
		for e, a := range k.acceptances {
			// A message that was discarded while it was being delivered, and was accepted then, is recorded.
			if a.known[p.session] > 0 && w.ledger.last[worldDelivery{processor(i), e}] != "discarded" {
				lanes[router.Lane(e.hash, p.lanes)]++
			}
		}
		for lane, n := range lanes {
			if n > maxUnrecorded*w.cfg.batch {
				w.violation("unrecorded", "%d messages of lane %d of sink%d were accepted and are not recorded", n, lane, i)
			}
		}
	}
	close(p.killed)
	if p.stream != nil {
		p.stream.fail(errWorldKill)
		w.release(p.stream)
	}
	p.stop()
}

// fail ends the session with this error.
func (p *worldProcess) fail(why error) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.stream != nil {
		w.trace("SESSION %d fails: %v", p.session, why)
		p.stream.fail(why)
		if errors.Is(why, errWorldBroken) {
			w.release(p.stream)
		}
	}
	if p.heard != nil && errors.Is(why, errWorldBroken) {
		p.heard.cut()
	}
}

// watch finds a sink that makes the reader wait for most of twice park_after while another sink has nothing to do. The slow rule must
// prevent that.
func (p *worldProcess) watch(ctx context.Context) {
	if p.w.cfg.never || p.w.cfg.sinks == 1 {
		return
	}
	var watched *session
	var rule *slowRule
	var held map[int32][]bool
	for p.slept(ctx, 10*time.Second/slowTicks) {
		s := p.connector.running.Load()
		if s == nil || !p.link.isWhole() || s.lease.wait(time.Now()) > 0 {
			watched = nil
			continue
		}
		if s != watched {
			watched, rule, held = s, newSlowRule(s.tracker, &s.reader.waits, s.bySink, 10*time.Second), map[int32][]bool{}
		}
		blocks := rule.blocks()
		for id := range s.bySink {
			h := append(held[id], id == blocks && rule.anotherIdle(id))
			h = h[max(0, len(h)-2*slowTicks):]
			n := 0
			for _, is := range h {
				if is {
					n++
				}
			}
			if held[id] = h; n > 2*slowTicks*3/4 {
				p.w.violation("held back", "the reader waited for processor %d in %d of %d ticks while another had nothing to do", id, n, len(h))
				held[id] = nil
			}
		}
	}
}

// live reports whether all lanes of a sink are live and have nothing to do. s is the running session.
func (p *worldProcess) live(s *session, sink int) bool {
	for _, l := range s.bySink[processor(sink)] {
		if !l.shown.idle.Load() {
			return false
		}
	}
	return p.connector.sinks[sinkName(sink)].state.status().CatchingUp() == 0
}

// The following methods make the process a database.

func (p *worldProcess) appear(context.Context) error { return nil }
func (p *worldProcess) reset()                       {}
func (p *worldProcess) close()                       {}

func (p *worldProcess) preflight(ctx context.Context) (provision.Facts, error) {
	facts := provision.Facts{Table: provision.Table{OID: worldOID}}
	if err := p.ask(ctx, p.w.random("preflight", p.n, p.session)); err != nil {
		return facts, err
	}
	p.w.mu.Lock()
	facts.Identity.Timeline = p.w.timeline
	p.w.mu.Unlock()
	return facts, p.w.slotRefused()
}

// openStream begins a session.
func (p *worldProcess) openStream(ctx context.Context) (sessionStream, replication.Identity, error) {
	w := p.w
	w.mu.Lock()
	p.forgetSession()
	w.sessions++
	p.session = w.sessions
	for _, r := range p.rules {
		r.allowed++
	}
	w.mu.Unlock()
	if err := p.ask(ctx, w.random("open", p.session)); err != nil {
		return nil, replication.Identity{}, err
	}
	if err := w.slotRefused(); err != nil {
		return nil, replication.Identity{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.slot.user != nil {
		return nil, replication.Identity{}, replication.ErrSlotInUse
	}
	if w.slot.confirmed > w.ledger.confirmed && w.cfg.life.ahead == 0 {
		w.violation("slot", "it stands at %s, the checkpoint at %s", w.slot.confirmed, w.ledger.confirmed)
	}
	p.stream = newWorldStream(p, w.slot.confirmed) // START_REPLICATION 0/0: the slot knows
	w.slot.user = p.stream
	if r := w.random("shaky", p.session); w.faults && r.chance(w.cfg.life.shaky) {
		stream := p.stream
		w.after(r.between(timeUnit, 5*time.Second), func() { w.breakStream(stream) })
	}
	if p.isKilled() {
		p.stream.fail(errWorldKill)
	}
	return p.stream, replication.Identity{Timeline: w.timeline}, nil
}

func (p *worldProcess) takeOver(ctx context.Context, changed func([]ledger.RowChange)) (checkpoint.Ledger, ledger.Start, error) {
	if err := p.ask(ctx, p.w.random("take over", p.session)); err != nil {
		return nil, ledger.Start{}, err
	}
	conn, start := p.w.ledger.open(p)
	conn.changed, p.epoch = changed, conn.epoch
	return conn, start, nil
}

func (p *worldProcess) slotPosition(ctx context.Context) (confirmed, written pglogrepl.LSN, err error) {
	if err := p.ask(ctx, p.w.random("slot position", p.session)); err != nil {
		return 0, 0, err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.seen = p.w.end
	for _, s := range p.w.sinks {
		s.inTime.ready = s.inTime.now()
	}
	return p.w.slot.confirmed, p.w.end, nil
}

func (p *worldProcess) registerProcessors(ctx context.Context, all []ledger.Processor, _ []string) (ids map[string]int32, orphans map[string]int64, err error) {
	ids = map[string]int32{}
	for i, k := range all {
		ids[k.Name] = processor(i)
	}
	if err := p.ask(ctx, p.w.random("register", p.session)); err != nil {
		return nil, nil, err
	}
	p.w.ledger.register(all)
	return ids, nil, nil
}

func (p *worldProcess) reviseParked(ctx context.Context, _ []int32, policy ledger.ParkedPolicy) error {
	if err := p.ask(ctx, p.w.random("revise", p.session)); err != nil {
		return err
	}
	p.w.ledger.parked.revise(policy)
	return nil
}

func (p *worldProcess) activity(ctx context.Context, processors []int32) (map[int32]ledger.Activity, error) {
	if err := p.ask(ctx, p.w.random("activity", p.session)); err != nil {
		return nil, err
	}
	return p.w.activity(processors), nil
}

func (p *worldProcess) parkedRows(processor int32, lane, lanes int) parkedReader {
	t := &worldTable{p.w.ledger.parked.table(processor, lane, lanes), p, p.w.random("table", p.session, processor, lane)}
	t.limit = p.w.cfg.readLimit
	t.large = func(r *memRow) bool { return p.w.random("large", r.id).chance(p.w.cfg.large) }
	return t
}

func (p *worldProcess) leave(ctx context.Context, d ledger.Departure) error {
	if p.isKilled() {
		return errWorldKill
	}
	if err := p.reachesPostgres(ctx); err != nil {
		return err
	}
	p.w.ledger.leave(p.session, d)
	return nil
}

// ofKeeper is what the keeper's duties come to: they matter for delivery only if they fail, and they do not.
func (p *worldProcess) ofKeeper() error {
	if !p.w.up() {
		return errWorldNoPostgres
	}
	return nil
}

func (p *worldProcess) cleanup() cleanup.Database { return nil }

func (p *worldProcess) accounts(context.Context) (accountsTable, []ledger.VerifySink, error) {
	return nil, nil, nil
}

func (p *worldProcess) makePartitions(context.Context) error                { return p.ofKeeper() }
func (p *worldProcess) heartbeat(context.Context, []ledger.Heartbeat) error { return p.ofKeeper() }

func (p *worldProcess) writeSinkState(context.Context, int32, ledger.SinkState) error {
	return p.ofKeeper()
}

func (p *worldProcess) slotView(context.Context) (slotView, error) { return slotView{}, p.ofKeeper() }

func (p *worldProcess) measure(context.Context, provision.MeasureQuery) (provision.Measurement, error) {
	return provision.Measurement{}, p.ofKeeper()
}

func (p *worldProcess) writeResults(context.Context, *ledger.ResultBatch) error { return p.ofKeeper() }

func (p *worldProcess) readResults(context.Context, []int32) (ledger.ResultHistory, error) {
	return ledger.ResultHistory{Now: time.Now()}, p.ofKeeper()
}

func (p *worldProcess) checkDrift(context.Context, uint32) (moved string, err error) {
	return "", p.ofKeeper()
}

func (p *worldProcess) publicationVersion(context.Context, uint32) (string, error) {
	return "1", p.ofKeeper()
}

func (p *worldProcess) advanceSlot(context.Context, pglogrepl.LSN) error { return p.ofKeeper() }

func (p *worldProcess) publicationExists(context.Context) (bool, error) { return true, p.ofKeeper() }
func (p *worldProcess) whyServerWaits(context.Context) string           { return "" }
func (p *worldProcess) lockHolder(context.Context) string               { return "" }
