package connector

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/tracing"
)

const (
	// rereadEvery is how often a live lane reads the table even if nobody has said that it changed.
	rereadEvery = 30 * time.Second
	// catchUpPace is how long a lane stays live at least before it catches up again.
	catchUpPace = 250 * time.Millisecond
	// lastAnswer is how long a Deliver may take to return after its context has ended.
	lastAnswer = time.Second
)

// sharedSink is what the lanes of a sink share.
type sharedSink struct {
	sink      sinks.Sink
	name      string
	id        int32  // of its processor
	origin    string // sinks.Message's
	policy    failurePolicy
	delivery  DeliveryConfig
	breaker   *breaker
	budget    *budget
	lease     *lease
	paused    *atomic.Bool // a person has paused the sink
	state     *sinkState
	measures  laneMeasures
	objective *sinkResults
	spans     *tracing.Sink // nil if nothing is traced
	fast      func() bool   // whether the stream is fast
	large     largeTurn
	backlog   backlogState
	logger    *slog.Logger
}

// askNow has the destination asked at once, with all that was left alone for a while: a person wants to know.
func (s *sharedSink) askNow() {
	if r, ok := s.sink.(sinks.Rememberer); ok {
		r.AskNow()
	}
	s.breaker.askNow()
}

// rules returns the rules by which its lanes decide.
func (s *sharedSink) rules() laneRules {
	return laneRules{policy: s.policy, batch: s.delivery.BatchSize, maxHeld: maxHeld, parkAfter: s.delivery.ParkAfter}
}

// lane delivers the events of a share of a sink's aggregates, and keeps them in order. It is an actor: only its own goroutine uses the
// fields below, except for the channels and what is atomic. It never waits for the sink. At most one Deliver, and at most one read of
// its rows in outbox_parked, run beside it.
//
// The lane itself knows no rules. lane_mode.go decides what it does next, lane_outcome.go what becomes of the messages of a Deliver.
// Order rests on two rules: what is settled of an aggregate is always a prefix of it; and a message that was not accepted holds its
// aggregate until the table was read again.
type lane struct {
	*sharedSink
	number int
	rules  laneRules
	source rowSource

	in      chan handed              // from the reader, which closes it
	asked   chan struct{}            // wakes the lane: asks has changed
	asks    atomic.Uint32            // what others ask of the lane: askPark, askReread, askRetry, askBack
	calls   chan []sinks.Message     // to the goroutine that calls Deliver
	results chan result              // from it
	reads   chan readResult          // from the goroutine that reads the table
	read    func(ledger.ParkedQuery) // starts that goroutine

	mode     mode
	park     bool            // asked to park, and not done yet
	arrivals arrivals        // in order
	hand     handQueue       // messages that were not accepted and are tried again in place
	rows     []*delivery     // found by the last read of the table, and not delivered yet
	held     heldAggregates  // aggregates of which nothing is delivered until the table was read again
	away     awayRows        // rows of the table that wait because the destination was away
	running  *runningDeliver // nil: no Deliver runs
	began    time.Time       // when the last Deliver began
	again    batchMemory     // memory that is used again
	table    tableState      // of the lane's rows in outbox_parked
	recorder recorderSide    // what the lane has given to the recorder, and how far that is committed
	closing  bool            // in is closed
	shown    laneShown       // what others see
}

// batchMemory is the memory of a batch, which the next one uses again.
type batchMemory struct {
	messages []sinks.Message // Deliver does not keep them
	took     []time.Duration // of finishing
}

// handQueue holds the messages that a lane tries again in place, because nothing that was not accepted is parked.
type handQueue struct {
	list []*delivery
	at   time.Time // they are not tried before
	own  time.Time // the same without those that found the destination away
	one  bool      // the last Deliver found the destination away, so only one message is tried, to see whether it is back
}

// runningDeliver is the Deliver call that is under way.
type runningDeliver struct {
	messages []*delivery
	probe    bool // it asks whether the destination is back
}

// result is the answer to a Deliver call.
type result struct {
	errs               []error
	members            []string // of a composite: which member has accepted each message; nil for other sinks
	started, completed time.Time
	span               tracing.Delivery
	unbegun            bool // the lease had ended: the sink was not called
}

// of returns the member of a composite that has accepted message i, or why it was not accepted.
func (r *result) of(i int) (member string, err error) {
	if r.errs != nil {
		err = r.errs[i]
	}
	if r.members != nil {
		member = r.members[i]
	}
	return member, err
}

// unrecorded are the outcomes of one Deliver that the recorder has not committed yet.
type unrecorded struct {
	seq  uint64
	rows int
}

// laneShown is what others see of a lane.
type laneShown struct {
	idle   atomic.Bool   // the lane has nothing to do
	oldest atomic.Uint64 // the tracker's number of the first event that waits for this lane, plus one; 0: there is none
	// inFlight is how many deliveries the lane was given by the reader, and are not settled.
	inFlight atomic.Int64
	view     monitoring.LaneStatus // what state has of the lane
}

func newLane(s *sharedSink, number int, rows rowSource, out chan<- checkpoint.Outcomes) *lane {
	l := &lane{sharedSink: s, number: number, source: rows}
	l.rules = s.rules()
	// The reader hands over up to handOver deliveries at a time. Two slots let it go on while the lane is at work.
	l.in = make(chan handed, 2)
	l.asked = make(chan struct{}, 1)
	l.calls = make(chan []sinks.Message, 1)
	l.results = make(chan result, 1) // Deliver's goroutine never waits for the lane
	l.reads = make(chan readResult, 1)
	l.recorder = recorderSide{out: out, recorded: make(chan uint64, 1)}
	l.held = heldAggregates{hashes: map[int64]struct{}{}}
	// Every session begins with a read of the table, while arrivals wait.
	l.mode, l.table = modeWaiting, tableState{from: checkpoint.MinPosition, floor: newFloor()}
	return l
}

// run ends when in is closed and no Deliver runs any more, or when work ends. The next session delivers what was not delivered then: the
// slot has not moved past it, or it is parked. deliver is the context of Deliver calls.
func (l *lane) run(work, deliver context.Context) error {
	defer l.startHelpers(work, deliver)()
	timer := time.NewTimer(longestSleep)
	defer timer.Stop()
	l.table.rereadAt = time.Now().Add(rereadEvery)
	in := l.in
	for {
		now := time.Now()
		until, err := l.act(work, deliver, now)
		if err != nil || l.closing && l.running == nil {
			return err
		}
		timer.Reset(max(0, until.Sub(now)))
		select {
		case batch, ok := <-in:
			if !ok {
				in, l.closing = nil, true
				continue
			}
			l.arrivals.add(batch)
		case res := <-l.results:
			began := time.Now()
			if err := l.ended(work, deliver, res); err != nil {
				return err
			}
			l.worked(began)
		case r := <-l.reads:
			l.onRead(r, time.Now())
		case seq := <-l.recorder.recorded:
			l.onRecorded(seq)
		case <-l.asked:
		case <-timer.C:
		case <-work.Done():
			return context.Cause(work)
		}
	}
}

// act does what the lane can do now, hands over what it has parked, and shows how the lane stands. until is when the lane has to act again
// if nothing happens before. After the end of deliver, and when the lane is closing, it begins nothing.
func (l *lane) act(work, deliver context.Context, now time.Time) (until time.Time, err error) {
	until = now.Add(longestSleep)
	if !l.closing && deliver.Err() == nil {
		until = l.step(now)
	}
	if err := l.giveParks(work); err != nil {
		return until, err
	}
	if l.running == nil && !l.table.reading && len(l.rows) == 0 {
		l.large.end(l)
	}
	l.show()
	l.worked(now)
	return until, nil
}

// startHelpers starts the goroutine that calls Deliver, and sets read, which starts a goroutine that reads the table. The lane calls
// end when it ends. end waits for both goroutines, because the session closes the sink after that.
func (l *lane) startHelpers(work, deliver context.Context) (end func()) {
	reading, endRead := context.WithCancel(work)
	var reads sync.WaitGroup
	l.read = func(q ledger.ParkedQuery) {
		reads.Go(func() { l.reads <- l.readParked(reading, q) })
	}
	delivering, endDelivering := context.WithCancel(deliver)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.deliver(delivering)
	}()
	return func() {
		close(l.calls)
		endDelivering()
		select {
		case <-ended:
		case <-time.After(lastAnswer): // the sink does not keep to its contract
		}
		endRead()
		reads.Wait()
	}
}

// deliver makes the Deliver calls, one after the other, until the lane has ended. It is one goroutine for all calls, because a new one
// would have to grow its stack each time.
func (l *lane) deliver(ctx context.Context) {
	noAnswer := fmt.Errorf("no answer within delivery.timeout %s", l.delivery.Timeout)
	for batch := range l.calls {
		ctx, cancel := context.WithTimeoutCause(ctx, l.delivery.Timeout, noAnswer)
		res := l.call(ctx, batch)
		cancel()
		l.results <- res
	}
}

// step does what the lane can do now, and returns when it has to do the next step if nothing happens before.
func (l *lane) step(now time.Time) time.Time {
	l.takeAsks(now)
	for {
		f := l.facts(now)
		a := l.rules.decide(l.mode, &f, now)
		if a.kind == actSleep {
			if a.hurry > 0 {
				l.hurry(a.hurry)
			}
			a.wake(l.table.rereadAt)
			return a.until
		}
		if !l.do(a, now) {
			return l.table.rereadAt
		}
	}
}

// facts are what the lane knows now.
func (l *lane) facts(now time.Time) facts {
	f := facts{
		paused: l.paused.Load(), park: l.park || l.table.hasJob(), permission: l.may(now), fast: l.fast(), one: l.hand.one,
		arrivals: len(l.arrivals.list), hand: len(l.hand.list), handAt: l.hand.at, rows: len(l.rows),
		delivering: l.running != nil, began: l.began, reading: l.table.reading,
		given: l.recorder.given, committed: l.recorder.committed, outcomes: l.recorder.outcomes, died: l.recorder.died,
		ungiven: len(l.recorder.parks) > 0, unrecorded: len(l.recorder.unrecorded), unrecordedRows: l.recorder.unrecordedRows(),
		changed: l.table.changed, held: len(l.held.hashes), dueAt: l.held.dueAt, releaseAt: l.held.releaseAt,
		catchUpAt: l.table.catchUpAt, readAt: l.table.readAt,
	}
	if turn := l.budget.dueAt(); !f.dueAt.IsZero() && turn.After(f.dueAt) {
		f.dueAt = turn
	}
	if f.permission.probe && len(l.away.waiting)+len(l.away.back) > 0 {
		f.dueAt = now // one of these can ask
	}
	return f
}

// do does what was decided. It reports false if it could not, because another lane was faster; then the other lane wakes this one.
func (l *lane) do(a action, now time.Time) bool {
	switch a.kind {
	case actSleep:
	case actCatchUp:
		l.catchUp()
	case actPark:
		l.parkAll()
	case actParkArrivals:
		l.parkEach(l.arrivals.list)
		l.arrivals = arrivals{}
	case actDiscard:
		l.parkEach(l.hand.list)
		l.parkEach(l.arrivals.list)
		l.hand.list, l.arrivals = nil, arrivals{}
	case actArrivals:
		return l.deliverArrivals(a.most, now)
	case actHand:
		return l.deliverSome(&l.hand.list, a.most, now)
	case actRows:
		return l.deliverSome(&l.rows, l.mostRows(a.most), now)
	case actRead:
		return l.startRead(a, now)
	}
	return true
}

// catchUp makes the lane read its parked rows. Arrivals wait in its queue.
func (l *lane) catchUp() {
	l.mode, l.table.readAt = modeWaiting, time.Time{}
}

// parkAll makes the lane park arrivals from now on. It first parks what is being delivered, and then what was to be tried again in
// place, so that what is settled of an aggregate is always a prefix of it. The outcome of the running Deliver then settles the rows.
func (l *lane) parkAll() {
	l.park = false
	if l.mode == modeLive {
		l.catchUp()
	}
	if l.running != nil {
		l.parkEach(l.running.messages)
	}
	l.parkEach(l.hand.list)
	l.mode, l.hand.list, l.rows = modeParking, nil, nil
}

// parkEach parks the deliveries that have no row yet. If the sink is tried once, it discards them.
func (l *lane) parkEach(list []*delivery) {
	for _, d := range list {
		switch {
		case d.row || d.discarded:
		case l.policy == discardFailed && !l.table.hasJob():
			l.discard(d)
		default:
			l.parkUntried(d)
		}
	}
}

// mostRows returns how many of the rows are delivered together, at most.
func (l *lane) mostRows(most int) int {
	if l.rows[0].due && l.budget.suspect() {
		return min(most, suspectCall)
	}
	return most
}

// deliverSome takes at most most messages off the front of a list and starts their Deliver. A row that stands behind a failure of its
// aggregate is left in the table. Another message that does is parked, behind the rows that its aggregate has there. A call has fresh
// rows or due ones, never both: many due rows that are never answered must not use up the time of fresh ones.
func (l *lane) deliverSome(list *[]*delivery, most int, now time.Time) bool {
	batch := (*list)[:0:0]
	n := 0
	for ; n < len(*list) && len(batch) < most && (len(batch) == 0 || (*list)[n].due == batch[0].due); n++ {
		switch d := (*list)[n]; {
		case !l.held.has(d.hash):
			batch = append(batch, d)
		case !d.row:
			l.parkUntried(d)
		}
	}
	rest := (*list)[n:]
	if len(batch) > 0 {
		p := l.breaker.claim(l.number, now)
		if !p.ok {
			*list = append(batch, rest...)
			return false
		}
		if l.takeTurn(batch, p, now) { // otherwise these rows stay in the table until their turn comes
			l.start(now, batch, p)
		}
	}
	clear((*list)[:n]) // the list's array lives on; settled deliveries must not
	if *list = rest; len(rest) == 0 {
		*list = nil
	}
	return true
}

// takeTurn reports whether these messages may be tried now. Due rows of a suspect sink have to wait for their turn. A probe does not
// wait, but the next due rows wait the longer for it.
func (l *lane) takeTurn(batch []*delivery, p permission, now time.Time) bool {
	switch {
	case !batch[0].due:
		return true
	case p.probe:
		l.budget.count(len(batch), now)
		return true
	}
	return l.budget.take(len(batch), now)
}

// start starts a Deliver of this batch, which the breaker has permitted.
func (l *lane) start(now time.Time, batch []*delivery, p permission) {
	l.running = &runningDeliver{batch, p.probe}
	l.away.tried(batch)
	if p.probe {
		l.table.probed = batch[0].position()
	}
	l.again.messages = l.again.messages[:0]
	for _, d := range batch {
		d.Attempt, d.Origin, d.New = d.tries+1, l.origin, d.isNew()
		l.again.messages = append(l.again.messages, d.Message)
	}
	l.began = now
	l.calls <- l.again.messages
}

// show publishes what others see of the lane.
func (l *lane) show() {
	var oldest uint64
	first := func(list []*delivery) {
		if len(list) > 0 && !list[0].row && !list[0].discarded && (oldest == 0 || list[0].entry+1 < oldest) {
			oldest = list[0].entry + 1
		}
	}
	first(l.arrivals.list)
	first(l.hand.list)
	if l.running != nil {
		first(l.running.messages)
	}
	l.shown.oldest.Store(oldest)
	view := monitoring.LaneStatus{CatchingUp: l.mode.catchesUp(), Held: l.held.known() + l.hand.aggregates()}
	if view != l.shown.view {
		l.state.laneIs(l.number, view)
		l.shown.view = view
	}
	l.shown.idle.Store(l.running == nil && len(l.arrivals.list) == 0 && len(l.hand.list) == 0 && len(l.rows) == 0)
}
