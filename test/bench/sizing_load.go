//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// steady is what a steady load costs: one-row transactions of about 500 bytes, one Kafka sink.
type steady struct {
	Rate   int     `json:"events_a_second"`
	CPU    cpu     `json:"cpu_ms_a_second"`
	WAL    float64 `json:"wal_bytes_a_second"` // the inserts with it
	Memory int64   `json:"peak_memory_bytes"`
}

const steadySeconds = 20

func (b *bench) steadyRuns(ctx context.Context) (all []steady, err error) {
	for _, rate := range []int{0, 10, 1000, 2000} {
		process.Note("%d one-row transactions a second for %d s", rate, steadySeconds)
		s, err := b.steadyRun(ctx, rate)
		if err != nil {
			return all, fmt.Errorf("%d a second: %w", rate, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func (b *bench) steadyRun(ctx context.Context, rate int) (s steady, err error) {
	s.Rate = rate
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("it takes too long"))
	defer cancel()
	d, err := b.newDatabase(ctx, "steady", "ours")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	to, err := b.start(ctx, config.SinkKafka, rate*steadySeconds)
	if err != nil {
		return s, err
	}
	defer to.Kill()
	if err := d.configure("ours", to.sink()); err != nil {
		return s, err
	}
	conns, err := d.writers(ctx)
	if err != nil {
		return s, err
	}
	c, err := d.startConnector(ctx, "ours")
	if err != nil {
		return s, err
	}
	defer c.Kill()
	if err := process.Pause(ctx, 3*time.Second); err != nil { // what a start costs is not counted
		return s, err
	}
	p := progress{database: d, name: "ours"}
	if err := p.ask(ctx); err != nil {
		return s, err
	}
	then, err := p.used(c, to)
	if err != nil {
		return s, err
	}
	before, err := d.walPosition(ctx)
	if err != nil {
		return s, err
	}
	if rate > 0 {
		_, err = load(ctx, conns, span{1, rate * steadySeconds, rate})
	} else {
		err = process.Pause(ctx, steadySeconds*time.Second)
	}
	if err != nil {
		return s, err
	}
	if err := d.recorded(ctx, rate*steadySeconds); err != nil {
		return s, fmt.Errorf("%w\n%s", err, c.Log())
	}
	now, err := p.used(c, to)
	if err != nil {
		return s, err
	}
	after, err := d.walPosition(ctx)
	if err != nil {
		return s, err
	}
	s.CPU = now.since(then).perEvent(steadySeconds * 1000)
	s.WAL = float64(after-before) / steadySeconds
	if s.Memory, err = process.Memory(c.PID(), "VmHWM"); err != nil {
		return s, err
	}
	if err := c.Stop(ctx); err != nil {
		return s, err
	}
	tally, err := d.check(ctx, to)
	return s, errors.Join(err, tally.check())
}

// writers opens the connections of the load. They end with the database.
func (d *database) writers(ctx context.Context) (conns []*pgx.Conn, err error) {
	for range process.Writers {
		conn, err := pgx.Connect(ctx, d.postgres.DSN(d.name))
		if err != nil {
			return nil, err
		}
		conns = append(conns, conn)
	}
	return conns, nil
}

// recorded waits until the ledger has so many deliveries.
func (d *database) recorded(ctx context.Context, events int) error {
	for n := -1; n < events; {
		if err := d.conn.QueryRow(ctx, "select count(*) from outbox_delivery_log where status = 'delivered'").Scan(&n); err != nil {
			return err
		}
		if err := process.Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%d events are in the ledger: %w", n, err)
		}
	}
	return nil
}

// laneRun is how fast a backlog is delivered with some lanes.
type laneRun struct {
	Sink   string  `json:"sink"`
	Lanes  int     `json:"lanes"`
	Rate   float64 `json:"events_a_second"`
	CPU    float64 `json:"connector_cpu_us_per_event"`
	Memory int64   `json:"peak_memory_bytes"`
}

func (b *bench) laneRuns(ctx context.Context) (all []laneRun, err error) {
	counts := []int{1, 4, 16}
	sinks := map[string]int{config.SinkKafka: 100_000, config.SinkWebhook: 10_000} // the backlog of each
	for _, sink := range []string{config.SinkKafka, config.SinkWebhook} {
		var connectors []string
		for _, lanes := range counts {
			connectors = append(connectors, name(sink, lanes))
		}
		d, err := b.newDatabase(ctx, "lanes_"+sink, connectors...)
		if err != nil {
			return nil, err
		}
		bl, err := d.writeBacklog(ctx, sinks[sink], 100)
		for i := 0; i < len(counts) && err == nil; i++ {
			var run laneRun
			run, err = d.laneRun(ctx, laneRun{Sink: sink, Lanes: counts[i]}, bl)
			all = append(all, run)
		}
		if err := errors.Join(err, d.close(ctx)); err != nil {
			return nil, fmt.Errorf("%s: %w", sink, err)
		}
	}
	return all, nil
}

func (d *database) laneRun(ctx context.Context, run laneRun, bl backlog) (laneRun, error) {
	process.Note("%s with %d lanes", run.Sink, run.Lanes)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout(bl.events), errors.New("the connector takes too long"))
	defer cancel()
	connector := name(run.Sink, run.Lanes)
	to, err := d.start(ctx, run.Sink, bl.events)
	if err != nil {
		return run, err
	}
	defer to.Kill()
	if err := d.configure(connector, to.sink()); err != nil {
		return run, err
	}
	if err := d.addConfiguration(connector, fmt.Sprintf("delivery: {lanes: %d}\n", run.Lanes)); err != nil {
		return run, err
	}
	r, err := d.deliver(ctx, delivery{name: connector, to: to, backlog: bl})
	if err != nil {
		return run, err
	}
	run.Rate, run.CPU, run.Memory = float64(bl.events)/r.Seconds, r.CPU.Reader, r.PeakMemory
	tally, err := d.check(ctx, to)
	return run, errors.Join(err, tally.check())
}

// addConfiguration writes more behind what configure has written.
func (d *database) addConfiguration(connector, text string) error {
	f, err := os.OpenFile(d.config(connector), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// connectionCounts is how many connections to PostgreSQL were seen at most, that of the stream included.
type connectionCounts struct {
	OneSink    int `json:"one_sink"`
	ThreeSinks int `json:"three_sinks"`
	// Standby is how many more there are with a second instance on the slot.
	Standby int `json:"standby"`
	// Bound is source.max_connections and the stream.
	Bound int `json:"bound"`
}

func (b *bench) countConnections(ctx context.Context) (c connectionCounts, err error) {
	c.Bound = config.Default().Source.MaxConnections + 1
	if c.OneSink, _, err = b.connections(ctx, 1); err != nil {
		return c, err
	}
	c.ThreeSinks, c.Standby, err = b.connections(ctx, 3)
	return c, err
}

// connections counts under a load, with some Kafka sinks, and then with an instance that stands by.
func (b *bench) connections(ctx context.Context, sinks int) (alone, standby int, err error) {
	const perSecond, seconds = 1000, 8
	process.Note("connections with %d sinks", sinks)
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("it takes too long"))
	defer cancel()
	d, err := b.newDatabase(ctx, "connections", "ours")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	to, err := b.start(ctx, config.SinkKafka, 2*perSecond*seconds)
	if err != nil {
		return 0, 0, err
	}
	defer to.Kill()
	all := []string{to.sink()}
	for i := 1; i < sinks; i++ {
		all = append(all, fmt.Sprintf("name: events%d, %s", i+1, to.sink()))
	}
	if err := d.configure("ours", strings.Join(all, "}, {")); err != nil {
		return 0, 0, err
	}
	conns, err := d.writers(ctx)
	if err != nil {
		return 0, 0, err
	}
	var instances [2]int
	for i := range instances {
		c, err := process.Start(fmt.Sprintf("%s/connector%d.log", d.dir, i), d.connector, "run", "--config", d.config("ours"))
		if err != nil {
			return 0, 0, err
		}
		defer c.Kill()
		if i == 0 {
			p := progress{database: d, name: "ours"}
			err = p.await(ctx, c, func() bool { return p.recorder != nil && p.walsender != nil })
		} else {
			err = process.Pause(ctx, 3*time.Second)
		}
		if err != nil {
			return 0, 0, err
		}
		if instances[i], err = d.mostConnections(ctx, conns, span{i*perSecond*seconds + 1, (i + 1) * perSecond * seconds, perSecond}); err != nil {
			return 0, 0, fmt.Errorf("%w\n%s", err, c.Log())
		}
	}
	return instances[0], instances[1] - instances[0], nil
}

// mostConnections counts the connections of connectors while events are written.
func (d *database) mostConnections(ctx context.Context, conns []*pgx.Conn, s span) (most int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		_, err := load(ctx, conns, s)
		done <- err
	}()
	for {
		var n int
		// A walsender counts as well. Those of the load have no name.
		err := d.conn.QueryRow(ctx, "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'outbox-cdc%'").Scan(&n)
		if err != nil {
			return most, err
		}
		most = max(most, n)
		select {
		case err := <-done:
			return most, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
