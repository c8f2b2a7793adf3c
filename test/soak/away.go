//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// pair is the destinations of the two sinks that the away parts use.
type pair struct {
	kafka  *process.Child
	broker string
	redis  *servers.Redis
	proxy  *servers.Proxy // in front of Redis
}

func (s *soak) startPair(ctx context.Context) (p *pair, err error) {
	p = &pair{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	p.kafka, p.broker, err = process.StartKafkaFake(ctx, s.fake, filepath.Join(s.temporary, "kafkafake.log"))
	if err != nil {
		return p, err
	}
	p.redis, err = servers.StartRedis(ctx, servers.RedisOptions{Settings: map[string]string{"appendonly": "no"}, Dir: s.dir})
	if err != nil {
		return p, err
	}
	p.proxy, err = servers.NewProxy(p.redis.Addr())
	return p, err
}

func (p *pair) close() {
	if p.proxy != nil {
		_ = p.proxy.Close()
	}
	if p.redis != nil {
		_ = p.redis.Close()
	}
	if p.kafka != nil {
		p.kafka.Kill()
	}
}

func (p *pair) configuration(reset time.Duration) string {
	return fmt.Sprintf(`breaker: {reset_timeout: %s}
sinks:
  - {name: kafka, type: kafka, brokers: [%q]}
  - {name: redis, type: redis_stream, url: "redis://%s"}
`, reset, p.broker, p.proxy.Addr())
}

// away makes a destination unreachable: Kafka falls silent with its connections open, Redis resets connections.
func (p *pair) away(sink string) {
	if sink == "kafka" {
		_ = p.kafka.Cmd.Process.Signal(syscall.SIGSTOP)
		return
	}
	p.proxy.Refuse()
	p.proxy.Cut()
}

func (p *pair) back(sink string) {
	if sink == "kafka" {
		_ = p.kafka.Cmd.Process.Signal(syscall.SIGCONT)
		return
	}
	p.proxy.Accept()
}

// awayPart makes one of two sinks unreachable under load, and measures how the connector and the other sink get on.
func (s *soak) awayPart(ctx context.Context, part string) (err error) {
	down, other := "redis", "kafka"
	if part == "kafka" {
		down, other = "kafka", "redis"
	}
	p, err := s.startPair(ctx)
	if err != nil {
		return err
	}
	defer p.close()
	d, err := s.newDatabase(ctx, "away_"+part, p.configuration(s.reset))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	if part == "snapshot" {
		old, err := pgx.Connect(ctx, s.postgres.DSN(d.name))
		if err != nil {
			return err
		}
		defer old.Close(context.Background())
		if _, err := old.Exec(ctx, "begin isolation level repeatable read; select 1"); err != nil {
			return err
		}
	}
	yardstick, err := d.startYardstick(ctx)
	if err != nil {
		return err
	}
	defer yardstick.Kill()
	c, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer c.Kill()
	w := d.watch(ctx, c)
	l, err := d.load(ctx, s.rate)
	if err != nil {
		return err
	}
	defer l.cancel()

	a := awayRun{database: d, part: part, down: down, other: other, w: w, c: c}
	if err := a.run(ctx, p, l); err != nil {
		return fmt.Errorf("%w\n%s", err, c.Log())
	}
	return c.Stop(ctx)
}

// startYardstick starts pg_recvlogical, which confirms at once whatever it reads.
func (d *database) startYardstick(ctx context.Context) (*process.Child, error) {
	if _, err := d.conn.Exec(ctx, "select pg_create_logical_replication_slot($1, 'pgoutput')", d.yardstick()); err != nil {
		return nil, err
	}
	return process.Start(filepath.Join(d.temporary, "pg_recvlogical.log"), filepath.Join(d.postgres.BinDir(), "pg_recvlogical"),
		"-d", d.postgres.DSN(d.name), "-S", d.yardstick(), "--start", "-f", "/dev/null", "--status-interval=1", "--fsync-interval=1",
		"-o", "proto_version=1", "-o", "publication_names="+d.name)
}

func (d *database) yardstick() string { return d.name + "_yardstick" }

// watcher asks every half second how far the connector is. Its figures are the maxima so far.
type watcher struct {
	mu                     sync.Mutex
	confirmed, restart     int64 // bytes behind the server, and behind the yardstick's restart LSN
	rss                    int64
	atConfirmed, atRestart time.Time
	atRSS                  time.Time
	err                    error
}

func (d *database) watch(ctx context.Context, c *process.Child) *watcher {
	w := &watcher{}
	go func() {
		conn, err := pgx.Connect(ctx, d.postgres.DSN(d.name))
		for err == nil && ctx.Err() == nil {
			var confirmed, restart, rss int64
			err = conn.QueryRow(ctx, `select (pg_current_wal_lsn() - o.confirmed_flush_lsn)::bigint, (y.restart_lsn - o.restart_lsn)::bigint
				from pg_replication_slots o, pg_replication_slots y where o.slot_name = $1 and y.slot_name = $2`, d.name, d.yardstick()).Scan(&confirmed, &restart)
			if err == nil {
				rss, err = process.Memory(c.PID(), "VmRSS")
			}
			w.mu.Lock()
			if err == nil && confirmed > w.confirmed {
				w.confirmed, w.atConfirmed = confirmed, time.Now()
			}
			if err == nil && restart > w.restart {
				w.restart, w.atRestart = restart, time.Now()
			}
			if rss > w.rss {
				w.rss, w.atRSS = rss, time.Now()
			}
			w.err = err
			w.mu.Unlock()
			if process.Pause(ctx, 500*time.Millisecond) != nil {
				break
			}
		}
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}()
	return w
}

type awayRun struct {
	*database
	part, down, other string
	w                 *watcher
	c                 *process.Child

	begin, wentAway, cameBack, first, empty, live time.Time
	owed                                          int
}

func (a *awayRun) run(ctx context.Context, p *pair, l *loader) error {
	const warmUp = 5 * time.Second
	if err := process.Pause(ctx, warmUp); err != nil {
		return err
	}
	a.begin = time.Now()
	if err := process.Pause(ctx, a.before); err != nil {
		return err
	}
	process.Note("  %s goes away for %s", a.down, a.away)
	a.wentAway = time.Now()
	p.away(a.down)
	if err := process.Pause(ctx, a.away); err != nil {
		return err
	}
	attempts, err := value[int](ctx, a.database, "select coalesce(max(attempts), 0) from outbox_parked")
	if err != nil {
		return err
	}
	if a.owed, err = value[int](ctx, a.database, "select count(*) from outbox_parked"); err != nil {
		return err
	}
	a.cameBack = time.Now()
	p.back(a.down)
	process.Note("  %s comes back, %d parked", a.down, a.owed)
	if err := a.catchUp(ctx); err != nil {
		return err
	}
	process.Note("  live after %.1f s", a.live.Sub(a.cameBack).Seconds())
	if err := errors.Join(process.Pause(ctx, 2*time.Second), l.stop()); err != nil {
		return err
	}
	return a.tell(ctx, attempts, l.count)
}

// catchUp notes when the first row was delivered, when none was left, and when all lanes were live.
func (a *awayRun) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.away+5*time.Minute, errors.New("it does not catch up"))
	defer cancel()
	const delivered = `select exists (select from outbox_delivery_log l join outbox_processors p on p.id = l.processor_id
		where p.processor_name = $1 and l.status = 'delivered' and l.completed_at > $2)`
	const parked = `select exists (select from outbox_parked k join outbox_processors p on p.id = k.processor_id where p.processor_name = $1)`
	for a.live.IsZero() {
		if err := process.Pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		if a.first.IsZero() {
			some, err := value[bool](ctx, a.database, delivered, a.down, a.cameBack)
			if err != nil {
				return err
			}
			if some {
				a.first = time.Now()
			}
			continue
		}
		some, err := value[bool](ctx, a.database, parked, a.down)
		if err != nil {
			return err
		}
		if !some && a.empty.IsZero() {
			a.empty = time.Now()
		}
		catching, err := a.metric(ctx, "lanes_catching_up", a.down)
		if err != nil {
			return err
		}
		if catching == 0 && !some {
			a.live = time.Now()
		}
	}
	return nil
}

func (a *awayRun) tell(ctx context.Context, attempts, written int) error {
	var lost int
	for range 100 { // what the load wrote last
		var err error
		if lost, err = value[int](ctx, a.database, `select 2 * count(*)::int - (select count(*)::int from outbox_delivery_log where status = 'delivered')
			from event_outbox`); err != nil {
			return err
		}
		if lost == 0 {
			break
		}
		if err := process.Pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	dead, err := value[int](ctx, a.database, "select count(*) from outbox_parked where status = 'dead'")
	if err != nil {
		return err
	}
	failed, err := value[int](ctx, a.database, "select count(*) from outbox_delivery_log where status = 'failed'")
	if err != nil {
		return err
	}
	var p99 [3]float64
	for i, span := range [][2]time.Time{{a.begin, a.wentAway}, {a.wentAway, a.cameBack}, {a.first, a.empty}} {
		if p99[i], err = a.p99(ctx, span[0], span[1]); err != nil {
			return err
		}
	}
	caught, err := value[int](ctx, a.database, `select count(*) from outbox_delivery_log l join outbox_processors p on p.id = l.processor_id
		where p.processor_name = $1 and l.status = 'delivered' and l.completed_at between $2 and $3`, a.down, a.cameBack, a.empty)
	if err != nil {
		return err
	}
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	r, n := &a.report, a.part
	since := func(t time.Time) float64 { return t.Sub(a.wentAway).Seconds() }
	r.tell(n, "events written", float64(written), "")
	r.tell(n, "sink away for", a.cameBack.Sub(a.wentAway).Seconds(), "s")
	r.tell(n, "rows parked when it came back", float64(a.owed), "")
	r.most(n, fmt.Sprintf("slot's confirmed LSN behind the server, at %.0f s", since(a.w.atConfirmed)), mebibytes(a.w.confirmed), "MiB", 64)
	r.most(n, fmt.Sprintf("its restart LSN behind pg_recvlogical's, at %.0f s", since(a.w.atRestart)), mebibytes(a.w.restart), "MiB", 64)
	r.most(n, fmt.Sprintf("resident memory, at %.0f s", since(a.w.atRSS)), mebibytes(a.w.rss), "MiB", 128)
	r.tell(n, "p99 of "+a.other+" before", p99[0], "ms")
	r.most(n, "p99 of "+a.other+" while "+a.down+" was away", p99[1], "ms", 1.5*p99[0])
	r.tell(n, "p99 of "+a.other+" while "+a.down+" caught up", p99[2], "ms")
	r.most(n, "attempts used", float64(attempts), "", 0)
	r.tell(n, "failed tries", float64(failed), "")
	r.most(n, "dead letters", float64(dead), "", 0)
	r.most(n, "deliveries missing or too many in the ledger", max(float64(lost), -float64(lost)), "", 0)
	r.tell(n, "back until the first is delivered", a.first.Sub(a.cameBack).Seconds(), "s")
	r.least(n, "caught up at", float64(caught)/a.empty.Sub(a.first).Seconds(), "1/s", 5*float64(a.rate))
	r.most(n, "last parked row until all lanes are live", a.live.Sub(a.empty).Seconds(), "s", 5)
	return a.w.err
}

// p99 returns the p99 of the other sink, from commit to acceptance, in milliseconds.
func (a *awayRun) p99(ctx context.Context, from, to time.Time) (float64, error) {
	return value[float64](ctx, a.database, `select coalesce(percentile_cont(0.99) within group (order by ms), 0) from (
		select extract(epoch from l.completed_at - pg_xact_commit_timestamp(e.xmin)) * 1000 as ms
		from event_outbox e join outbox_delivery_log l on l.event_id = e.id and l.status = 'delivered'
		join outbox_processors p on p.id = l.processor_id
		where p.processor_name = $1 and e.created_at between $2 and $3) d`, a.other, from, to)
}
