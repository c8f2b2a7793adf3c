//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// yardstickRun is a run of pg_recvlogical, which reads a backlog into /dev/null.
type yardstickRun struct {
	Seconds float64 `json:"seconds"`
	CPU     cpu     `json:"cpu_us_per_event"`
	Others  float64 `json:"others"`
}

// connectorRun is a run of outbox-cdc, which delivers and records a backlog.
type connectorRun struct {
	Sink       string  `json:"sink"`
	Seconds    float64 `json:"seconds"`
	Ratio      float64 `json:"ratio"` // of pg_recvlogical's time in the same round to this one
	CPU        cpu     `json:"cpu_us_per_event"`
	PeakMemory int64   `json:"peak_memory_bytes"`
	Others     float64 `json:"others"`
	Counts     counts  `json:"counts"`
}

// cpu is the CPU time that an event costs each process, in microseconds.
type cpu struct {
	Reader      float64 `json:"reader"` // the connector, or pg_recvlogical
	Walsender   float64 `json:"walsender"`
	Recorder    float64 `json:"recorder,omitempty"` // its backend
	Destination float64 `json:"destination,omitempty"`
}

func perEvent(d time.Duration, events int) float64 {
	return float64(d) / float64(time.Microsecond) / float64(events)
}

func (b *bench) yardstick() string { return filepath.Join(b.postgres.BinDir(), "pg_recvlogical") }

// runYardstick measures the whole time of pg_recvlogical, its start included.
func (d *database) runYardstick(ctx context.Context, slot string, bl backlog) (r yardstickRun, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout(bl.events), errors.New("pg_recvlogical takes too long"))
	defer cancel()
	before, err := takeUsage()
	if err != nil {
		return r, err
	}
	c, err := process.Start(filepath.Join(d.dir, "pg_recvlogical.log"), d.yardstick(), "-d", d.postgres.DSN(d.name), "-S", slot,
		"--start", "-f", "/dev/null", "--endpos", bl.end.String(), "--no-loop",
		// The marker behind the backlog is a message. If messages were not sent, pg_recvlogical would not notice the end of the
		// backlog, and would read on through the ledger's WAL of earlier runs.
		"-o", "proto_version=1", "-o", "publication_names="+publication, "-o", "messages=true")
	if err != nil {
		return r, err
	}
	defer c.Kill()
	walsender, err := d.watchWalsender(ctx, slot, c.Done)
	if err != nil {
		return r, err
	}
	if err := c.Wait(ctx); err != nil {
		return r, err
	}
	after, err := takeUsage()
	state := c.Cmd.ProcessState
	r.Seconds = c.Ended.Sub(c.Started).Seconds()
	r.CPU = cpu{Reader: perEvent(state.UserTime()+state.SystemTime(), bl.events), Walsender: perEvent(walsender, bl.events)}
	r.Others = after.othersSince(before)
	return r, err
}

// watchWalsender returns the CPU time that the walsender of a slot used until it or its client ended. It asks all the time,
// because the figure is gone with the process.
func (d *database) watchWalsender(ctx context.Context, slot string, done <-chan struct{}) (used time.Duration, err error) {
	var pid *int
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if pid == nil {
			const ask = "select active_pid from pg_replication_slots where slot_name = $1"
			if err := d.conn.QueryRow(ctx, ask, slot).Scan(&pid); err != nil {
				return used, err
			}
		} else if now, err := process.CPUTime(*pid); err == nil {
			used = now
		}
		select {
		case <-tick.C:
		case <-done:
			return used, nil
		case <-ctx.Done():
			return used, context.Cause(ctx)
		}
	}
}

// runConnector measures the time from the connector's start until the ledger's checkpoint is beyond the backlog. It empties
// the ledger afterwards: a ledger belongs to one connector, and the next one has the same events at the same positions.
func (d *database) runConnector(ctx context.Context, sink, name string, bl backlog, args ...string) (r connectorRun, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout(bl.events), errors.New("the connector takes too long"))
	defer cancel()
	to, err := d.start(ctx, sink, bl.events)
	if err != nil {
		return r, err
	}
	defer to.Kill()
	if err := d.configure(name, to.sink()); err != nil {
		return r, err
	}
	if r, err = d.deliver(ctx, delivery{name: name, to: to, backlog: bl, args: args}); err != nil {
		return r, err
	}
	r.Sink = sink
	r.Counts, err = d.check(ctx, to)
	return r, err
}

// delivery is the run of a connector that has been configured.
type delivery struct {
	name string
	to   destination
	backlog
	args []string
}

// deliver runs a connector until the ledger's checkpoint is beyond the backlog.
func (d *database) deliver(ctx context.Context, what delivery) (r connectorRun, err error) {
	p := progress{database: d, name: what.name}
	if err := p.ask(ctx); err != nil { // prepares the query, too
		return r, err
	}
	before, err := takeUsage()
	if err != nil {
		return r, err
	}
	var idle used // all but the destination start with the run
	if idle[3], err = process.CPUTime(what.to.PID()); err != nil {
		return r, err
	}
	args := append([]string{"run", "--config", d.config(what.name)}, what.args...)
	c, err := process.Start(filepath.Join(d.dir, "connector.log"), d.connector, args...)
	if err != nil {
		return r, err
	}
	defer c.Kill()
	if err := p.await(ctx, c, func() bool { return p.confirmed > what.last }); err != nil {
		return r, err
	}
	r.Seconds = time.Since(c.Started).Seconds()
	total, err := p.used(c, what.to)
	if err != nil {
		return r, err
	}
	after, err := takeUsage()
	if err != nil {
		return r, err
	}
	if r.PeakMemory, err = process.Memory(c.PID(), "VmHWM"); err != nil {
		return r, err
	}
	r.CPU, r.Others = total.since(idle).perEvent(what.events), after.othersSince(before)
	return r, c.Stop(ctx)
}

// timeout returns a time that is far beyond what a run takes on a slow machine.
func timeout(events int) time.Duration {
	return 2*time.Minute + time.Duration(events)*time.Millisecond
}

// progress is how far a connector has come, and which backends of PostgreSQL serve it.
type progress struct {
	*database
	name                string
	confirmed           pglogrepl.LSN
	recorder, walsender *int
}

func (p *progress) ask(ctx context.Context) error {
	const ask = `select confirmed_lsn, recorder_pid, active_pid from outbox_checkpoints join pg_replication_slots using (slot_name)
		where slot_name = $1`
	return p.conn.QueryRow(ctx, ask, p.name).Scan(&p.confirmed, &p.recorder, &p.walsender)
}

// await asks for the progress until done returns true. It fails if the connector ends before.
func (p *progress) await(ctx context.Context, c *process.Child, done func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := p.ask(ctx); err != nil {
			return err
		}
		if done() {
			return nil
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

// used is the CPU time that four processes have used: the connector, its walsender, its recorder's backend and the
// destination.
type used [4]time.Duration

func (u used) perEvent(events int) cpu {
	return cpu{perEvent(u[0], events), perEvent(u[1], events), perEvent(u[2], events), perEvent(u[3], events)}
}

func (u used) since(then used) used {
	for i := range u {
		u[i] -= then[i]
	}
	return u
}

func (p *progress) used(c *process.Child, to destination) (u used, err error) {
	if p.recorder == nil || p.walsender == nil {
		return u, errors.New("the connector has lost its session")
	}
	for i, pid := range []int{c.PID(), *p.walsender, *p.recorder, to.PID()} {
		if u[i], err = process.CPUTime(pid); err != nil {
			return u, err
		}
	}
	return u, nil
}

// check compares what destination and ledger hold with what was written. Then it empties the ledger.
func (d *database) check(ctx context.Context, to destination) (counts, error) {
	c, err := to.check(ctx)
	if err != nil {
		return c, err
	}
	err = d.conn.QueryRow(ctx, `select count(*) from event_outbox e
		where not exists (select from outbox_delivery_log l where l.event_id = e.id and l.status = 'delivered')`).Scan(&c.Unrecorded)
	if err != nil {
		return c, fmt.Errorf("read the ledger: %w", err)
	}
	for _, statement := range []string{"truncate outbox_delivery_log, outbox_parked", "vacuum analyze outbox_delivery_log"} {
		if _, err := d.conn.Exec(ctx, statement); err != nil {
			return c, fmt.Errorf("%s: %w", statement, err)
		}
	}
	return c, nil
}
