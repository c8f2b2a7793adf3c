// Package demo shows outbox-cdc at work on a machine that has nothing but Go: a PostgreSQL that it finds or downloads; a
// Kafka fake, a Redis and a receiver of webhooks within the process; a small shop that writes events, a consumer that
// prints them, and between them the ordinary connector with an ordinary configuration. It measures nothing that
// test/bench does not measure better.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// Options say how the demo runs.
type Options struct {
	Rate     int           // events a second; 0: only those that a person inserts
	Duration time.Duration // 0: until told to end
	// PGVersion is PostgreSQL's major version, any by default; PGBin the directory of its programs, found by default.
	PGVersion, PGBin string
	Chaos            bool      // a sink breaks now and then
	JSON             bool      // events and summary as JSON
	Out              io.Writer // gets events and summary
	Info             io.Writer // gets everything that is said beside; may be Out
	// Command runs a command of outbox-cdc as the command line does, with no environment.
	Command func(ctx context.Context, args ...string) error
	// Executable is the path of outbox-cdc, for the command that a person is given.
	Executable string
}

const (
	database = "shop"
	// settleTimeout is how long the demo waits, when it ends, for events that have not arrived.
	settleTimeout = 10 * time.Second
	readyTimeout  = time.Minute
	stopTimeout   = 10 * time.Second
)

// demo is one run.
type demo struct {
	Options
	postgres *servers.Postgres
	broker   *broker
	others   *others      // destinations beside Kafka
	conn     *pgx.Conn    // the shop's
	config   string       // the configuration's path
	http     string       // the connector's address
	remove   func() error // the directory of the configuration
	arrivals arrivals
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
			return nil // told to end, which is why it failed
		}
		return err
	}
	return d.perform(ctx, work)
}

// say tells a person something. There is nobody to tell that it cannot be told.
func (d *demo) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.Info, format+"\n", args...)
}

// prepare starts the servers and makes everything up to the replication slot.
func (d *demo) prepare(ctx context.Context) error {
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
	if d.broker, err = startBroker(); err != nil {
		return fmt.Errorf("start the demo broker: %w", err)
	}
	d.say("Kafka: in-process demo broker (kfake) at %s; topics are made when they are first used", d.broker.addr)
	if d.others, err = startOthers(ctx); err != nil {
		return fmt.Errorf("start Redis and the receiver of webhooks: %w", err)
	}
	d.say("Redis: in-process (miniredis) at %s; webhooks: a receiver at %s, which checks their signatures", d.others.redis.Addr(), d.others.url)
	if err := d.openShop(ctx); err != nil {
		return fmt.Errorf("open the shop: %w", err)
	}
	port, err := servers.FreePort()
	if err != nil {
		return err
	}
	d.http = fmt.Sprintf("127.0.0.1:%d", port)
	d.config = filepath.Join(dir, "outbox.yaml")
	if err := os.WriteFile(d.config, []byte(d.configuration()), 0o600); err != nil {
		return err
	}
	d.say("\n$ outbox-cdc init --config %s", d.config)
	return d.Command(ctx, "init", "--config", d.config)
}

// configuration has what an ordinary one has, and leaves everything else at its default.
func (d *demo) configuration() string {
	text := fmt.Sprintf(`# Made by outbox-cdc demo. "outbox-cdc config example" explains every key.
name: demo
source:
  dsn: %q
sinks:
  - name: events
    type: kafka
    brokers: [%q]
    topic: outbox.event.{aggregate_type}
  - name: stream
    type: redis_stream
    url: redis://%s
  - name: partner
    type: webhook
    url: %s
    secret: %s
    allow_hosts: [127.0.0.1]
http:
  listen: %s
`, d.dsn(), d.broker.addr, d.others.redis.Addr(), d.others.url, d.others.secret, d.http)
	if d.Chaos {
		text += chaosConfiguration
	}
	return text
}

func (d *demo) dsn() string { return d.postgres.DSN(database) }

// perform runs connector, consumer and shop side by side. They end in the order in which events travel, so that none is
// left between two of them.
func (d *demo) perform(ctx, work context.Context) error {
	performing, end := context.WithCancelCause(ctx)
	defer end(nil)
	consumer := startPart(work, end, d.consume)
	defer consumer.cancel()
	d.say("$ outbox-cdc run --config %s\n", d.config)
	connector := startPart(work, end, func(ctx context.Context) error { return d.Command(ctx, "run", "--config", d.config) })
	defer connector.cancel()

	if err := d.awaitReady(performing); err != nil {
		stopped := errors.Join(connector.stop(work), consumer.stop(work))
		if stopped != nil || ctx.Err() != nil {
			return stopped // the reason
		}
		return err
	}
	begin := time.Now()
	d.introduce(ctx)
	if d.Duration > 0 {
		timer := time.AfterFunc(d.Duration, func() { end(nil) })
		defer timer.Stop()
	}
	shop := newShop(d.conn)
	mended := func() error { return nil }
	if d.Chaos {
		chaos := startPart(work, end, d.chaos)
		mended = func() error { return chaos.stop(work) }
	}
	err := shop.open(performing, work, d.Rate, &d.arrivals)
	err = errors.Join(err, mended())
	d.say("\nstopping; a second signal does it without waiting")
	var owed []string
	if err == nil && !connector.over() && !consumer.over() {
		owed, err = d.settle(work)
	}
	err = errors.Join(err, connector.stop(work), consumer.stop(work))
	if err != nil {
		return err
	}
	return d.report(work, shop, owed, time.Since(begin))
}

// part is what runs beside the shop.
type part struct {
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // once ended is closed
}

// startPart starts run. Where it fails, it ends the rest.
func startPart(work context.Context, end context.CancelCauseFunc, run func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(work)
	p := &part{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		if p.err = run(ctx); p.err == nil && ctx.Err() == nil {
			p.err = errors.New("a part of the demo ended before its time")
		}
		if p.err != nil {
			end(p.err)
		}
	}()
	return p
}

// over says whether it has ended by itself, hence failed.
func (p *part) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// stop ends it and waits for that, unless work ends.
func (p *part) stop(work context.Context) error {
	p.cancel()
	select {
	case <-p.ended:
		return p.err
	case <-work.Done():
		return nil // whoever ended it says so
	}
}

// awaitReady waits until the connector and all of its sinks are ok.
func (d *demo) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("/readyz of the connector does not say ok"))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.http+"/readyz?strict", nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *demo) introduce(ctx context.Context) {
	d.say("health http://%[1]s/readyz, metrics http://%[1]s/metrics", d.http)
	d.say("DSN    %s\n", d.dsn())
	d.say("Your own event: paste this into another terminal. What is not the shop's comes out with >> in front.\n\n  %s\n", d.ownEvent(ctx))
	if !d.JSON {
		d.say("%s", heading)
	}
}

// close stops and removes everything that was made.
func (d *demo) close(work context.Context) error {
	ctx, cancel := context.WithTimeout(work, stopTimeout)
	defer cancel()
	var errs []error
	if d.conn != nil {
		_ = d.conn.Close(ctx) // its server goes, too
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
	d.say("stopped; nothing is left but the download cache")
	return nil
}

// lockedWriter is for several goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
