package connector

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// stages measures where the time goes, for Status. It outlives sessions. Everything is measured once for a batch, or for what the reader has read
// at once: one measurement of each event would be a cost that shows.
type stages struct {
	decode  atomicDuration // the reader's own work
	confirm atomicDuration // its sending of status messages
	record  meter
	read    atomic.Int64 // rows of the outbox that came on the stream
	retries atomic.Int64 // of the recorder
	ownWAL  atomic.Int64 // bytes that the recorder has written, about
	waits   struct{ lanes, window, recorder meter }
}

// status returns what Status shows, without the stages of sinks.
func (s *stages) status(now time.Time) monitoring.Stages {
	return monitoring.Stages{
		Read: s.read.Load(), RecorderRetries: s.retries.Load(),
		ReaderWaited: monitoring.ReaderWaited{
			Lanes: s.waits.lanes.total(now), Window: s.waits.window.total(now), Recorder: s.waits.recorder.total(now),
		},
		Busy: []monitoring.StageBusy{
			{Stage: monitoring.StageDecode, Busy: s.decode.total()},
			{Stage: monitoring.StageRecord, Busy: s.record.total(now)},
			{Stage: monitoring.StageConfirm, Busy: s.confirm.total()},
		},
	}
}

// sinkWork is the work for a sink.
type sinkWork struct {
	lanes      atomicDuration // their own, all of them together
	delivering meter          // their calls of Deliver
}

// status returns what Status shows of a sink with this many lanes.
func (w *sinkWork) status(now time.Time, sink string, lanes int) []monitoring.StageBusy {
	n := time.Duration(max(1, lanes))
	return []monitoring.StageBusy{
		{Stage: monitoring.StageQueue, Sink: sink, Busy: w.lanes.total() / n},
		{Stage: monitoring.StageDeliver, Sink: sink, Busy: w.delivering.total(now) / n},
	}
}

// laneMeasures are what the lanes of a sink measure, resolved once for a session.
type laneMeasures struct {
	event   prometheus.Observer // from the commit of an event to its acceptance
	queue   prometheus.Observer // of monitoring.StageQueue
	stage   prometheus.Observer // of monitoring.StageDeliver
	deliver prometheus.Observer // the same, of this sink
	batch   prometheus.Observer // events of a batch
}

func newLaneMeasures(m *monitoring.Metrics, sink string) laneMeasures {
	return laneMeasures{
		event: m.EventDuration.WithLabelValues(sink), queue: m.StageDuration.WithLabelValues(monitoring.StageQueue),
		stage: m.StageDuration.WithLabelValues(monitoring.StageDeliver), deliver: m.DeliverDuration.WithLabelValues(sink),
		batch: m.BatchEvents.WithLabelValues(sink),
	}
}

// delivered measures a Deliver call.
func (m *laneMeasures) delivered(r *result, messages int) {
	took := r.completed.Sub(r.started).Seconds()
	m.stage.Observe(took)
	m.deliver.Observe(took)
	m.batch.Observe(float64(messages))
}

// atomicDuration adds up work that is always short. Safe for all goroutines.
type atomicDuration struct{ nanoseconds atomic.Int64 }

func (d *atomicDuration) add(t time.Duration)  { d.nanoseconds.Add(int64(t)) }
func (d *atomicDuration) total() time.Duration { return time.Duration(d.nanoseconds.Load()) }

// meter adds up the time for which its workers are at work. It counts work that is still under way: a call that hangs for minutes shows
// while it hangs. Safe for all goroutines. The zero value is ready.
type meter struct {
	mu      sync.Mutex
	base    time.Time     // of the first begin
	workers int           // at work now
	sum     time.Duration // for each worker that is at work, less the time from base to its begin
	shown   time.Duration // the largest total so far: a counter never goes back
}

func (m *meter) begin(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.base.IsZero() {
		m.base = now
	}
	m.workers++
	m.sum -= now.Sub(m.base)
}

func (m *meter) end(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.workers--
	m.sum += now.Sub(m.base)
}

func (m *meter) total(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	// A worker may begin or end with a time from a moment before this call, or this call may have waited for the mutex.
	m.shown = max(m.shown, m.sum+time.Duration(m.workers)*now.Sub(m.base))
	return m.shown
}

// readerClock measures the reader's own work: all of its time, less that in which it waits for the network or for others of the process. Only
// the reader uses it.
type readerClock struct {
	stages   *stages
	duration prometheus.Observer // of monitoring.StageDecode
	began    time.Time           // what is measured now; zero before the first lap
	waited   time.Duration       // for others, since then
	stream   time.Duration       // how long the stream had waited then, for the network
	ungiven  time.Duration       // work since deliveries were last handed over
	read     int64               // rows of the outbox since the last lap
	wait     struct {            // the wait that is under way
		meter  *meter
		began  time.Time
		stream time.Duration
	}
}

// lap adds up the work until now. stream is how long the stream has waited in all, and handsOver says that deliveries are handed over now.
func (c *readerClock) lap(now time.Time, stream time.Duration, handsOver handsOver) {
	if !c.began.IsZero() {
		work := max(0, now.Sub(c.began)-c.waited-(stream-c.stream))
		c.stages.decode.add(work)
		c.ungiven += work
	}
	c.stages.read.Add(c.read)
	c.began, c.waited, c.stream, c.read = now, 0, stream, 0
	if handsOver {
		c.duration.Observe(c.ungiven.Seconds())
		c.ungiven = 0
	}
}

// handsOver says whether the reader hands deliveries over.
type handsOver bool

// waits notes that the reader begins to wait for others, and waitedFor that it has ended. The stream goes on sending status meanwhile: stream is
// how long it has waited for that in all.
func (c *readerClock) waits(m *meter, now time.Time, stream time.Duration) {
	m.begin(now)
	c.wait.meter, c.wait.began, c.wait.stream = m, now, stream
}

func (c *readerClock) waitedFor(now time.Time, stream time.Duration) {
	c.wait.meter.end(now)
	c.waited += now.Sub(c.wait.began) - (stream - c.wait.stream)
}

func (c *Connector) newReaderClock() readerClock {
	return readerClock{stages: &c.stages, duration: c.cfg.Metrics.StageDuration.WithLabelValues(monitoring.StageDecode)}
}

// recordClock measures the transactions of a session's recorder. Only the recorder uses it.
type recordClock struct {
	stages   *stages
	duration prometheus.Observer // of monitoring.StageRecord
	commit   prometheus.Observer // of each transaction alone
	confirm  *confirmClock
	began    time.Time // the first try of the batch at hand; zero if there is none
}

func (c *Connector) newRecordClock(confirm *confirmClock) *recordClock {
	return &recordClock{
		stages: &c.stages, confirm: confirm,
		duration: c.cfg.Metrics.StageDuration.WithLabelValues(monitoring.StageRecord), commit: c.cfg.Metrics.RecorderCommit,
	}
}

// tries notes that a try of a batch begins.
func (c *recordClock) tries(now time.Time) {
	if c.began.IsZero() {
		c.began = now
		c.stages.record.begin(now)
		return
	}
	c.stages.retries.Add(1)
}

// committed notes that the try that began at this time has succeeded. Until then the recorder is at work: it does nothing but try.
func (c *recordClock) committed(lsn pglogrepl.LSN, try, now time.Time) {
	c.commit.Observe(now.Sub(try).Seconds())
	c.duration.Observe(now.Sub(c.began).Seconds())
	c.close(now)
	c.confirm.committed(lsn, now)
}

// close ends the measurement of a batch.
func (c *recordClock) close(now time.Time) {
	if !c.began.IsZero() {
		c.stages.record.end(now)
		c.began = time.Time{}
	}
}

// confirmClock is the progress that the stream reports. It measures how long PostgreSQL is not told of what is committed. The recorder calls
// committed, and the reader Reported.
type confirmClock struct {
	*checkpoint.Tracker
	stages   *stages
	duration prometheus.Observer // of monitoring.StageConfirm

	mu    sync.Mutex
	first committedAt // the oldest one of which PostgreSQL was not told; zero if there is none
	last  committedAt
}

// newConfirmClock makes the clock of a session that begins at this LSN. Its caller sets the tracker.
func (c *Connector) newConfirmClock(confirmed pglogrepl.LSN) *confirmClock {
	return &confirmClock{
		stages: &c.stages, last: committedAt{lsn: confirmed},
		duration: c.cfg.Metrics.StageDuration.WithLabelValues(monitoring.StageConfirm),
	}
}

// beginAt changes where the session begins. Nothing runs yet.
func (c *confirmClock) beginAt(confirmed pglogrepl.LSN) { c.last.lsn = confirmed }

// committedAt is when the ledger had committed that everything up to an LSN is settled.
type committedAt struct {
	lsn pglogrepl.LSN
	at  time.Time
}

func (c *confirmClock) committed(lsn pglogrepl.LSN, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if lsn <= c.last.lsn {
		return // it only records outcomes
	}
	c.last = committedAt{lsn, now}
	if c.first.at.IsZero() {
		c.first = c.last
	}
}

// Reported implements replication.Progress.
func (c *confirmClock) Reported(lsn pglogrepl.LSN, began, ended time.Time) {
	c.stages.confirm.add(ended.Sub(began))
	if waited, told := c.told(lsn, ended); told {
		c.duration.Observe(waited.Seconds())
	}
}

// told notes that PostgreSQL was told of everything up to lsn. It returns how long the oldest part of that has waited.
func (c *confirmClock) told(lsn pglogrepl.LSN, now time.Time) (waited time.Duration, told bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first.at.IsZero() || lsn < c.first.lsn {
		return 0, false
	}
	waited = now.Sub(c.first.at)
	if c.first = (committedAt{}); lsn < c.last.lsn {
		c.first = c.last // committed while the message was sent
	}
	return waited, true
}

// handed is what the reader hands to a lane at once.
type handed struct {
	list []*delivery
	at   time.Time
}

// arrivals are the deliveries that a lane has from the reader and has not begun with, in order. The zero value has none.
type arrivals struct {
	list  []*delivery
	times queueTimes
}

func (a *arrivals) add(h handed) {
	a.list = append(a.list, h.list...)
	a.times.came(len(h.list), h.at)
}

// worked adds up the lane's own work since began, less the time in which it waited for the recorder.
func (l *lane) worked(began time.Time) {
	l.state.work.lanes.add(time.Since(began) - l.recorder.waited)
	l.recorder.waited = 0
}

// deliverArrivals is deliverSome for arrivals. It measures how long the first of them has waited.
func (l *lane) deliverArrivals(most int, now time.Time) bool {
	before := len(l.arrivals.list)
	ok := l.deliverSome(&l.arrivals.list, most, now)
	if left := before - len(l.arrivals.list); left > 0 {
		since := l.arrivals.times.left(left)
		if l.running != nil {
			l.measures.queue.Observe(now.Sub(since).Seconds())
		}
	}
	return ok
}

// queueTimes knows since when arrivals wait.
type queueTimes struct {
	marks []queueMark // those before head are done
	head  int
}

// queueMark says that n arrivals have waited since this time.
type queueMark struct {
	n     int
	since time.Time
}

// came notes that n arrivals have come.
func (q *queueTimes) came(n int, now time.Time) { q.marks = append(q.marks, queueMark{n, now}) }

// left notes that n arrivals have left the front of the queue. It returns since when the first of them had waited; n is not 0.
func (q *queueTimes) left(n int) (since time.Time) {
	since = q.marks[q.head].since
	for n > 0 && q.marks[q.head].n <= n {
		n -= q.marks[q.head].n
		q.head++
	}
	if n > 0 {
		q.marks[q.head].n -= n
	}
	if q.head > len(q.marks)/2 { // use the array again, and move fewer marks than have left
		q.marks = q.marks[:copy(q.marks, q.marks[q.head:])]
		q.head = 0
	}
	return since
}
