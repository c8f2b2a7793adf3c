//go:build linux

package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// database is one part's own, with a connector of its name.
type database struct {
	*soak
	name   string
	conn   *pgx.Conn
	listen string
}

// newDatabase makes one, with tables, slot and checkpoint, for a connector with this configuration: all but name, source and http.
func (s *soak) newDatabase(ctx context.Context, name, configuration string) (*database, error) {
	admin, err := pgx.Connect(ctx, s.postgres.DSN("postgres"))
	if err != nil {
		return nil, err
	}
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, "create database "+name); err != nil {
		return nil, err
	}
	port, err := servers.FreePort()
	if err != nil {
		return nil, err
	}
	d := &database{soak: s, name: name, listen: "127.0.0.1:" + strconv.Itoa(port)}
	if d.conn, err = pgx.Connect(ctx, s.postgres.DSN(name)); err != nil {
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
func (d *database) close() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 30*time.Second, errors.New("a slot is still in use"))
	defer cancel()
	_ = d.conn.Close(ctx)
	admin, err := pgx.Connect(ctx, d.postgres.DSN("postgres"))
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	for _, sql := range []string{
		"select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '" + d.name + "'",
		"select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '" + d.name + "'",
		"drop database " + d.name + " with (force)",
	} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
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

// metric is one series of the connector's, of a sink.
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

const (
	writers    = 8
	aggregates = 5000 // in turn: each has one writer, as their number divides 5,000
)

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
	payloads := make([]string, 1000) // about 500 bytes that do not compress, apart from being text
	for i := range payloads {
		data := make([]byte, 360)
		for j := range data {
			data[j] = byte(rand.Uint32())
		}
		payloads[i] = `, "data": "` + base64.StdEncoding.EncodeToString(data) + `"}`
	}
	queues := make([]chan int, writers)
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
		return pace(ctx, rate, func(n int) {
			l.count = n
			queues[n%writers] <- n
		})
	})
	return l, nil
}

func (l *loader) stop() error {
	l.cancel()
	return l.group.Wait()
}

// pace calls do with 1, 2, … at the rate, until ctx ends. The timers of the Go runtime are a millisecond coarse: hence a thread
// that sleeps by itself.
func pace(ctx context.Context, rate int, do func(n int)) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	begin := now.Nano()
	for n := 1; ctx.Err() == nil; n++ {
		until := unix.NsecToTimespec(begin + int64(n)*int64(time.Second)/int64(rate))
		for {
			err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &until, nil)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EINTR) { // the runtime's own signals interrupt it
				return err
			}
		}
		do(n)
	}
	return nil
}
