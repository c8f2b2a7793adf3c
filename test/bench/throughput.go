//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// attempts is how many rounds are run at most until enough of them are quiet. With several sinks there is one spare round
// only, because a round takes half a minute.
func (b *bench) attempts() int {
	if len(b.sinks) > 1 {
		return b.rounds + 1
	}
	return 3*b.rounds + 1
}

type throughputResult struct {
	Events       int     `json:"events"`
	Rows         int     `json:"rows_per_transaction"`
	PayloadBytes int     `json:"payload_bytes"`
	Rounds       []round `json:"rounds"`
}

// round is one run of pg_recvlogical and one of outbox-cdc for each sink, one right after the other on the same backlog.
type round struct {
	Yardstick  yardstickRun   `json:"pg_recvlogical"`
	Connectors []connectorRun `json:"outbox_cdc"` // in the order of the sinks
	Quiet      bool           `json:"quiet"`      // others used little
	Counts     bool           `json:"counts"`     // for the medians
}

func (r round) others() float64 {
	most := r.Yardstick.Others
	for _, c := range r.Connectors {
		most = max(most, c.Others)
	}
	return most
}

// throughput runs rounds on one backlog. All slots are made before the backlog is written, because a walsender begins to
// read where its slot was made.
func (b *bench) throughput(ctx context.Context, rows int) (t throughputResult, err error) {
	theirs := names("theirs", b.attempts())
	var ours []string
	for _, sink := range b.sinks {
		ours = append(ours, names(sink, b.attempts())...)
	}
	d, err := b.newDatabase(ctx, fmt.Sprintf("rows_%d", rows), ours...)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	for _, slot := range theirs {
		if _, err := d.conn.Exec(ctx, "select pg_create_logical_replication_slot($1, 'pgoutput')", slot); err != nil {
			return t, err
		}
	}
	bl, err := d.writeBacklog(ctx, b.events, rows)
	if err != nil {
		return t, err
	}
	t = throughputResult{Events: b.events, Rows: rows, PayloadBytes: bl.payloadBytes}
	quiet := 0
	for i := range b.attempts() {
		if quiet == b.rounds {
			break
		}
		r, err := d.round(ctx, i+1, bl)
		if err != nil {
			return t, fmt.Errorf("round %d: %w", i+1, err)
		}
		if r.Quiet = r.others() < b.others; r.Quiet {
			quiet++
		}
		t.Rounds = append(t.Rounds, r)
		process.Note("  round %d: pg_recvlogical %.2f s, others used %.1f %%", i+1, r.Yardstick.Seconds, 100*r.others())
		for _, c := range r.Connectors {
			process.Note("    %s: outbox-cdc %.2f s, ratio %.2f", c.Sink, c.Seconds, c.Ratio)
		}
	}
	t.choose(b.rounds)
	return t, nil
}

// choose picks the rounds that count: those in which others used least of the CPU.
func (t *throughputResult) choose(rounds int) {
	order := make([]int, len(t.Rounds))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(t.Rounds[i].others(), t.Rounds[j].others()) })
	for _, i := range order[:min(rounds, len(order))] {
		t.Rounds[i].Counts = true
	}
}

// names returns the names of the slots of one kind, one for each round.
func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = name(prefix, i+1)
	}
	return all
}

func name(prefix string, round int) string { return fmt.Sprintf("%s_%d", prefix, round) }

func (d *database) round(ctx context.Context, n int, bl backlog) (r round, err error) {
	if err := d.settle(ctx); err != nil {
		return r, err
	}
	if r.Yardstick, err = d.runYardstick(ctx, name("theirs", n), bl); err != nil {
		return r, err
	}
	for _, sink := range d.sinks {
		if err := d.settle(ctx); err != nil {
			return r, err
		}
		c, err := d.runConnector(ctx, sink, name(sink, n), bl)
		if err != nil {
			return r, fmt.Errorf("%s: %w", sink, err)
		}
		c.Ratio = r.Yardstick.Seconds / c.Seconds
		r.Connectors = append(r.Connectors, c)
	}
	return r, nil
}

// profiles runs the connector once for each kind of backlog with a CPU profile.
func (b *bench) profiles(ctx context.Context) error {
	if err := os.MkdirAll(b.profile, 0o755); err != nil {
		return err
	}
	for _, sink := range b.sinks {
		if b.only == "" || b.only == throughput {
			for _, rows := range b.rows {
				if err := b.profileOne(ctx, sink, rows); err != nil {
					return fmt.Errorf("profile of %s at %d rows a transaction: %w", sink, rows, err)
				}
			}
		}
		if b.only == "" || b.only == latency {
			path := filepath.Join(b.profile, sink+"-latency.pprof")
			l, err := b.latencyOnce(ctx, sink, "--profile", path)
			if err != nil {
				return fmt.Errorf("profile of the latency of %s: %w", sink, err)
			}
			process.Note("%s: p50 %.2f ms, %.1f µs an event; go tool pprof -top %s", sink, l.P50, l.CPU, path)
		}
	}
	return nil
}

func (b *bench) profileOne(ctx context.Context, sink string, rows int) (err error) {
	d, err := b.newDatabase(ctx, fmt.Sprintf("rows_%d", rows), "ours")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	bl, err := d.writeBacklog(ctx, b.events, rows)
	if err != nil {
		return err
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	path := filepath.Join(b.profile, fmt.Sprintf("%s-rows-%d.pprof", sink, rows))
	r, err := d.runConnector(ctx, sink, "ours", bl, "--profile", path)
	if err != nil {
		return err
	}
	process.Note("%s: %.0f events/s, %.1f µs an event; go tool pprof -top %s", sink, float64(b.events)/r.Seconds, r.CPU, path)
	return nil
}
