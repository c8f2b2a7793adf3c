//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// backlogResult compares the delivery of rows that were in the outbox before there was a slot with that of the same rows from the stream.
type backlogResult struct {
	Events     int          `json:"events"`
	Stream     connectorRun `json:"stream"`
	Seconds    float64      `json:"seconds"` // until the job is done and nothing is parked
	PeakMemory int64        `json:"peak_memory_bytes"`
	Counts     counts       `json:"counts"`
}

func (r *backlogResult) ratio() float64 { return r.Stream.Seconds / r.Seconds }

func (r *backlogResult) write(w io.Writer) {
	rate := func(seconds float64) float64 { return float64(r.Events) / seconds }
	fmt.Fprintf(w, "\nBacklog of %d events\n", r.Events)
	fmt.Fprintf(w, "stream   %8.0f events/s, peak memory %5.1f MiB\n", rate(r.Stream.Seconds), mebibytes(float64(r.Stream.PeakMemory)))
	fmt.Fprintf(w, "backlog  %8.0f events/s, peak memory %5.1f MiB, %.2f of the stream's rate\n", rate(r.Seconds), mebibytes(float64(r.PeakMemory)), r.ratio())
}

// backlog delivers the same events twice: from the stream, and by a job of a slot that was made behind them.
func (b *bench) backlog(ctx context.Context) (r backlogResult, err error) {
	d, err := b.newDatabase(ctx, "backlog", "stream")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	bl, err := d.writeBacklog(ctx, b.events, 100)
	if err != nil {
		return r, err
	}
	r.Events = b.events
	if err := d.settle(ctx); err != nil {
		return r, err
	}
	if r.Stream, err = d.runConnector(ctx, b.sinks[0], "stream", bl); err != nil {
		return r, fmt.Errorf("from the stream: %w", err)
	}
	if err := d.settle(ctx); err != nil {
		return r, err
	}
	return r, d.runJob(ctx, &r)
}

// runJob makes a slot behind the events, and measures until its job is done and nothing is parked any more.
func (d *database) runJob(ctx context.Context, r *backlogResult) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout(r.Events), errors.New("the job takes too long"))
	defer cancel()
	to, err := d.start(ctx, d.sinks[0], r.Events)
	if err != nil {
		return err
	}
	defer to.Kill()
	if err := d.configure("job", to.sink()); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, d.cli, "init", "--backlog", "all", "--config", d.config("job")).CombinedOutput(); err != nil {
		return fmt.Errorf("init: %w\n%s", err, out)
	}
	c, err := process.Start(filepath.Join(d.dir, "connector.log"), d.connector, "run", "--config", d.config("job"))
	if err != nil {
		return err
	}
	defer c.Kill()
	if err := d.awaitJob(ctx, c); err != nil {
		return err
	}
	r.Seconds = time.Since(c.Started).Seconds()
	if r.PeakMemory, err = process.Memory(c.PID(), "VmHWM"); err != nil {
		return err
	}
	if err := c.Stop(ctx); err != nil {
		return err
	}
	r.Counts, err = d.check(ctx, to)
	return err
}

func (d *database) awaitJob(ctx context.Context, c *process.Child) error {
	const ask = `select not exists (select from outbox_backlog where status <> 'done') and not exists (select from outbox_parked)`
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for done := false; ; {
		if err := d.conn.QueryRow(ctx, ask).Scan(&done); err != nil || done {
			return err
		}
		select {
		case <-tick.C:
		case <-c.Done:
			return fmt.Errorf("the connector has ended: %w\n%s", c.Err, c.Log())
		case <-ctx.Done():
			return fmt.Errorf("%w\n%s", context.Cause(ctx), c.Log())
		}
	}
}
