//go:build linux

package observe

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// rightWithin is how long after a change the figures are right.
	rightWithin = 3 * time.Second
	// readEvery is how often figures and tables are read.
	readEvery = 200 * time.Millisecond
)

// reading is a value at a moment.
type reading struct {
	at    time.Time
	value float64
}

// figures reads what a connector shows of its tables, and the tables themselves, until it is ended.
type figures struct {
	began           time.Time
	cancel          context.CancelFunc
	done            chan struct{}
	shown, inTables map[string][]reading // by metric and sink
}

const countRows = `select p.processor_name, count(k.*) filter (where k.status = 'parked'), count(k.*) filter (where k.status = 'dead')
	from outbox_processors p left join outbox_parked k on k.processor_id = p.id group by 1`

// watchFigures begins to read.
func watchFigures(w *world, c *connector) *figures {
	w.t.Helper()
	conn := w.connect()
	ctx, cancel := context.WithCancel(context.Background())
	f := &figures{began: time.Now(), cancel: cancel, done: make(chan struct{}), shown: map[string][]reading{}, inTables: map[string][]reading{}}
	w.t.Cleanup(func() { f.end() })
	go func() {
		defer close(f.done)
		tick := time.NewTicker(readEvery)
		defer tick.Stop()
		for {
			f.read(ctx, conn, c)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return f
}

func (f *figures) end() {
	f.cancel()
	<-f.done
}

func (f *figures) read(ctx context.Context, conn *pgx.Conn, c *connector) {
	rows, err := conn.Query(ctx, countRows)
	if err != nil {
		return
	}
	now := time.Now()
	var sink string
	var parked, dead float64
	_, err = pgx.ForEachRow(rows, []any{&sink, &parked, &dead}, func() error {
		f.inTables["parked_events of "+sink] = append(f.inTables["parked_events of "+sink], reading{now, parked})
		f.inTables["dead_letters of "+sink] = append(f.inTables["dead_letters of "+sink], reading{now, dead})
		return nil
	})
	if err != nil {
		return
	}
	values, err := c.scrape()
	if err != nil {
		return
	}
	now = time.Now()
	for name, value := range values {
		for _, metric := range []string{"parked_events", "dead_letters"} {
			if rest, ok := strings.CutPrefix(name, prefix+metric+`{sink="`); ok {
				what := metric + " of " + strings.TrimSuffix(rest, `"}`)
				f.shown[what] = append(f.shown[what], reading{now, value})
			}
		}
	}
}

// check ends the reading, and wants each figure to have been, at any moment, what its table has held within the time before.
func (f *figures) check(t *testing.T) {
	t.Helper()
	f.end()
	compared := 0
	for _, what := range slices.Sorted(maps.Keys(f.shown)) {
		if len(f.inTables[what]) == 0 {
			t.Errorf("%s is shown, and there is no such sink", what)
		}
		worst, wrong, before := "", 0, false
		for _, s := range f.shown[what] {
			low, high, known := math.Inf(1), math.Inf(-1), 0
			for _, r := range f.inTables[what] {
				if d := s.at.Sub(r.at); d <= rightWithin && d >= -3*readEvery {
					low, high, known = min(low, r.value), max(high, r.value), known+1
				}
			}
			if known < 5 || s.at.Sub(f.began) < rightWithin {
				continue
			}
			compared++
			is := s.value < low || s.value > high
			was := before
			if before = is; is && was { // once, it may have been so between two looks at the table
				wrong++
				worst = fmt.Sprintf("%v after %s, when the table had %v to %v", s.value, s.at.Sub(f.began).Round(readEvery), low, high)
			}
		}
		if wrong > 0 {
			t.Errorf("%s was wrong %d times of %d for more than %s, the last time %s", what, wrong, len(f.shown[what]), rightWithin, worst)
		}
	}
	if compared < 20 {
		t.Errorf("only %d figures were compared with the tables", compared)
	}
	t.Logf("%d figures of parked and dead were compared with the tables", compared)
}

// checkLag holds the ledger, so that nothing is settled, and wants the lag to grow with the clock.
func checkLag(t *testing.T, w *world, c *connector, lasts time.Duration) {
	t.Helper()
	const slack = 1.5 // seconds: the last transaction that was settled is a little older than the lock
	ctx, cancel := context.WithCancel(context.Background())
	began := time.Now()
	done := make(chan string)
	go func() {
		problem, read := "", 0
		tick := time.NewTicker(readEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			values, err := c.scrape()
			held := time.Since(began).Seconds()
			if lag, known := values[prefix+"slot_lag_seconds"]; err == nil && known && held > 1 {
				if read++; math.Abs(lag-held) > slack {
					problem = fmt.Sprintf("the lag is %.1f s after the ledger was held for %.1f s", lag, held)
				}
			}
		}
		if read < 3 {
			problem = fmt.Sprintf("the lag was read only %d times", read)
		}
		done <- problem
	}()
	release := w.hold()
	passes(t, lasts)
	cancel()
	if problem := <-done; problem != "" {
		t.Error(problem)
	}
	release()
}

// counted are the names of the series that may only grow: counters, and the counts of histograms.
func counted() (all []string) {
	for _, group := range monitoring.Catalogue() {
		for _, f := range group.Families {
			switch f.Type {
			case monitoring.Counter:
				all = append(all, prefix+f.Name)
			case monitoring.Histogram:
				all = append(all, prefix+f.Name+"_count", prefix+f.Name+"_bucket", prefix+f.Name+"_sum")
			case monitoring.Gauge:
			}
		}
	}
	return all
}

// checkNothingIsLate wants all counters to have been there at the first scrape: a rate over a counter that appears with its first event
// misses that event.
func checkNothingIsLate(t *testing.T, first, last map[string]float64) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(last)) {
		metric, _, _ := strings.Cut(name, "{")
		if strings.HasPrefix(metric, prefix+"slot_") { // the server counts it, and is asked first
			continue
		}
		if _, was := first[name]; !was && slices.Contains(counted(), metric) {
			t.Errorf("%s was not there at the first scrape", name)
		}
	}
}

// checkNothingGoesBack wants no counter to have been reset in a process that went on.
func checkNothingGoesBack(t *testing.T, p *prometheus, c *connector, lasts time.Duration) {
	t.Helper()
	for _, name := range counted() {
		for _, s := range p.series(fmt.Sprintf(`resets(%s{instance=%q}[%ds]) > 0`, name, c.addr, int(lasts.Seconds()))) {
			t.Errorf("%s%v has gone back %v times", name, s.Labels, s.Points[0].Value)
		}
	}
}

// needsLong begins the names of metrics that have no series before trouble has lasted for half a minute, which it does only in the full form.
const needsLong = prefix + "forecast_"

// needsFailover is a metric of slots of which standbys have a copy, which needs PostgreSQL 17. The tests of failover ask for it.
const needsFailover = prefix + "slot_sync_standbys"

// checkEverythingShows wants each row of the table of metrics to have had a series.
func checkEverythingShows(t *testing.T, p *prometheus, lasts time.Duration) {
	t.Helper()
	shown := map[string]bool{}
	for _, s := range p.series(fmt.Sprintf(`count by (__name__) (last_over_time({job=%q}[%ds]))`, job, int(lasts.Seconds()))) {
		shown[s.Labels["__name__"]] = true
	}
	for _, group := range monitoring.Catalogue() {
		for _, f := range group.Families {
			name := prefix + f.Name
			if !shown[name] && !shown[name+"_count"] && name != needsFailover && (*full || !strings.HasPrefix(name, needsLong)) {
				t.Errorf("%s is in the table of metrics, and has had no series", name)
			}
		}
	}
}

// checkCounts wants each sink's counter of deliveries to become what its receiver has accepted, and that what was written, on the page and in
// Prometheus.
func checkCounts(t *testing.T, w *world, c *connector, p *prometheus, written int64) {
	t.Helper()
	for sink, receivers := range map[string][]string{"orders": {"orders"}, "partner": {"partner"}, "either": {"first", "second"}} {
		series := fmt.Sprintf(`%sevents_processed_total{sink=%q,status="delivered"}`, prefix, sink)
		eventually(t, 15*time.Second, series, func() error {
			accepted := 0.0
			for _, name := range receivers {
				accepted += w.receivers[name].events()
			}
			values, err := c.scrape()
			if err != nil {
				return err
			}
			all := p.series(fmt.Sprintf("%s and on (instance) %sleader == 1", series, prefix))
			if got := values[series]; got != accepted || accepted != float64(written) || len(all) != 1 || all[0].Points[0].Value != got {
				return fmt.Errorf("%d were written, the receiver has accepted %v, the page counts %v and Prometheus has %v", written, accepted, got, all)
			}
			return nil
		})
	}
}
