package cleanup_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// slowOutbox has two full chunks of rows that stay. Each takes a time.
type slowOutbox struct {
	took     time.Duration
	chunks   int
	zoneless bool
	// Until then another session cleans up.
	busyUntil time.Time
}

func (o *slowOutbox) DeleteChunk(context.Context, ledger.ChunkQuery) (ledger.Chunk, error) {
	if time.Now().Before(o.busyUntil) {
		return ledger.Chunk{}, ledger.ErrCleanupRuns
	}
	time.Sleep(o.took)
	o.chunks++
	return ledger.Chunk{Last: &ledger.OutboxKey{At: "2020-01-01", ID: "1"}, Full: o.chunks%2 == 1}, nil
}

func (o *slowOutbox) OldestRow(context.Context, ledger.ChunkQuery) (ledger.OutboxKey, bool, error) {
	return ledger.OutboxKey{At: "2020-01-01"}, true, nil
}

func (o *slowOutbox) Zoneless() bool { return o.zoneless }
func (o *slowOutbox) ByDay() bool    { return false }

func (o *slowOutbox) Days(context.Context, time.Duration) ([]ledger.OutboxDay, error) {
	return nil, nil
}

func (o *slowOutbox) DropDay(context.Context, ledger.OutboxDay, ledger.DayRows, time.Duration) (ledger.DayOutcome, string, error) {
	return ledger.DayRefused, "", nil
}

// slowDatabase has a slowOutbox and nothing else.
type slowDatabase struct{ *slowOutbox }

func (d slowDatabase) Lacking(context.Context) ([]string, error) { return nil, nil }

func (d slowDatabase) OpenOutbox(context.Context) (cleanup.Outbox, bool, error) {
	return d.slowOutbox, true, nil
}

func (d slowDatabase) DropLogPartition(context.Context, ledger.LogCutoff) ([]ledger.LogPartition, error) {
	return nil, nil
}

func (d slowDatabase) PlanLogDrop(context.Context, ledger.LogCutoff) ([]ledger.LogPartition, error) {
	return nil, nil
}

func (d slowDatabase) DeleteMetrics(context.Context, time.Duration, int) (int64, error) {
	return 0, nil
}

func (d slowDatabase) DeadRows(context.Context) ([]ledger.DeadRows, error) { return nil, nil }

func (d slowDatabase) WriteReport(context.Context, []byte) error { return nil }

// How long a pass has worked, without its rests, decides when all rows are looked at again. Partitions of the log are dropped only then.
func TestWhenAllRowsAreLookedAt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ retention, chunk, rest, want time.Duration }{
		"a short retention":       {0, 0, 0, 10 * time.Second},
		"rests do not count":      {time.Minute, 0, time.Minute, 10 * time.Second},
		"work counts":             {time.Minute, time.Second, 0, 40 * time.Second},
		"a tenth of an hour":      {time.Hour, 0, 0, 6 * time.Minute},
		"not more than each hour": {30 * 24 * time.Hour, 0, 0, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := cleanup.New(cleanup.Config{
					Retention: cleanup.Retention{Outbox: test.retention, Ledger: cleanup.Forever}, Database: slowDatabase{&slowOutbox{took: test.chunk}},
					Rest: func(context.Context, time.Duration) error { time.Sleep(test.rest); return nil },
				})
				if r, err := c.Pass(t.Context()); err != nil || !r.FromStart || !r.Complete {
					t.Fatalf("the first pass: %+v, %v", r, err)
				}
				time.Sleep(test.want - time.Nanosecond)
				if r, err := c.Pass(t.Context()); err != nil || r.FromStart {
					t.Errorf("before %s: looks at all rows: %v, %v", test.want, r.FromStart, err)
				}
				time.Sleep(time.Nanosecond)
				if r, err := c.Pass(t.Context()); err != nil || !r.FromStart {
					t.Errorf("after %s: looks at all rows: %v, %v", test.want, r.FromStart, err)
				}
			})
		})
	}
}

// dropping is a slowDatabase with some partitions of the log, each of which takes a time to drop.
type dropping struct {
	slowDatabase
	left int
	ages []time.Duration
}

func (d *dropping) DropLogPartition(_ context.Context, cutoff ledger.LogCutoff) ([]ledger.LogPartition, error) {
	d.ages = append(d.ages, cutoff.Age)
	time.Sleep(time.Second)
	if d.left--; d.left < 0 {
		return nil, nil
	}
	return []ledger.LogPartition{{Name: "p", Outcome: ledger.LogDropped}}, nil
}

// A row that becomes old enough while partitions of the log are dropped was not looked at, so its part of the log stays.
func TestLogIsDroppedByTheTimeOfTheLastLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dropping{slowDatabase: slowDatabase{&slowOutbox{took: 2 * time.Second}}, left: 2}
		c := cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: 0, Ledger: time.Minute}, Database: d})
		if r, err := c.Pass(t.Context()); err != nil || !r.Complete {
			t.Fatalf("%+v, %v", r, err)
		}
		want := []time.Duration{62 * time.Second, 63 * time.Second, 64 * time.Second} // the last chunk has taken two
		if !slices.Equal(d.ages, want) {
			t.Errorf("what is dropped is older than %s, want %s", d.ages, want)
		}
	})
}

// A time without a time zone counts as UTC. In the east it is hours ahead, and the row becomes old that much later than its log row.
func TestLogOfTimesWithoutZone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dropping{slowDatabase: slowDatabase{&slowOutbox{zoneless: true}}}
		c := cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: time.Hour, Ledger: 2 * time.Hour}, Database: d})
		if r, err := c.Pass(t.Context()); err != nil || !r.Complete {
			t.Fatalf("%+v, %v", r, err)
		}
		if want := []time.Duration{16 * time.Hour}; !slices.Equal(d.ages, want) {
			t.Errorf("what is dropped is older than %s, want %s", d.ages, want)
		}
	})
}

// A pass waits while another session cleans up: for longer than any step of that takes, but not for ever, and not after it was told to end.
func TestPassBesideAnother(t *testing.T) {
	t.Parallel()
	stopped := errors.New("stopped")
	for name, test := range map[string]struct {
		busy, stop time.Duration // stop: when Rest ends the pass
		want       error
	}{
		"for a minute": {time.Minute, time.Hour, nil},
		"for ever":     {time.Hour, time.Hour, ledger.ErrCleanupRuns},
		"told to end":  {time.Minute, 10 * time.Second, stopped},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				d := slowDatabase{&slowOutbox{busyUntil: began.Add(test.busy)}}
				c := cleanup.New(cleanup.Config{
					Retention: cleanup.Retention{Outbox: time.Hour, Ledger: cleanup.Forever}, Database: d,
					Rest: func(context.Context, time.Duration) error {
						if time.Since(began) >= test.stop {
							return stopped
						}
						return nil
					},
				})
				r, err := c.Pass(t.Context())
				if !errors.Is(err, test.want) || r.Complete != (test.want == nil) || time.Since(began) > 90*time.Second {
					t.Errorf("after %s: %v, %+v", time.Since(began), err, r)
				}
			})
		})
	}
}

// unknownRows is an outbox with rows that the ledger does not know. The second look decides that they never come.
type unknownRows struct {
	slowDatabase
	reports []cleanup.Report
}

func (d *unknownRows) OpenOutbox(context.Context) (cleanup.Outbox, bool, error) { return d, true, nil }

func (d *unknownRows) DeleteChunk(context.Context, ledger.ChunkQuery) (ledger.Chunk, error) {
	d.chunks++
	key := &ledger.OutboxKey{At: "2020-01-01", ID: "1"}
	if d.chunks == 1 {
		return ledger.Chunk{Last: key, Waiting: key, Kept: ledger.KeptRows{Unread: 7}}, nil
	}
	return ledger.Chunk{Last: key, Kept: ledger.KeptRows{Unaccounted: 7}, Unaccounted: "1"}, nil
}

func (d *unknownRows) WriteReport(_ context.Context, report []byte) error {
	var r cleanup.Report
	d.reports = append(d.reports, r)
	return json.Unmarshal(report, &d.reports[len(d.reports)-1])
}

// The report in the database says at once that rows will never come, whatever pass has found that out, and says it once.
func TestReportOfRowsThatNeverCome(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]time.Duration{"a short pass": time.Second, "a pass over all rows": time.Hour / 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d := &unknownRows{slowDatabase: slowDatabase{&slowOutbox{}}}
				c := cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: time.Hour, Ledger: time.Hour}, Database: d})
				for range 3 {
					if _, err := c.Pass(t.Context()); err != nil {
						t.Fatal(err)
					}
					time.Sleep(between)
				}
				if len(d.reports) != 2 {
					t.Fatalf("%d reports, want 2: %+v", len(d.reports), d.reports)
				}
				if last := d.reports[1].Outbox; last.Kept != (ledger.KeptRows{Unaccounted: 7}) || last.Unaccounted != "1" {
					t.Errorf("the last one says %+v", last)
				}
			})
		})
	}
}
