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
)

// attempts bounds the rounds that are run to get those that count.
func (b *bench) attempts() int { return 3*b.rounds + 1 }

type throughputResult struct {
	Events       int     `json:"events"`
	Rows         int     `json:"rows_per_transaction"`
	PayloadBytes int     `json:"payload_bytes"`
	Rounds       []round `json:"rounds"`
}

// round is both, one right after the other on the same backlog.
type round struct {
	Yardstick yardstickRun `json:"pg_recvlogical"`
	Connector connectorRun `json:"outbox_cdc"`
	Ratio     float64      `json:"ratio"`
	Quiet     bool         `json:"quiet"`  // others used little
	Counts    bool         `json:"counts"` // for the medians
}

func (r round) others() float64 { return max(r.Yardstick.Others, r.Connector.Others) }

// throughput runs rounds on one backlog. All slots are made before it is written: a slot's walsender begins to read where
// the slot was made.
func (b *bench) throughput(ctx context.Context, rows int) (t throughputResult, err error) {
	ours, theirs := names("ours", b.attempts()), names("theirs", b.attempts())
	d, err := b.newDatabase(ctx, fmt.Sprintf("rows_%d", rows), ours...)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, d.close(context.WithoutCancel(ctx))) }()
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
	for i := range ours {
		if quiet == b.rounds {
			break
		}
		r, err := d.round(ctx, theirs[i], ours[i], bl)
		if err != nil {
			return t, fmt.Errorf("round %d: %w", i+1, err)
		}
		if r.Quiet = r.others() < b.others; r.Quiet {
			quiet++
		}
		t.Rounds = append(t.Rounds, r)
		note("  round %d: pg_recvlogical %.2f s, outbox-cdc %.2f s, ratio %.2f, others used %.1f %%",
			i+1, r.Yardstick.Seconds, r.Connector.Seconds, r.Ratio, 100*r.others())
	}
	t.choose(b.rounds)
	return t, nil
}

// choose makes the quietest rounds count: the quiet ones, and where these are too few the least noisy.
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

func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s_%d", prefix, i+1)
	}
	return all
}

func (d *database) round(ctx context.Context, theirs, ours string, bl backlog) (r round, err error) {
	if err := d.settle(ctx); err != nil {
		return r, err
	}
	if r.Yardstick, err = d.runYardstick(ctx, theirs, bl); err != nil {
		return r, err
	}
	if err := d.settle(ctx); err != nil {
		return r, err
	}
	if r.Connector, err = d.runConnector(ctx, ours, bl); err != nil {
		return r, err
	}
	r.Ratio = r.Yardstick.Seconds / r.Connector.Seconds
	return r, nil
}

// profiles runs the connector once for each kind of backlog with a CPU profile.
func (b *bench) profiles(ctx context.Context) error {
	if err := os.MkdirAll(b.profile, 0o755); err != nil {
		return err
	}
	if b.only == "" || b.only == throughput {
		for _, rows := range b.rows {
			if err := b.profileOne(ctx, rows); err != nil {
				return fmt.Errorf("profile at %d rows a transaction: %w", rows, err)
			}
		}
	}
	if b.only == "" || b.only == latency {
		path := filepath.Join(b.profile, "latency.pprof")
		l, err := b.latencyOnce(ctx, "--profile", path)
		if err != nil {
			return fmt.Errorf("profile of the latency: %w", err)
		}
		note("p50 %.2f ms, %v µs an event; go tool pprof -top %s", l.P50, l.CPU, path)
	}
	return nil
}

func (b *bench) profileOne(ctx context.Context, rows int) (err error) {
	d, err := b.newDatabase(ctx, fmt.Sprintf("rows_%d", rows), "ours")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(context.WithoutCancel(ctx))) }()
	bl, err := d.writeBacklog(ctx, b.events, rows)
	if err != nil {
		return err
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	path := filepath.Join(b.profile, fmt.Sprintf("rows-%d.pprof", rows))
	r, err := d.runConnector(ctx, "ours", bl, "--profile", path)
	if err != nil {
		return err
	}
	note("%.0f events/s, %v µs an event; go tool pprof -top %s", float64(b.events)/r.Seconds, r.CPU, path)
	return nil
}
