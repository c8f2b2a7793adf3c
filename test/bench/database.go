//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

const publication = "bench"

// aggregateOf returns the aggregate of event n.
func aggregateOf(n int) string { return "order-" + strconv.Itoa(n%process.Aggregates) }

// insertFunction fills every column. The payload is about 500 bytes that do not compress, except that they are text. Its
// first key is the number of the event, by which the checker knows it. 5,000 aggregates take turns. The function is in
// plpgsql because that keeps the plan of the statement.
const insertFunction = `create function bench_insert(first int, last int) returns void language plpgsql as $$
begin
	insert into event_outbox (aggregate_type, aggregate_id, event_type, event_version, payload, metadata, max_retries,
		tenant_id, correlation_id, causation_id)
	select 'order', 'order-' || n % 5000, 'order.changed', 2,
		('{"seq": ' || n || ', "customer": "' || gen_random_uuid() || '", "data": "' || data || '"}')::json,
		jsonb_build_object('source', 'bench', 'request', gen_random_uuid()), 5,
		'tenant-' || n % 20, gen_random_uuid(), gen_random_uuid()
	from generate_series(first, last) n, lateral (
		select string_agg(replace(encode(sha512(concat(n, i, random())::bytea), 'base64'), e'\n', ''), '') as data
		from generate_series(1, 5) i) random;
end
$$`

const writeProcedure = `create procedure bench_write(first int, last int, rows int) language plpgsql as $$
begin
	for n in first .. last by rows loop
		perform bench_insert(n, n + rows - 1);
		commit;
	end loop;
end
$$`

// database is the database of one part of the benchmark, with the outbox, slots and a backlog. The slots are made before the
// backlog is written.
type database struct {
	*bench
	name string
	conn *pgx.Conn
}

// newDatabase creates a database, and a slot and a checkpoint for each of the connectors named.
func (b *bench) newDatabase(ctx context.Context, name string, connectors ...string) (_ *database, err error) {
	d := &database{bench: b, name: name}
	if d.conn, err = process.CreateDatabase(ctx, b.postgres, name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close(ctx))
		}
	}()
	for _, connector := range connectors {
		if err := d.initialise(ctx, connector); err != nil {
			return nil, err
		}
	}
	for _, statement := range []string{insertFunction, writeProcedure} {
		if _, err := d.conn.Exec(ctx, statement); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// initialise has the product create tables, publication, slot and checkpoint.
func (d *database) initialise(ctx context.Context, connector string) error {
	if err := d.configure(connector, "type: stdout"); err != nil { // the destination is not there yet
		return err
	}
	out, err := exec.CommandContext(ctx, d.cli, "init", "--config", d.config(connector)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("init: %w\n%s", err, out)
	}
	return nil
}

// configure writes a connector's configuration.
func (d *database) configure(connector, sink string) error {
	text := fmt.Sprintf(`name: %[1]s
source: {dsn: "%[2]s", slot: %[1]s, publication: %[3]s}
sinks: [{name: events, %[4]s}]
http: {listen: ""}
`, connector, d.postgres.DSN(d.name), publication, sink)
	return os.WriteFile(d.config(connector), []byte(text), 0o600)
}

func (d *database) config(connector string) string {
	return filepath.Join(d.dir, d.name+"-"+connector+".yaml")
}

// close drops the database and its slots.
func (d *database) close(ctx context.Context) error {
	_ = d.conn.Close(ctx) // dropping the database closes it, too
	return process.DropDatabase(ctx, d.postgres, d.name)
}

// backlog is what waits in the WAL when a run begins.
type backlog struct {
	events       int
	payloadBytes int // on average
	// last is an LSN within the last transaction: once the connector has confirmed more, it has confirmed the whole backlog.
	last pglogrepl.LSN
	// end is an LSN behind the last transaction. pg_recvlogical ends when it meets the marker, which lies behind it.
	end pglogrepl.LSN
}

// writeBacklog writes events, one transaction after another, each with the given number of rows.
func (d *database) writeBacklog(ctx context.Context, events, rows int) (backlog, error) {
	process.Note("%s: writing %d events, %d a transaction", d.name, events, rows)
	b := backlog{events: events}
	// This saves time. The WAL is the same as if each commit waited for the disk.
	if _, err := d.conn.Exec(ctx, "set synchronous_commit = off"); err != nil {
		return b, err
	}
	if events > rows {
		if _, err := d.conn.Exec(ctx, "call bench_write(1, $1, $2)", events-rows, rows); err != nil {
			return b, fmt.Errorf("write backlog: %w", err)
		}
	}
	err := pgx.BeginFunc(ctx, d.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select bench_insert($1, $2)", events-rows+1, events); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "select pg_current_wal_insert_lsn()").Scan(&b.last)
	})
	if err != nil {
		return b, fmt.Errorf("write backlog: %w", err)
	}
	if err := d.conn.QueryRow(ctx, "select pg_current_wal_insert_lsn()").Scan(&b.end); err != nil {
		return b, err
	}
	for _, statement := range []string{
		"reset synchronous_commit",
		"select pg_logical_emit_message(true, 'bench', 'end of the backlog')",
		"vacuum analyze event_outbox", // or autovacuum does it in the middle of a run
	} {
		if _, err := d.conn.Exec(ctx, statement); err != nil {
			return b, fmt.Errorf("%s: %w", statement, err)
		}
	}
	var rowsFound int
	err = d.conn.QueryRow(ctx, "select count(*), avg(octet_length(payload::text))::int from event_outbox").Scan(&rowsFound, &b.payloadBytes)
	if err == nil && rowsFound != events {
		err = fmt.Errorf("the backlog has %d rows, not %d", rowsFound, events)
	}
	return b, err
}

// settle brings server and machine to rest before a run.
func (d *database) settle(ctx context.Context) error {
	if _, err := d.conn.Exec(ctx, "checkpoint"); err != nil {
		return err
	}
	return awaitQuiet(ctx, d.others/2, d.patience)
}
