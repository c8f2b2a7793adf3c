// Package demo shows outbox-cdc at work on a machine that has nothing but Go. It starts a PostgreSQL that it finds or
// downloads, and within this process a Kafka fake, a Redis and a receiver of webhooks. A small shop writes events, and a
// consumer of Kafka prints them. Between them runs the ordinary connector, as a process of its own, with an ordinary
// configuration. test/bench measures; the demo only shows.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// Options say how the demo runs.
type Options struct {
	Rate     int           // events a second; 0: only those that a person inserts
	Duration time.Duration // 0: until told to end
	// PGVersion is PostgreSQL's major version, any by default; PGBin the directory of its programs, found by default.
	PGVersion, PGBin string
	Chaos            []string      // what breaks in turn, of Breakable; empty: nothing
	Outage           time.Duration // how long it stays broken
	JSON             bool          // events and summary as JSON
	Out              io.Writer     // gets events and summary
	Info             io.Writer     // gets everything else; may be Out
	Screen                         // the terminal that Info writes to, if it is one
	// Connector is the command line of a connector that makes what it needs in the database. The path of its configuration is
	// appended.
	Connector []string
	// Executable is the path of outbox-demo, for the command that a person is given.
	Executable string
}

const (
	database = "shop"
	// settleTimeout is how long the demo waits, when it ends, for events that have not arrived.
	settleTimeout        = 20 * time.Second
	stopTimeout          = 10 * time.Second
	connectorStopTimeout = 30 * time.Second
)

// demo is one run.
type demo struct {
	Options
	postgres  *servers.Postgres
	broker    *broker
	others    *others // destinations beside Kafka
	connector *connector
	shop      *shop
	remove    func() error // removes the directory of the demo's files
	arrivals  arrivals
	kills     int // how often something was killed that may cause repetition; the chaos counts
}

// Run shows the demo until ctx ends, Options.Duration is over or something fails. Then it lets what was committed arrive,
// says what became of everything, stops what it started and removes what it made. The end of work cuts this short:
// then only the stopping and removing is done. The error says what failed, which includes events that did not arrive.
func Run(ctx, work context.Context, o Options) (err error) {
	o.Out = &lockedWriter{w: o.Out}
	if !o.JSON {
		o.Info = o.Out
	}
	d := &demo{Options: o}
	defer func() {
		if work.Err() != nil {
			err = context.Cause(work) // why everything else failed
		}
		err = errors.Join(err, d.close(work))
	}()
	if err := d.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			d.say("")  // ends the line on which the terminal has written ^C
			return nil // it failed because it was told to end
		}
		return err
	}
	return d.perform(ctx, work)
}

// prepare starts the servers, and makes the shop's database and the connector's configuration.
func (d *demo) prepare(ctx context.Context) error {
	d.say("%s\n", d.paint(bold, "A shop writes events in its transactions, and outbox-cdc delivers them."))
	dir, remove, err := servers.TempDir("demo")
	if err != nil {
		return fmt.Errorf("make a temporary directory: %w", err)
	}
	d.remove = remove
	d.postgres, err = servers.StartPostgres(ctx, servers.PostgresOptions{
		Version: d.PGVersion, BinDir: d.PGBin, Progress: func(message string) { d.say("%s", message) },
	})
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w; or name the directory of its programs by --pg-bin", err)
	}
	d.say("  DSN      %s", d.shownDSN())
	if d.broker, err = startBroker(filepath.Join(dir, "kafka")); err != nil {
		return fmt.Errorf("start the demo broker: %w", err)
	}
	if d.others, err = startOthers(ctx); err != nil {
		return fmt.Errorf("start Redis and the receiver of webhooks: %w", err)
	}
	if d.shop, err = openShop(ctx, d.postgres.DSN("postgres"), d.dsn()); err != nil {
		return fmt.Errorf("open the shop: %w", err)
	}
	d.shop.patience += d.Outage
	d.introduceSinks()
	d.connector, err = newConnector(dir, d.Connector, d.configuration)
	return err
}

func (d *demo) dsn() string { return d.postgres.DSN(database) }

// shownDSN is the DSN for a person. It leaves out sslmode, without which clients try TLS first, so that it fits on a line of 80 columns.
func (d *demo) shownDSN() string {
	dsn, _, _ := strings.Cut(d.dsn(), "?")
	return dsn
}

func (d *demo) introduceSinks() {
	d.say("\nThree sinks, all on this machine. Every event goes to each of them.")
	for _, s := range []struct{ name, what, where, note string }{
		{"events", "Kafka", d.broker.addr, "a fake in this process; one topic a type"},
		{"stream", "Redis", d.others.redis.Addr(), "a fake in this process"},
		{"partner", "webhooks", d.others.hookAddr, "a receiver that checks each signature"},
	} {
		d.say("  %s  %-8s  %-15s  %s", d.paint(cyan, fmt.Sprintf("%-7s", s.name)), s.what, s.where, d.paint(faint, s.note))
	}
}

// introduce says where the connector is and what will be seen.
func (d *demo) introduce(ctx context.Context) {
	c := d.connector
	d.say("\nThe connector, a process of its own, as outbox-cdc run --init --config <config>")
	d.say("  config   %s\n  log      %s\n  health   http://%s/readyz\n  metrics  http://%s/metrics", c.config, c.log, c.http, c.http)
	d.say("\nAn event of your own: paste this into another terminal.\n\n  %s\n", d.ownEvent(ctx))
	if d.JSON {
		return
	}
	story := ""
	if len(d.Chaos) > 0 {
		story = "\nStories of outages begin with ~~."
	}
	d.say("Each line is an event as a consumer of Kafka gets it, and how long after its\ncommit. The topic order is "+topics+"order. Your own events begin with >>.%s\n"+
		"Ctrl-C ends the demo and compares everything.\n", story)
	d.say("%s", d.heading())
}

// perform runs connector, consumer and shop side by side. They end in the order in which events travel, so that none is
// left between two of them.
func (d *demo) perform(ctx, work context.Context) error {
	performing, end := context.WithCancelCause(ctx)
	defer end(nil)
	consumer := startPart(work, end, d.consume)
	defer consumer.cancel()
	connector := startPart(context.WithoutCancel(work), end, func(ctx context.Context) error { return d.connector.run(ctx, work) })
	defer func() {
		connector.cancel()
		<-connector.ended // also if work has ended: no process is left
	}()

	if err := d.connector.awaitReady(performing); err != nil {
		stopped := errors.Join(connector.stop(work), consumer.stop(work))
		if stopped != nil || ctx.Err() != nil {
			return stopped // the reason
		}
		return err
	}
	begin := time.Now()
	d.introduce(ctx)
	stopping := context.AfterFunc(performing, func() { d.say("%s", d.paint(faint, "\nstopping; a second signal does it without waiting")) })
	defer stopping()
	if d.Duration > 0 {
		timer := time.AfterFunc(d.Duration, func() { end(nil) })
		defer timer.Stop()
	}
	mended := func() error { return nil }
	if len(d.Chaos) > 0 {
		chaos := startPart(performing, end, func(ctx context.Context) error { return d.chaos(ctx, work) })
		mended = func() error { chaos.cancel(); <-chaos.ended; return chaos.err } // also if work has ended: close stops what chaos may just have started
	}
	err := d.shop.open(performing, work, d.Rate, &d.arrivals)
	end(nil)
	err = errors.Join(err, mended())
	var owed []string
	if err == nil && !connector.over() && !consumer.over() {
		owed, err = d.settle(work)
	}
	err = errors.Join(err, connector.stop(work), consumer.stop(work))
	if err != nil {
		return err
	}
	return d.report(work, d.shop, owed, time.Since(begin))
}

// close stops and removes everything that was made.
func (d *demo) close(work context.Context) error {
	ctx, cancel := context.WithTimeout(work, stopTimeout)
	defer cancel()
	var errs []error
	if d.shop != nil {
		_ = d.shop.conn.Close(ctx) // an error does not matter: its server is stopped below
	}
	if d.broker != nil {
		d.broker.close()
	}
	if d.others != nil {
		d.others.close(ctx)
	}
	if d.postgres != nil {
		_ = d.postgres.Stop(ctx, servers.Fast) // whatever does not stop in time is stopped by Close
		errs = append(errs, d.postgres.Close())
	}
	if d.remove != nil {
		errs = append(errs, d.remove())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	d.say("%s", d.paint(faint, "stopped; nothing is left but the download cache"))
	return nil
}
