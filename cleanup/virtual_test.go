package cleanup_test

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	fakeRetention = time.Hour
	fakePartition = 10 * time.Minute // of the log
	fakeDay       = 20 * time.Minute // of the outbox
	keyFormat     = "2006-01-02 15:04:05.000000000"
)

// fakeRow is a row of the outbox of a fake.
type fakeRow struct {
	id, key            string
	at                 time.Time // its created_at
	seen               time.Time // when it was committed
	logged             time.Time // when its log row was written; zero for a row that never comes on the stream
	settled            time.Time // when the least prefix of all slots passes it
	lockedFrom, locked time.Time // until when another transaction has it locked
	hidden             bool      // that lock is seen only by waiting
	refusedUntil       time.Time
	gone               bool
}

// fake is an outbox with its ledger in virtual time: cleanup.Database and cleanup.Outbox.
type fake struct {
	rows                 []*fakeRow // by time and id
	jobFrom, jobUntil    time.Time
	lag                  time.Duration // of what is confirmed
	logFrom              time.Time     // of the oldest partition of the log
	faults               []string
	reports, looks, most int
	byDay                bool
	dropped              int
}

func (f *fake) Lacking(context.Context) ([]string, error)                        { return nil, nil }
func (f *fake) OpenOutbox(context.Context) (cleanup.Outbox, bool, error)         { return f, true, nil }
func (f *fake) DeleteMetrics(context.Context, time.Duration, int) (int64, error) { return 0, nil }

func (f *fake) Zoneless() bool { return false }

func (f *fake) DeadRows(context.Context) ([]ledger.DeadRows, error) { return nil, nil }

func (f *fake) WriteReport(_ context.Context, report []byte) error {
	f.reports++
	return json.Unmarshal(report, &cleanup.Report{})
}

func (f *fake) OldestRow(_ context.Context, q ledger.ChunkQuery) (ledger.OutboxKey, bool, error) {
	now := time.Now()
	for _, r := range f.rows {
		if !r.gone && !r.seen.After(now) && r.at.Before(now.Add(-q.Age)) {
			return ledger.OutboxKey{At: r.at.Format(keyFormat), ID: r.id}, true, nil
		}
	}
	return ledger.OutboxKey{At: now.Add(-q.Age).Format(keyFormat)}, false, nil
}

func (f *fake) DeleteChunk(_ context.Context, q ledger.ChunkQuery) (ledger.Chunk, error) {
	now := time.Now()
	var c ledger.Chunk
	c.Witness = ledger.Witness{Snapshot: now.Format(keyFormat), LSN: now.Format(keyFormat)}
	c.Decides = q.Witness.LSN != "" && q.Witness.LSN <= now.Add(-f.lag).Format(keyFormat)
	if !now.Before(f.jobFrom) && now.Before(f.jobUntil) {
		c.Blocked = "a job is unfinished"
		return c, nil
	}
	var goes []*fakeRow
	n, stepped := 0, 0
	for _, r := range f.rows {
		key := ledger.OutboxKey{At: r.key, ID: r.id}
		if q.From != nil {
			if order := strings.Compare(key.At+key.ID, q.From.At+q.From.ID); order < 0 || order == 0 && q.After {
				continue
			}
		}
		if stepped++; r.gone {
			continue
		}
		if r.seen.After(now) || !r.at.Before(now.Add(-q.Age)) {
			continue
		}
		if q.Until != "" && r.key >= q.Until {
			break
		}
		if n++; n > q.Limit {
			break
		}
		c.Last = &key
		known := !r.logged.IsZero() && !r.logged.After(now)
		settled := known && !r.settled.After(now)
		locked := !now.Before(r.lockedFrom) && now.Before(r.locked)
		if known {
			if c.Logged.IsZero() || r.logged.Before(c.Logged) {
				c.Logged = r.logged
			}
			if (!settled || locked && !r.hidden) && (c.LogNeeded.IsZero() || r.logged.Before(c.LogNeeded)) {
				c.LogNeeded = r.logged
			}
		}
		waits := true
		switch {
		case settled && locked && !r.hidden:
			c.Kept.Locked++
		case settled && locked && !q.Explain:
			return ledger.Chunk{}, ledger.ErrRowLocked
		case settled && now.Before(r.refusedUntil) && !q.Explain:
			return ledger.Chunk{}, ledger.ErrRowRefused
		case settled:
			goes = append(goes, r)
			c.Hash ^= r.hash()
			waits = false
		case known:
			c.Kept.Beyond++
		case c.Decides && r.seen.Format(keyFormat) <= q.Witness.Snapshot:
			c.Kept.Unaccounted++
			c.Unaccounted = r.id
			waits = false
			if !r.logged.IsZero() {
				f.faults = append(f.faults, r.id+" counts as unaccounted and comes later")
			}
		default:
			c.Kept.Unread++
		}
		if waits && c.Waiting == nil {
			c.Waiting = &key
		}
	}
	f.looks++
	f.most = max(f.most, stepped)
	c.Full = n >= q.Limit
	c.Deleted = int64(len(goes))
	if !q.Explain {
		for _, r := range goes {
			r.gone = true
		}
	}
	return c, nil
}

func (f *fake) DropLogPartition(_ context.Context, cutoff ledger.LogCutoff) ([]ledger.LogPartition, error) {
	now := time.Now()
	until := f.logFrom.Add(fakePartition)
	bound := now.Add(-cutoff.Age)
	if !cutoff.Needed.IsZero() && cutoff.Needed.Before(bound) {
		bound = cutoff.Needed
	}
	p := ledger.LogPartition{Name: f.logFrom.Format(time.TimeOnly), Outcome: ledger.LogYoung}
	if !until.After(bound) {
		p.Outcome = ledger.LogDropped
		for _, r := range f.rows {
			if !r.gone && !r.logged.IsZero() && !r.logged.Before(f.logFrom) && r.logged.Before(until) {
				f.faults = append(f.faults, fmt.Sprintf("at %s the log of %s is dropped, and %s (%s) is there, logged %s", now, p.Name, r.id, r.at, r.logged))
			}
		}
		f.logFrom = until
	}
	return []ledger.LogPartition{p}, nil
}

func (f *fake) ByDay() bool { return f.byDay }

// Days are of twenty minutes.
func (f *fake) Days(_ context.Context, age time.Duration) (days []ledger.OutboxDay, err error) {
	if len(f.rows) == 0 {
		return nil, nil
	}
	for from := f.rows[0].at.Truncate(fakeDay); !from.Add(fakeDay).After(time.Now().Add(-age)); from = from.Add(fakeDay) {
		days = append(days, ledger.OutboxDay{
			OID: uint32(from.Unix()), Name: from.Format(time.TimeOnly), From: from.Format(keyFormat), Until: from.Add(fakeDay).Format(keyFormat),
		})
	}
	return days, nil
}

// DropDay is busy in the first minutes of each ten.
func (f *fake) DropDay(_ context.Context, day ledger.OutboxDay, rows ledger.DayRows, _ time.Duration) (ledger.DayOutcome, string, error) {
	now := time.Now()
	if now.Minute()%10 < 5 {
		return ledger.DayBusy, "", nil
	}
	if !now.Before(f.jobFrom) && now.Before(f.jobUntil) {
		return ledger.DayHeld, "", nil
	}
	var has ledger.DayRows
	var goes []*fakeRow
	for _, r := range f.rows {
		if r.gone || r.seen.After(now) || r.key < day.From || r.key >= day.Until {
			continue
		}
		has.Rows, has.Hash = has.Rows+1, has.Hash^r.hash()
		goes = append(goes, r)
	}
	if has != rows {
		return ledger.DayChanged, "", nil
	}
	for _, r := range goes {
		if r.logged.IsZero() || r.logged.After(now) || r.settled.After(now) {
			f.faults = append(f.faults, r.id+" is dropped, and is not settled")
		}
		r.gone = true
	}
	f.dropped++
	return ledger.DayDropped, "", nil
}

func (r *fakeRow) hash() int64 {
	h := fnv.New64()
	_, _ = h.Write([]byte(r.id))
	return int64(h.Sum64())
}

func (f *fake) PlanLogDrop(context.Context, ledger.LogCutoff) ([]ledger.LogPartition, error) {
	return nil, nil
}

// newFake makes a random history of some hours. All of it is settled and free in the end.
func newFake(r *rand.Rand) *fake {
	start := time.Now()
	f := &fake{logFrom: start, lag: time.Duration(r.IntN(120)) * time.Second}
	within := func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
	f.jobFrom = start.Add(within(5 * time.Hour))
	f.jobUntil = f.jobFrom.Add(within(time.Hour))
	behind := start.Add(within(5 * time.Hour)) // another slot stands here
	behindUntil := behind.Add(within(2 * time.Hour))
	for i := range 50 + r.IntN(400) {
		row := &fakeRow{id: fmt.Sprintf("%04d", i), at: start.Add(within(4 * time.Hour))}
		row.seen = row.at.Add(within(time.Second))
		switch r.IntN(20) {
		case 0: // a long transaction
			row.seen = row.at.Add(within(90 * time.Minute))
		case 1: // the service's clock is ahead
			row.at = row.at.Add(within(8 * time.Minute))
		}
		row.logged = row.seen.Add(within(2 * time.Second))
		if r.IntN(10) == 0 { // the stream lags
			row.logged = row.seen.Add(within(f.lag + 1))
		}
		row.settled = row.logged
		if row.settled.After(behind) && row.settled.Before(behindUntil) {
			row.settled = behindUntil
		}
		switch r.IntN(25) {
		case 0:
			row.logged = time.Time{}
		case 1:
			row.lockedFrom = row.seen.Add(within(2 * time.Hour))
			row.locked = row.lockedFrom.Add(within(2 * time.Hour))
			row.hidden = r.IntN(2) == 0
		case 2:
			row.refusedUntil = row.seen.Add(within(6 * time.Hour))
		}
		row.key = row.at.Format(keyFormat)
		f.rows = append(f.rows, row)
	}
	slices.SortFunc(f.rows, func(a, b *fakeRow) int {
		return strings.Compare(a.key+a.id, b.key+b.id)
	})
	return f
}

// In each random history each row that may go is gone in the end, soon after it may; no part of the log is dropped that is
// needed to delete a row; and the log goes when nothing needs it.
func TestPassesInVirtualTime(t *testing.T) {
	t.Parallel()
	const seeds = 60
	dropped := 0
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(rand.New(rand.NewPCG(uint64(seed), 7)))
			c := cleanup.New(cleanup.Config{
				Retention: cleanup.Retention{Outbox: fakeRetention, Ledger: fakeRetention}, Database: f,
				Rest: func(ctx context.Context, _ time.Duration) error { time.Sleep(time.Millisecond); return nil },
			})
			f.byDay = seed%2 == 1
			begin := time.Now()
			var r cleanup.Report
			for time.Since(begin) < 14*time.Hour {
				time.Sleep(2 * time.Minute)
				var err error
				if r, err = c.Pass(context.Background()); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				for _, row := range f.rows {
					// A row that may go for ten minutes, and that was not there late, is gone; others go by a pass over all rows.
					may := later(row.settled, row.at.Add(fakeRetention), row.refusedUntil, row.locked, f.jobUntil)
					if !row.gone && !row.logged.IsZero() && time.Since(may) > 20*time.Minute {
						t.Fatalf("seed %d: at %s %s is still there (%+v), report %+v", seed, time.Since(begin), row.id, row, r)
					}
				}
			}
			if f.faults != nil {
				t.Fatalf("seed %d: %s", seed, strings.Join(f.faults, "\n"))
			}
			dropped += f.dropped
			lost := int64(0)
			for _, row := range f.rows {
				if row.logged.IsZero() {
					lost++
				}
				if row.gone == row.logged.IsZero() {
					t.Errorf("seed %d: gone is %v of %+v", seed, row.gone, row)
				}
			}
			if kept := r.Outbox.Kept; r.FromStart && kept != (ledger.KeptRows{Unaccounted: lost}) {
				t.Errorf("seed %d: %d rows never came, the report says %+v", seed, lost, kept)
			}
			if time.Since(f.logFrom) > 2*fakeRetention {
				t.Errorf("seed %d: the log begins %s ago", seed, time.Since(f.logFrom))
			}
			if hours := 15; f.reports > 14*60*6 || f.reports < hours {
				t.Errorf("seed %d: %d reports were written in 14 hours", seed, f.reports)
			}
		})
		if t.Failed() {
			return
		}
	}
	if dropped < seeds/10 {
		t.Errorf("%d days were dropped in %d histories", dropped, seeds)
	}
}

func later(times ...time.Time) time.Time {
	return slices.MaxFunc(times, time.Time.Compare)
}
