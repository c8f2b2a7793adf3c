//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// database is the database of one part, with a connector of the same name.
type database struct {
	*soak
	name   string
	conn   *pgx.Conn
	listen string
}

// newDatabase creates a database with tables, slot and checkpoint for a connector. The configuration lacks name, source and
// http, which newDatabase adds.
func (s *soak) newDatabase(ctx context.Context, name, configuration string) (*database, error) {
	port, err := servers.FreePort()
	if err != nil {
		return nil, err
	}
	d := &database{soak: s, name: name, listen: process.Loopback(port)}
	if d.conn, err = process.CreateDatabase(ctx, s.postgres, name); err != nil {
		return nil, err
	}
	if err := d.configure(configuration); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, s.cli, "init", "--config", d.config(), "--backlog", "none").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("init: %w\n%s", err, out)
	}
	return d, nil
}

func (d *database) config() string { return filepath.Join(d.temporary, d.name+".yaml") }

func (d *database) configure(configuration string) error {
	text := fmt.Sprintf("name: %[1]s\nsource: {dsn: %[2]q, slot: %[1]s, publication: %[1]s}\nhttp: {listen: %[3]q}\n%[4]s",
		d.name, d.postgres.DSN(d.name), d.listen, configuration)
	return os.WriteFile(d.config(), []byte(text), 0o600)
}

// close drops the database and its slots.
func (d *database) close(ctx context.Context) error {
	_ = d.conn.Close(ctx) // dropping the database closes it, too
	return process.DropDatabase(ctx, d.postgres, d.name)
}

// start starts the connector and waits until it streams.
func (d *database) start(ctx context.Context) (*process.Child, error) {
	c, err := process.Start(filepath.Join(d.temporary, d.name+".log"), d.cli, "run", "--config", d.config())
	if err != nil {
		return nil, err
	}
	return c, d.streams(ctx, c)
}

func (d *database) streams(ctx context.Context, c *process.Child) error {
	for range 1000 {
		active, err := value[bool](ctx, d, "select active from pg_replication_slots where slot_name = $1", d.name)
		if err != nil || active {
			return err
		}
		select {
		case <-c.Done:
			return fmt.Errorf("the connector has ended: %w\n%s", c.Err, c.Log())
		default:
		}
		if err := process.Pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("the connector does not stream:\n%s", c.Log())
}

func value[T any](ctx context.Context, d *database, sql string, args ...any) (v T, err error) {
	if err := d.conn.QueryRow(ctx, sql, args...).Scan(&v); err != nil {
		return v, fmt.Errorf("%s: %w", sql, err)
	}
	return v, nil
}

// metric reads one of the connector's metrics for a sink.
func (d *database) metric(ctx context.Context, name, sink string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.listen+"/metrics", http.NoBody)
	if err != nil {
		return 0, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, fmt.Sprintf("pyairtable_outbox_%s{sink=%q} ", name, sink)); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, fmt.Errorf("/metrics has no %s of %s", name, sink)
}

const insertOne = `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, metadata)
	values ('order', 'order-' || $1::int % 5000, 'order.changed', ('{"seq": ' || $1::int || $2::text)::json, '{"source": "soak"}')`

// loader inserts events numbered from 1 at a steady rate until it is stopped.
type loader struct {
	cancel context.CancelFunc
	group  *errgroup.Group
	count  int // once it has stopped
}

func (d *database) load(ctx context.Context, rate int) (*loader, error) {
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	l := &loader{cancel: cancel, group: g}
	payloads := process.Payloads()
	queues := make([]chan int, process.Writers)
	for i := range queues {
		queues[i] = make(chan int, 10*rate) // a server that falls behind does not stop the pacer
		conn, err := pgx.Connect(ctx, d.postgres.DSN(d.name))
		if err != nil {
			cancel()
			return nil, err
		}
		g.Go(func() error {
			defer conn.Close(context.Background())
			for n := range queues[i] {
				if _, err := conn.Exec(context.WithoutCancel(ctx), insertOne, n, payloads[n%len(payloads)]); err != nil {
					return fmt.Errorf("insert: %w", err)
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer func() {
			for _, queue := range queues {
				close(queue)
			}
		}()
		return process.Pace(ctx, rate, math.MaxInt, func(i int) error {
			l.count = i + 1
			queues[l.count%process.Writers] <- l.count
			return nil
		})
	})
	return l, nil
}

func (l *loader) stop() error {
	l.cancel()
	return l.group.Wait()
}
