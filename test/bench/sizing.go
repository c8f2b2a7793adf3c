//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// sizes is what docs/sizing.md says. All sizes are bytes an event, or a row of the table named.
type sizes struct {
	Date        string           `json:"date"`
	Machine     machine          `json:"machine"`
	Versions    versions         `json:"versions"`
	Storage     []storage        `json:"storage"`
	Steady      []steady         `json:"steady"`
	Lanes       []laneRun        `json:"lanes"`
	Connections connectionCounts `json:"connections"`
}

// storage is what events of one size leave, and what delivering them out of the WAL costs.
type storage struct {
	Payload int `json:"payload_bytes"`
	// The outbox's row, with what lies in its TOAST table, and all its indexes.
	Outbox     relation `json:"outbox"`
	WALOneRow  float64  `json:"wal_one_row_a_transaction"`
	WALHundred float64  `json:"wal_hundred_rows_a_transaction"`
	Log        relation `json:"log"`
	LogWAL     float64  `json:"log_wal"` // of the whole recorder, in large batches
	Parked     relation `json:"parked"`
	ParkWAL    float64  `json:"park_wal"`   // to park one
	UnparkWAL  float64  `json:"unpark_wal"` // to deliver it from the table, its log row included
	// "cleanup --once" without a connector, after a checkpoint: old rows are in pages that were written to the disk long ago.
	DeleteWAL     float64 `json:"delete_wal"`
	VacuumWAL     float64 `json:"vacuum_wal"` // of the vacuum after it
	DeletesPerSec float64 `json:"deletes_a_second"`
	CPU           cpu     `json:"cpu"` // while it catches up
	EventsASecond float64 `json:"events_a_second"`
	PeakMemory    int64   `json:"peak_memory_bytes"`
}

type relation struct {
	Table   float64 `json:"table"`
	Indexes float64 `json:"indexes"`
}

func (r relation) total() float64 { return r.Table + r.Indexes }

// sizingInsert writes events as bench_insert does, but with a payload of a given number of bytes. It does not compress, so
// what is measured is the most that a payload of this size takes.
const sizingInsert = `create function sizing_insert(first int, last int, bytes int) returns void language plpgsql as $$
begin
	insert into event_outbox (aggregate_type, aggregate_id, event_type, event_version, payload, metadata, tenant_id, correlation_id)
	select 'order', 'order-' || n % 5000, 'order.changed', 2,
		('{"seq": ' || n || ', "data": "' || left(data, bytes - 22 - length(n::text)) || '"}')::json,
		jsonb_build_object('source', 'bench', 'request', gen_random_uuid()), 'tenant-' || n % 20, gen_random_uuid()
	from generate_series(first, last) n, lateral (
		select string_agg(replace(encode(sha512(concat(n, i, random())::bytea), 'base64'), e'\n', ''), '') as data
		from generate_series(1, bytes / 88 + 1) i) random;
end
$$`

const sizingWrite = `create procedure sizing_write(first int, last int, rows int, bytes int) language plpgsql as $$
begin
	for n in first .. last by rows loop
		perform sizing_insert(n, n + rows - 1, bytes);
		commit;
	end loop;
end
$$`

// sizing measures everything, and prints it as docs/sizing.md has it.
func (b *bench) runSizing(ctx context.Context) error {
	s := sizes{Date: time.Now().Format(time.DateOnly), Machine: describeMachine(), Versions: b.versions(ctx)}
	for _, payload := range []int{200, 1000, 10_000} {
		process.Note("sizes with a payload of %d bytes", payload)
		one, err := b.storage(ctx, payload)
		if err != nil {
			return fmt.Errorf("payload of %d bytes: %w", payload, err)
		}
		s.Storage = append(s.Storage, one)
	}
	var err error
	if s.Steady, err = b.steadyRuns(ctx); err != nil {
		return fmt.Errorf("steady load: %w", err)
	}
	if s.Lanes, err = b.laneRuns(ctx); err != nil {
		return fmt.Errorf("lanes: %w", err)
	}
	if s.Connections, err = b.countConnections(ctx); err != nil {
		return fmt.Errorf("connections: %w", err)
	}
	return s.publish(os.Stdout, b.options)
}

// sizingDatabase has an outbox, and a connector "ours" that has not begun.
func (b *bench) sizingDatabase(ctx context.Context, name string, connectors ...string) (*database, error) {
	d, err := b.newDatabase(ctx, name, connectors...)
	if err != nil {
		return nil, err
	}
	for _, statement := range []string{sizingInsert, sizingWrite, "set synchronous_commit = off"} {
		if _, err := d.conn.Exec(ctx, statement); err != nil {
			return nil, errors.Join(err, d.close(ctx))
		}
	}
	return d, nil
}

// write inserts the events with the numbers first to last, and returns how much WAL they took.
func (d *database) write(ctx context.Context, s span, rows, payload int) (wal float64, last pglogrepl.LSN, err error) {
	before, err := d.walPosition(ctx)
	if err != nil {
		return 0, 0, err
	}
	if _, err := d.conn.Exec(ctx, "call sizing_write($1, $2, $3, $4)", s.first, s.last-rows, rows, payload); err != nil {
		return 0, 0, err
	}
	err = pgx.BeginFunc(ctx, d.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select sizing_insert($1, $2, $3)", s.last-rows+1, s.last, payload); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "select pg_current_wal_insert_lsn()").Scan(&last)
	})
	if err != nil {
		return 0, 0, err
	}
	after, err := d.walPosition(ctx)
	return float64(after-before) / float64(s.last-s.first+1), last, err
}

func (d *database) walPosition(ctx context.Context) (at pglogrepl.LSN, err error) {
	err = d.conn.QueryRow(ctx, "select pg_current_wal_insert_lsn()").Scan(&at)
	return at, err
}

// sizeOf returns what a table and its partitions take up.
func (d *database) sizeOf(ctx context.Context, table string) (r relation, err error) {
	err = d.conn.QueryRow(ctx, `select coalesce(sum(pg_table_size(c.oid)), 0)::float8, coalesce(sum(pg_indexes_size(c.oid)), 0)::float8
		from pg_class c where c.oid = $1::text::regclass or c.oid in (select inhrelid from pg_inherits where inhparent = $1::text::regclass)`, table).
		Scan(&r.Table, &r.Indexes)
	return r, err
}

func (r relation) since(then relation, rows int) relation {
	return relation{(r.Table - then.Table) / float64(rows), (r.Indexes - then.Indexes) / float64(rows)}
}

const sizingRows = 20_000 // of each way to write them

func (b *bench) storage(ctx context.Context, payload int) (s storage, err error) {
	s.Payload = payload
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("it takes too long"))
	defer cancel()
	d, err := b.sizingDatabase(ctx, fmt.Sprintf("sizing_%d", payload), "ours")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	empty, err := d.sizeOf(ctx, "event_outbox")
	if err != nil {
		return s, err
	}
	bl := backlog{events: 2 * sizingRows, payloadBytes: payload}
	if s.WALOneRow, _, err = d.write(ctx, span{first: 1, last: sizingRows}, 1, payload); err != nil {
		return s, err
	}
	if s.WALHundred, bl.last, err = d.write(ctx, span{first: sizingRows + 1, last: 2 * sizingRows}, 100, payload); err != nil {
		return s, err
	}
	full, err := d.sizeOf(ctx, "event_outbox")
	if err != nil {
		return s, err
	}
	s.Outbox = full.since(empty, bl.events)
	to, err := b.start(ctx, config.SinkKafka, 3*sizingRows)
	if err != nil {
		return s, err
	}
	defer to.Kill()
	if err := d.configure("ours", to.sink()); err != nil {
		return s, err
	}
	if err := d.logged(ctx, &s, to, bl); err != nil {
		return s, fmt.Errorf("deliver: %w", err)
	}
	if err := d.parked(ctx, &s, to); err != nil {
		return s, fmt.Errorf("park: %w", err)
	}
	c, err := to.check(ctx)
	if err := errors.Join(err, c.check()); err != nil {
		return s, err
	}
	return s, d.cleaned(ctx, &s)
}

// cleaned measures the deletion of all rows of the outbox, and a vacuum.
func (d *database) cleaned(ctx context.Context, s *storage) error {
	if err := d.addConfiguration("ours", "retention: {outbox: 0s, ledger: 7d}\n"); err != nil {
		return err
	}
	if _, err := d.conn.Exec(ctx, "checkpoint"); err != nil {
		return err
	}
	before, err := d.walPosition(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := d.command(ctx, "ours", "cleanup", "--once"); err != nil {
		return err
	}
	s.DeletesPerSec = 3 * sizingRows / time.Since(began).Seconds()
	between, err := d.walPosition(ctx)
	if err != nil {
		return err
	}
	if _, err := d.conn.Exec(ctx, "vacuum event_outbox"); err != nil {
		return err
	}
	after, err := d.walPosition(ctx)
	if err != nil {
		return err
	}
	s.DeleteWAL, s.VacuumWAL = float64(between-before)/(3*sizingRows), float64(after-between)/(3*sizingRows)
	var left int
	err = d.conn.QueryRow(ctx, "select count(*) from event_outbox").Scan(&left)
	if err == nil && left > 0 {
		err = fmt.Errorf("%d rows of the outbox were not deleted", left)
	}
	return err
}

// logged measures a run that delivers the backlog.
func (d *database) logged(ctx context.Context, s *storage, to destination, bl backlog) error {
	empty, err := d.sizeOf(ctx, "outbox_delivery_log")
	if err != nil {
		return err
	}
	before, err := d.walPosition(ctx)
	if err != nil {
		return err
	}
	run, err := d.deliver(ctx, delivery{name: "ours", to: to, backlog: bl})
	if err != nil {
		return err
	}
	after, err := d.walPosition(ctx)
	if err != nil {
		return err
	}
	full, err := d.sizeOf(ctx, "outbox_delivery_log")
	s.Log, s.LogWAL = full.since(empty, bl.events), float64(after-before)/float64(bl.events)
	s.CPU, s.PeakMemory, s.EventsASecond = run.CPU, run.PeakMemory, float64(bl.events)/run.Seconds
	return err
}

// parked measures a run that parks new events because the sink is paused, and then one that delivers them from the table.
func (d *database) parked(ctx context.Context, s *storage, to destination) error {
	if err := d.command(ctx, "ours", "pause", "events"); err != nil {
		return err
	}
	bl := backlog{events: sizingRows, payloadBytes: s.Payload}
	var err error
	if _, bl.last, err = d.write(ctx, span{first: 2*sizingRows + 1, last: 3 * sizingRows}, 100, s.Payload); err != nil {
		return err
	}
	before, err := d.walPosition(ctx)
	if err != nil {
		return err
	}
	if _, err := d.deliver(ctx, delivery{name: "ours", to: to, backlog: bl}); err != nil {
		return err
	}
	between, err := d.walPosition(ctx)
	if err != nil {
		return err
	}
	full, err := d.sizeOf(ctx, "outbox_parked")
	if err != nil {
		return err
	}
	s.Parked, s.ParkWAL = full.since(relation{}, sizingRows), float64(between-before)/sizingRows
	if err := d.command(ctx, "ours", "resume", "events"); err != nil {
		return err
	}
	if err := d.emptyParked(ctx); err != nil {
		return err
	}
	after, err := d.walPosition(ctx)
	s.UnparkWAL = float64(after-between) / sizingRows
	return err
}

// emptyParked runs the connector until nothing is parked.
func (d *database) emptyParked(ctx context.Context) error {
	c, err := d.startConnector(ctx, "ours")
	if err != nil {
		return err
	}
	defer c.Kill()
	for some := true; some; {
		if err := d.conn.QueryRow(ctx, "select exists (select from outbox_parked)").Scan(&some); err != nil {
			return err
		}
		if err := process.Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("parked rows are left: %w\n%s", err, c.Log())
		}
	}
	return c.Stop(ctx)
}

func (d *database) startConnector(ctx context.Context, name string) (*process.Child, error) {
	c, err := process.Start(filepath.Join(d.dir, "connector.log"), d.connector, "run", "--config", d.config(name))
	if err != nil {
		return nil, err
	}
	p := progress{database: d, name: name}
	if err := p.await(ctx, c, func() bool { return p.recorder != nil && p.walsender != nil }); err != nil {
		c.Kill()
		return nil, err
	}
	return c, nil
}

// command runs a command of the product.
func (d *database) command(ctx context.Context, connector string, args ...string) error {
	out, err := exec.CommandContext(ctx, d.cli, append(args, "--config", d.config(connector))...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
