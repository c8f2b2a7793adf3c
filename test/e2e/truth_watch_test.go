package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// rightWithin is how long after an answer, a time-out, a keepalive or a COMMIT all figures are right.
	rightWithin = 3 * time.Second
	// watchEvery is how often everything is read.
	watchEvery = 200 * time.Millisecond
)

// truthWatch reads what a connector says of itself, by /readyz, /metrics and "events list", and beside it the tables and the slot, until it is
// stopped. Then it says what differed, from when to when.
type truthWatch struct {
	w      *world
	c      *connector
	began  time.Time
	stop   context.CancelFunc
	loops  sync.WaitGroup
	counts map[string]int // how often each was read

	resetTimeout time.Duration // of the breaker

	mu    sync.Mutex
	truth map[string][]reading
	shown map[string]*figure // by name; the truth is added at the end
	of    map[string]string  // which truth a figure shows
	wrong map[string]string  // what is wrong at any moment, by kind; the first of each

	// What the test does to PostgreSQL.
	frozen time.Time // since when the process that records outcomes does not run
	wentOn bool      // it has just gone on
	locked time.Time // since when the ledger is locked
	logged int       // the last row of the log when the lock was released; 0 if none was, or a COMMIT has succeeded since
}

// watchTruth starts to watch a connector that runs.
func (w *world) watchTruth(c *connector, resetTimeout time.Duration) *truthWatch {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	v := &truthWatch{
		w: w, c: c, began: time.Now(), stop: cancel, resetTimeout: resetTimeout, counts: map[string]int{},
		truth: map[string][]reading{}, shown: map[string]*figure{}, of: map[string]string{}, wrong: map[string]string{},
	}
	tables := &tablesReader{v: v}
	w.t.Cleanup(v.end)
	for name, read := range map[string]func(context.Context) error{
		"/readyz": v.readHealth, "/metrics": v.readMetrics, "events list": v.readParked, "tables": tables.read,
	} {
		v.loops.Go(func() {
			tick := time.NewTicker(watchEvery)
			defer tick.Stop()
			for {
				if read(ctx) == nil {
					v.note(func() { v.counts[name]++ })
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return v
}

func (v *truthWatch) note(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
}

// end stops all reading.
func (v *truthWatch) end() {
	v.stop()
	v.loops.Wait()
}

// isWrong notes something that may not be at any moment.
func (v *truthWatch) isWrong(kind, format string, args ...any) {
	v.note(func() {
		if _, said := v.wrong[kind]; !said {
			v.wrong[kind] = fmt.Sprintf("at %s: ", time.Since(v.began).Round(100*time.Millisecond)) + fmt.Sprintf(format, args...)
		}
	})
}

// show notes what the connector has said of a figure. truth names what it should be.
func (v *truthWatch) show(name, truth string, r reading) {
	v.note(func() {
		if v.shown[name] == nil {
			v.shown[name] = &figure{name: name}
			v.of[name] = truth
		}
		v.shown[name].shown = append(v.shown[name].shown, r)
	})
}

// tolerances are by what the truth is about; everything else has to be exact.
var tolerances = map[string]tolerance{
	"parked":    {steps: true},
	"held":      {steps: true},
	"oldest":    {slack: 1},                      // seconds
	"lag":       {slack: 2},                      // seconds; the connector counts from the event before
	"lag bytes": {slack: 256 << 10, steps: true}, // its two ends are read at different moments, between which the server writes
}

// verify ends the watch, and fails the test for each figure that was wrong for too long.
func (v *truthWatch) verify() {
	v.w.t.Helper()
	v.end()
	v.w.t.Logf("read in %s: %v", time.Since(v.began).Round(time.Second), v.counts)
	for name, n := range v.counts {
		if most := time.Since(v.began) / time.Second; n < int(most)/2 {
			v.w.t.Errorf("%s was read only %d times in %d s", name, n, most)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(v.wrong)) {
		v.w.t.Errorf("%s: %s", kind, v.wrong[kind])
	}
	for _, name := range slices.Sorted(maps.Keys(v.shown)) {
		f := v.shown[name]
		what, _, _ := strings.Cut(v.of[name], " of ")
		f.truth, f.tolerance = v.truth[v.of[name]], tolerances[what]
		if len(f.truth) == 0 {
			v.w.t.Errorf("%s: there is no truth %q", name, v.of[name])
		}
		for _, d := range f.differences(rightWithin) {
			v.w.t.Error(d.text(v.began))
		}
	}
}

var parkedInDetail = regexp.MustCompile(`(\d+) parked, the oldest (\S+) ago`)

func (v *truthWatch) readHealth(context.Context) error {
	asked := time.Now()
	h, err := v.c.health()
	if err != nil {
		if strings.Contains(err.Error(), "/readyz says") {
			v.isWrong("/readyz", "%v", err)
		}
		return err
	}
	at := func(value float64) reading { return reading{asked, time.Now(), value} }
	levels := map[string]float64{isOK: 0, isDegraded: 1, isFailed: 2}
	worst := 0.0
	for name, c := range h.Components {
		level, known := levels[c.Status]
		if !known || c.Since.IsZero() || c.Since.After(time.Now()) {
			v.isWrong("/readyz", "%s: %+v", name, c)
		}
		worst = max(worst, level)
	}
	if levels[h.Status] != worst {
		v.isWrong("/readyz", "status %s: %s", h.Status, h)
	}
	failed := func(component string) reading {
		return at(map[bool]float64{true: 1}[h.Components[component].Status == isFailed])
	}
	v.show("/readyz: session failed", "no session", failed("session"))
	if h.Components["session"].Status == isFailed {
		return nil // without a session nothing is said of the rest
	}
	v.show("/readyz: recorder failed", "ledger not writable", failed("recorder"))
	v.show("/readyz: level of postgres", "hanging COMMIT", at(levels[h.Components["postgres"].Status]))
	for _, sink := range everySink {
		c, shown := h.Components["sink:"+sink]
		if !shown {
			v.isWrong("/readyz", "a session, and nothing of %s: %s", sink, h)
			continue
		}
		v.show("/readyz: "+sink+" degraded", "away of "+sink, at(levels[c.Status]))
		parked, oldest := 0.0, time.Duration(0)
		if m := parkedInDetail.FindStringSubmatch(c.Detail); m != nil {
			parked, _ = strconv.ParseFloat(m[1], 64)
			if oldest, err = time.ParseDuration(m[2]); err != nil {
				v.isWrong("/readyz", "%s: %v", c.Detail, err)
			}
		}
		v.show("/readyz: parked of "+sink, "parked of "+sink, at(parked))
		v.show("/readyz: oldest of "+sink, "oldest of "+sink, at(oldest.Seconds()))
	}
	return nil
}

func (v *truthWatch) readMetrics(context.Context) error {
	asked := time.Now()
	body, _, err := v.c.get("/metrics")
	if err != nil {
		return err
	}
	answered := time.Now()
	values := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			values[strings.TrimPrefix(name, "pyairtable_outbox_")] = n
		}
	}
	show := func(metric, truth string, adjust func(float64) float64) {
		n, has := values[metric]
		if !has { // nobody knows the number before the first count of a process that streams
			if values["leader"] == 1 && asked.Sub(v.began) > rightWithin {
				v.isWrong("/metrics", "no %s, although a session has streamed for a while", metric)
			}
			return
		}
		if adjust != nil {
			n = adjust(n)
		}
		v.show("/metrics: "+metric, truth, reading{asked, answered, n})
	}
	for _, sink := range everySink {
		label := `{sink="` + sink + `"}`
		show("parked_events"+label, "parked of "+sink, nil)
		show("dead_letters"+label, "dead of "+sink, nil)
		show("oldest_parked_age_seconds"+label, "oldest of "+sink, nil)
		show("held_aggregates"+label, "held of "+sink, nil)
		show("circuit_breaker_state"+label, "away of "+sink, func(n float64) float64 { return min(n, 1) }) // a probe of a sink that is away is half open
	}
	if values["leader"] == 1 { // without a session nobody hears how much the server writes
		show("slot_lag_bytes", "lag bytes", nil)
	}
	show("slot_lag_seconds", "lag", nil)
	return nil
}

// readParked runs "events list", which has to say what waits, and for nothing that is over.
func (v *truthWatch) readParked(ctx context.Context) error {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.binary, "events", "list", "--status", "parked", "--limit", "10000", "-o", "json", "--config", v.c.config)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + v.c.dir}
	out, err := cmd.Output()
	if err != nil {
		return err // PostgreSQL is away
	}
	var page parkedPage
	if err := json.Unmarshal(out, &page); err != nil {
		v.isWrong("events list", "%v in %s", err, out)
		return err
	}
	if page.Next != "" {
		return nil // there are more than a page
	}
	for _, sink := range everySink {
		rows := page.of(sink)
		for _, row := range rows {
			v.checkRow(row, asked)
		}
		at := func(value float64) reading { return reading{asked, time.Now(), value} }
		v.show("events list: parked of "+sink, "parked of "+sink, at(float64(len(rows))))
		share := func(is func(parkedRow) bool) reading {
			return at(map[bool]float64{true: 1}[slices.ContainsFunc(rows, is)])
		}
		resume := share(func(r parkedRow) bool { return r.WaitsFor == "resume" })
		if len(rows) == 0 {
			continue // nothing is said of the sink
		}
		v.show("events list: "+sink+" paused", "paused of "+sink, resume)
		if resume.value == 0 && rows[0].WaitsFor != "connector" {
			v.show("events list: "+sink+" away", "away of "+sink, share(func(r parkedRow) bool { return strings.Contains(r.Waits, "the destination") }))
		}
	}
	return nil
}

// parkedPage is a page of "events list --status parked".
type parkedPage struct {
	Parked []parkedRow
	Next   string
}

type parkedRow struct {
	Sink        string
	Waits       string
	WaitsFor    string     `json:"waits_for"`
	WaitsUntil  *time.Time `json:"waits_until"`
	NextAttempt *time.Time `json:"next_attempt_at"`
}

func (p parkedPage) of(sink string) []parkedRow {
	return slices.DeleteFunc(slices.Clone(p.Parked), func(r parkedRow) bool { return r.Sink != sink })
}

// checkRow wants a row of a list that was asked for at that time to say what it waits for, and no time that is over.
func (v *truthWatch) checkRow(row parkedRow, asked time.Time) {
	if row.WaitsFor == "" || row.Waits == "" {
		v.isWrong("events list", "a row of %s waits for nothing", row.Sink)
	}
	for _, until := range []*time.Time{row.WaitsUntil, row.NextAttempt} {
		if until != nil && until.Before(asked) {
			v.isWrong("events list", "%s waits for %q, until %s, which was %s before the list", row.Sink, row.Waits, until, asked.Sub(*until))
		}
	}
	if row.WaitsFor == "destination" && row.WaitsUntil != nil && time.Until(*row.WaitsUntil) > v.resetTimeout {
		v.isWrong("events list", "%s is asked only in %s", row.Sink, time.Until(*row.WaitsUntil))
	}
}

// tablesReader reads the truth.
type tablesReader struct {
	v       *truthWatch
	conn    *pgx.Conn
	active  time.Time // when a session was last seen
	owed    time.Time // since when something was owed, or nothing, when that was last read
	settled time.Time // what was written before is settled
}

// A sink is away if its last answer was a failure. What has failed for another reason is dead in the test, or waits for its next attempt.
// An aggregate is held by a row that was tried and waits for its next attempt.
// The lag is the time since the oldest event was written of which the ledger does not know something for each sink.
const truthOfSinks = `
	select p.processor_name, count(k) filter (where k.status = 'parked'), count(k) filter (where k.status = 'dead'),
		coalesce(extract(epoch from clock_timestamp() - min(k.parked_at) filter (where k.status = 'parked')), 0)::float8,
		coalesce((select max(id) from outbox_delivery_log l where l.processor_id = p.id and l.status = 'failed') >
			(select max(id) from outbox_delivery_log l where l.processor_id = p.id and l.status = 'delivered'), false),
		count(distinct k.agg_hash) filter (where k.next_attempt_at is not null), not p.is_active
	from outbox_processors p left join outbox_parked k on k.processor_id = p.id group by p.id`

const truthOfSlot = `
	select s.active, pg_current_wal_flush_lsn(), s.confirmed_flush_lsn,
		(select max(l.id) from outbox_processors p, lateral (select max(id) as id from outbox_delivery_log where processor_id = p.id and status = 'delivered') l),
		(select min(e.created_at) from event_outbox e where e.created_at >= $3 and
			(select count(distinct processor_id) from (select processor_id from outbox_delivery_log l where l.event_id = e.id and status <> 'failed'
				union all select processor_id from outbox_parked k where k.event_id = e.id) settled) < $2)
	from pg_replication_slots s where s.slot_name = $1`

func (r *tablesReader) read(ctx context.Context) (err error) {
	v := r.v
	asked := time.Now()
	is := func(name string, value float64) {
		v.truth[name] = append(v.truth[name], reading{asked, time.Now(), value})
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	defer func() {
		if err == nil || ctx.Err() != nil {
			return
		}
		if r.conn != nil {
			r.conn.Close(context.Background())
			r.conn = nil
		}
		v.note(func() { is("ledger not writable", 1) })
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "57P03" { // it is shutting down or starting, and the stream may go on
			return
		}
		v.note(func() { // PostgreSQL is away
			is("no session", 1)
			r.unread(is, asked)
		})
	}()
	if r.conn == nil {
		if r.conn, err = pgx.Connect(ctx, v.w.dsn); err != nil {
			return err
		}
	}
	rows, err := r.conn.Query(ctx, truthOfSinks)
	if err != nil {
		return err
	}
	var sink string
	var parked, dead, oldest, held float64
	var away, paused bool
	_, err = pgx.ForEachRow(rows, []any{&sink, &parked, &dead, &oldest, &away, &held, &paused}, func() error {
		v.note(func() {
			is("parked of "+sink, parked)
			is("dead of "+sink, dead)
			is("oldest of "+sink, oldest)
			is("held of "+sink, held)
			is("paused of "+sink, map[bool]float64{true: 1}[paused])
			is("away of "+sink, map[bool]float64{true: 1}[away])
		})
		return nil
	})
	if err != nil {
		return err
	}
	var active bool
	var end, confirmed pglogrepl.LSN
	var logged int
	var oldestOwed *time.Time
	if err := r.conn.QueryRow(ctx, truthOfSlot, v.w.slot, len(everySink), r.settled).Scan(&active, &end, &confirmed, &logged, &oldestOwed); err != nil {
		return err
	}
	lag := 0.0
	if r.owed = asked; oldestOwed != nil {
		r.owed, lag = *oldestOwed, time.Since(*oldestOwed).Seconds()
	}
	r.settled = r.owed.Add(-5 * time.Second) // a transaction may commit later than it has written
	v.note(func() {
		if active {
			r.active = asked
		}
		is("no session", map[bool]float64{false: 1}[active])
		is("lag bytes", float64(end-min(end, confirmed)))
		if is("lag", lag); !active {
			r.unread(is, asked)
		}
		is("ledger not writable", v.notWritable(logged))
		is("hanging COMMIT", v.hanging())
	})
	return nil
}

// unread notes the lag while no session reads the stream: it counts from what is owed, or from when a session last read.
func (r *tablesReader) unread(is func(name string, value float64), asked time.Time) {
	is("lag", asked.Sub(r.owed).Seconds())
	is("lag", asked.Sub(r.active).Seconds())
}

// lockTimeout is after how long a statement of the recorder gives up to wait for a lock.
const lockTimeout = 2 * time.Second

// notWritable is 1 from the moment when the recorder is told that the ledger is locked, to its first COMMIT after that. When the
// server's process goes on, it may say that it has waited for us too long, and the recorder tries again at once.
func (v *truthWatch) notWritable(logged int) float64 {
	if v.wentOn {
		v.wentOn = false
		return 1
	}
	if v.logged > 0 && logged > v.logged {
		v.locked, v.logged = time.Time{}, 0
	}
	if v.locked.IsZero() || time.Since(v.locked) < lockTimeout {
		return 0
	}
	return 1
}

// hanging is the level of a COMMIT that has hung since v.frozen.
func (v *truthWatch) hanging() float64 {
	switch d := time.Since(v.frozen); {
	case v.frozen.IsZero() || d < 5*time.Second:
		return 0
	case d < 10*time.Second:
		return 1
	}
	return 2
}
