//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// memoryResult compares the connector's peak memory.
type memoryResult struct {
	Normal      []memoryRun `json:"normal"`      // the backlog of the throughput part
	Unread      memoryRun   `json:"unread"`      // ten times as much WAL
	Transaction memoryRun   `json:"transaction"` // one transaction of five times as many events
}

type memoryRun struct {
	Events int          `json:"events"`
	Rows   int          `json:"rows_per_transaction"`
	Run    connectorRun `json:"run"`
}

// normal returns the median of the peaks of the normal runs.
func (m memoryResult) normal() float64 {
	var peaks []float64
	for _, r := range m.Normal {
		peaks = append(peaks, float64(r.Run.PeakMemory))
	}
	return median(peaks)
}

func (b *bench) memory(ctx context.Context) (m memoryResult, err error) {
	const rows, runs = 100, 3
	if m.Normal, err = b.peaks(ctx, "normal", b.events, rows, runs); err != nil {
		return m, fmt.Errorf("normal run: %w", err)
	}
	unread, err := b.peaks(ctx, "unread", 10*b.events, rows, 1)
	if err != nil {
		return m, fmt.Errorf("unread WAL: %w", err)
	}
	transaction, err := b.peaks(ctx, "transaction", 5*b.events, 5*b.events, 1)
	if err != nil {
		return m, fmt.Errorf("one transaction: %w", err)
	}
	m.Unread, m.Transaction = unread[0], transaction[0]
	return m, nil
}

// peaks runs the connector several times on one backlog.
func (b *bench) peaks(ctx context.Context, name string, events, rows, runs int) (_ []memoryRun, err error) {
	connectors := names("ours", runs)
	d, err := b.newDatabase(ctx, name, connectors...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	bl, err := d.writeBacklog(ctx, events, rows)
	if err != nil {
		return nil, err
	}
	var all []memoryRun
	for _, connector := range connectors {
		if _, err := d.conn.Exec(ctx, "checkpoint"); err != nil {
			return nil, err
		}
		r, err := d.runConnector(ctx, b.sinks[0], connector, bl)
		if err != nil {
			return nil, err
		}
		process.Note("  %.1f MiB, %.2f s", mebibytes(float64(r.PeakMemory)), r.Seconds)
		all = append(all, memoryRun{events, rows, r})
	}
	return all, nil
}
