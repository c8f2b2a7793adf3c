//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// comparison is one part of the benchmark, measured of two revisions in turn.
type comparison struct {
	Part  string `json:"part"`
	Sink  string `json:"sink"`
	Title string `json:"title"`
	// Figures are what was measured; less is better in each.
	Figures []figure `json:"figures"`
	Pairs   []pair   `json:"pairs"`
	Counts  counts   `json:"counts"` // of all runs, the warm-up included
}

// pair is one run of each revision, one right after the other. Pairs begin with the old and the new revision in turn.
type pair struct {
	First     string  `json:"first"` // old or new
	Yardstick float64 `json:"pg_recvlogical_seconds,omitempty"`
	Others    float64 `json:"others"` // the share of the CPU that others used, in the noisiest of its runs
	Quiet     bool    `json:"quiet"`
}

// sample is what one run gives: a value for each figure of its comparison.
type sample struct {
	values []float64
	others float64
	counts counts
}

// contest is how the runs of a comparison are made. Each function takes the number of the pair; 0 is the warm-up.
type contest struct {
	old, now func(ctx context.Context, n int) (sample, error)
	// yardstick measures pg_recvlogical, and returns its seconds and what others used; nil where there is none.
	yardstick func(ctx context.Context, n int) (seconds, others float64, err error)
}

// run measures the pairs, after one run of each that does not count: the first finds caches empty.
func (c *comparison) run(ctx context.Context, pairs int, limit float64, with contest) error {
	process.Note("%s", c.Title)
	for n := range pairs + 1 {
		if err := c.pair(ctx, n, limit, with); err != nil {
			return fmt.Errorf("pair %d: %w", n, err)
		}
		if n == 0 {
			process.Note("  warm-up done")
			continue
		}
		p, f := c.Pairs[n-1], c.Figures[0]
		process.Note("  pair %d of %d: %s %.3g %s old, %.3g %s new, ratio %s; others used %.1f %%", n, pairs,
			f.Name, f.Old[n-1], f.Unit, f.New[n-1], f.Unit, ratioOf(f.Old[n-1], f.New[n-1]), 100*p.Others)
	}
	for i := range c.Figures {
		c.Figures[i].summarise()
	}
	return nil
}

func (c *comparison) pair(ctx context.Context, n int, limit float64, with contest) (err error) {
	p := pair{First: "old"}
	if with.yardstick != nil {
		if p.Yardstick, p.Others, err = with.yardstick(ctx, n); err != nil {
			return fmt.Errorf("pg_recvlogical: %w", err)
		}
	}
	var old, now sample
	take := func(name string, into *sample, measure func(context.Context, int) (sample, error)) {
		if err == nil {
			if *into, err = measure(ctx, n); err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if n%2 == 0 {
		p.First = "new"
		take("new", &now, with.now)
		take("old", &old, with.old)
	} else {
		take("old", &old, with.old)
		take("new", &now, with.now)
	}
	if err != nil {
		return err
	}
	c.Counts = c.Counts.add(old.counts).add(now.counts)
	if n == 0 {
		return nil
	}
	p.Others = max(p.Others, old.others, now.others)
	p.Quiet = p.Others < limit
	c.Pairs = append(c.Pairs, p)
	for i := range c.Figures {
		c.Figures[i].Old = append(c.Figures[i].Old, old.values[i])
		c.Figures[i].New = append(c.Figures[i].New, now.values[i])
	}
	return nil
}

// rival is the benchmark with the connector of one of the revisions.
type rival struct {
	revision
	*bench
}

func (b *bench) rival(r revision) rival {
	with := *b
	with.cli, with.connector = r.binary, r.binary
	return rival{revision: r, bench: &with}
}

// compare measures the connectors of two revisions.
func (b *bench) compare(ctx context.Context, old, now revision) (result compareResult, err error) {
	shared, err := sameTables(old, now)
	if err != nil {
		return result, err
	}
	if !shared {
		process.Note("the revisions make different tables: each gets a database of its own, with as many events of the same size")
	}
	result = compareResult{Machine: describeMachine(), Versions: b.versions(ctx), Command: os.Args, Old: old, New: now, SharedBacklog: shared}
	rivals := [2]rival{b.rival(old), b.rival(now)}
	var all []comparison
	switch b.only {
	case latency:
		all, err = b.compareLatency(ctx, rivals)
	case memory:
		for _, part := range []struct{ factor, rows int }{{1, 100}, {10, 100}, {5, 0}} {
			events, rows := part.factor*b.events, part.rows
			if rows == 0 {
				rows = events // one transaction
			}
			var some []comparison
			if some, err = b.compareBacklog(ctx, rivals, backlogPlan{memory, events, rows, shared}); err != nil {
				break
			}
			all = append(all, some...)
		}
	default:
		for _, rows := range b.rows {
			var some []comparison
			if some, err = b.compareBacklog(ctx, rivals, backlogPlan{throughput, b.events, rows, shared}); err != nil {
				break
			}
			all = append(all, some...)
		}
	}
	result.Comparisons = all
	return result, err
}

// backlogPlan is what a comparison on a backlog writes first.
type backlogPlan struct {
	part         string
	events, rows int
	shared       bool // both revisions read the same backlog
}

// compareBacklog lets both revisions deliver a backlog, to each sink in turn. As in the throughput part, all slots are
// made before the backlog is written.
func (b *bench) compareBacklog(ctx context.Context, rivals [2]rival, plan backlogPlan) (all []comparison, err error) {
	var databases [2]*database
	var backlogs [2]backlog
	for i, r := range rivals {
		if i == 1 && plan.shared {
			databases[1], backlogs[1] = databases[0].as(r.bench), backlogs[0]
			break
		}
		d, err := r.newDatabase(ctx, fmt.Sprintf("%s_%d_%d_%s", plan.part, plan.events, plan.rows, r.Name))
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, d.close(ctx)) }()
		databases[i] = d
		mine := []rival{r}
		if plan.shared {
			mine = rivals[:]
		}
		if err := b.makeSlots(ctx, d, mine); err != nil {
			return nil, err
		}
		if i == 0 { // pg_recvlogical reads the old revision's
			for n := range b.pairs + 1 {
				if _, err := d.conn.Exec(ctx, "select pg_create_logical_replication_slot($1, 'pgoutput')", name("theirs", n)); err != nil {
					return nil, err
				}
			}
		}
		if backlogs[i], err = d.writeBacklog(ctx, plan.events, plan.rows); err != nil {
			return nil, err
		}
	}
	for _, sink := range b.sinks {
		measure := func(i int) func(context.Context, int) (sample, error) {
			return func(ctx context.Context, n int) (sample, error) {
				d := databases[i]
				if err := d.settle(ctx); err != nil {
					return sample{}, err
				}
				run, err := d.runConnector(ctx, sink, name(rivals[i].Name+"_"+sink, n), backlogs[i])
				return run.sample(), err
			}
		}
		with := contest{old: measure(0), now: measure(1)}
		if sink == b.sinks[0] && plan.part == throughput {
			with.yardstick = func(ctx context.Context, n int) (float64, float64, error) {
				if err := databases[0].settle(ctx); err != nil {
					return 0, 0, err
				}
				y, err := databases[0].runYardstick(ctx, name("theirs", n), backlogs[0])
				return y.Seconds, y.Others, err
			}
		}
		c := comparison{
			Part: plan.part, Sink: sink, Figures: backlogFigures(sink),
			Title: fmt.Sprintf("%s, %s: %d events of %d bytes of payload, %d a transaction", plan.part, sink, plan.events, backlogs[0].payloadBytes, plan.rows),
		}
		if err := c.run(ctx, b.pairs, b.others, with); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Title, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// makeSlots makes what all pairs need. Each revision makes its own, and the tables if they are not there.
func (b *bench) makeSlots(ctx context.Context, d *database, rivals []rival) error {
	for n := range b.pairs + 1 {
		for _, r := range rivals {
			for _, sink := range b.sinks {
				if err := d.as(r.bench).initialise(ctx, name(r.Name+"_"+sink, n)); err != nil {
					return fmt.Errorf("%s: %w", r.Name, err)
				}
			}
		}
	}
	return nil
}

// as is the same database for another connector.
func (d *database) as(b *bench) *database {
	with := *d
	with.bench = b
	return &with
}

func backlogFigures(sink string) []figure {
	return append([]figure{{Name: "time", Unit: "s"}}, costFigures(sink)...)
}

func costFigures(sink string) []figure {
	return []figure{
		{Name: "CPU of outbox-cdc", Unit: "µs an event"},
		{Name: "CPU of walsender", Unit: "µs an event"},
		{Name: "CPU of recorder's backend", Unit: "µs an event"},
		{Name: "CPU of " + destinationOf(sink), Unit: "µs an event"},
		{Name: "peak memory", Unit: "MiB"},
	}
}

func costs(c cpu, peak int64) []float64 {
	return []float64{c.Reader, c.Walsender, c.Recorder, c.Destination, mebibytes(float64(peak))}
}

func (r connectorRun) sample() sample {
	return sample{values: append([]float64{r.Seconds}, costs(r.CPU, r.PeakMemory)...), others: r.Others, counts: r.Counts}
}

// compareLatency measures the latency of both revisions, each time in a new database.
func (b *bench) compareLatency(ctx context.Context, rivals [2]rival) (all []comparison, err error) {
	for _, sink := range b.sinks {
		measure := func(r rival) func(context.Context, int) (sample, error) {
			return func(ctx context.Context, _ int) (sample, error) {
				l, err := r.latencyOnce(ctx, sink)
				return l.sample(), err
			}
		}
		figures := []figure{
			{Name: "p50, commit to acceptance", Unit: "ms"},
			{Name: "p99, commit to acceptance", Unit: "ms"},
			{Name: "p50, a Deliver", Unit: "ms"},
			{Name: "p99, a Deliver", Unit: "ms"},
			{Name: "p50, an insert with its commit", Unit: "ms"},
			{Name: "p99, an insert with its commit", Unit: "ms"},
		}
		c := comparison{
			Part: latency, Sink: sink, Figures: append(figures, costFigures(sink)...),
			Title: fmt.Sprintf("latency, %s: %d one-row transactions a second for %d s", sink, rate, loadSeconds),
		}
		if err := c.run(ctx, b.pairs, b.others, contest{old: measure(rivals[0]), now: measure(rivals[1])}); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Title, err)
		}
		all = append(all, c)
	}
	return all, nil
}

func (l latencyResult) sample() sample {
	values := []float64{l.P50, l.P99, l.DeliverP50, l.DeliverP99, l.InsertP50, l.InsertP99}
	return sample{values: append(values, costs(l.CPU, l.PeakMemory)...), others: l.Others, counts: l.Counts}
}

// runComparison builds both revisions, compares them and writes what came out.
func (b *bench) runComparison(ctx context.Context, old, now revision) error {
	result, err := b.compare(ctx, old, now)
	if err != nil {
		return err
	}
	return errors.Join(result.write(os.Stdout, b.options), result.check())
}
