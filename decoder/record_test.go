package decoder

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

var record = flag.String("record", "", "record testdata/pgN.hex anew from these major versions of PostgreSQL, such as 14,15,16,17,18")

// scenario holds the statements that are run on one connection. Each is a transaction by itself unless it begins one.
type scenario struct {
	name       string
	statements []string
}

const (
	insertInto = "insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload) values "
	row1       = "('01970000-0000-7000-8000-000000000001', 'order', '1', 'order.placed', '{}')"
	row2       = "('01970000-0000-7000-8000-000000000002', 'order', '2', 'order.placed', '{}')"
	row3       = "('01970000-0000-7000-8000-000000000003', 'order', '3', 'order.placed', '{}')"
)

var scenarios = []scenario{
	{"columns by default", []string{insertInto + row1}},
	{"all columns", []string{`insert into event_outbox values ('01970000-0000-7000-8000-000000000004', 'Bestellung/Übung', '日本-1',
		'order.paid', 32767, '{"n": 1, "s": "ü🙂"}', '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}',
		'2026-11-24 03:58:21.123456+05:45', 2147483647, 'acme', 'c1', '')`}},
	{"json kept byte for byte", []string{insertInto + `('01970000-0000-7000-8000-000000000005', 'order', '1', 'x', E'{"a" : 1,\n "a":2, "z": "\\u0000\\ud800",
		"big": 1e400, "id": 9007199254740993, "float": 0.10000000000000000000000000000000000001}')`}},
	{"jsonb as PostgreSQL writes it", []string{`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, metadata, id)
		values ('order', '1', 'x', 'null', '{"b": 9007199254740993, "a": 1e400, "ä": "\u00e9\n"}', '01970000-0000-7000-8000-000000000006')`}},
	{"times", []string{`insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
		select ('01970000-0000-7000-8000-0000000001' || to_char(i, 'FM00'))::uuid, 'time', t, 'x', '{}', t::timestamptz
		from unnest(array['infinity', '-infinity', '2000-01-01 00:00:00+00', '1999-12-31 23:59:59.999999+00', '1890-01-01 00:00:00 Europe/Amsterdam',
		'0044-03-15 12:00:00.5+00 BC', '4714-11-24 00:00:00+00 BC', '0001-01-01 00:00:00+00', '12345-06-07 08:09:10.001+00',
		'294276-12-31 23:59:59.999999+00', 'epoch']) with ordinality as u (t, i)`}},
	{"one transaction, several statements", []string{"begin", insertInto + row1 + "," + row2, insertInto + row3, "commit"}},
	{"savepoints", []string{
		"begin", insertInto + row1, "savepoint a", insertInto + row2, "rollback to a", "savepoint b", insertInto + row3,
		"release b", "savepoint c", insertInto + row2, "rollback to c", "commit",
	}},
	{"rolled back", []string{"begin", insertInto + row1, "rollback"}},
	{"two relations", []string{
		"begin", insertInto + row1, "insert into other values (1, 'x')", insertInto + row2,
		"insert into legacy.events (kind, ref, body) values ('order', 7, 'x')", "insert into other values (2, null)", insertInto + row3, "commit",
	}},
	{"column added and dropped in mid-transaction", []string{
		"begin", insertInto + row1, "alter table event_outbox add column extra jsonb default '{\"x\": 1}'",
		insertInto + row2, "alter table event_outbox drop column extra", insertInto + row3, "commit",
	}},
	{"table renamed", []string{
		"alter table event_outbox rename to renamed", strings.Replace(insertInto, "event_outbox", "renamed", 1) + row1,
		"alter table renamed rename to event_outbox",
	}},
	{"a producer with settings of its own", []string{
		"set datestyle = 'SQL, DMY'", "set timezone = 'Asia/Kathmandu'", "set bytea_output = 'escape'",
		"set client_encoding = 'LATIN1'", `insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
		values ('01970000-0000-7000-8000-000000000007', 'order', '1', 'x', '{}', '03/02/2025 09:50:06.789')`,
	}},
	{"mapped table", []string{`insert into legacy.events (kind, ref, type, version, body, notes, at, blob) values
		('order', 42, 'created', 3, '\x00ff7b7d', 'free text', '2026-11-24 03:58:21.5', '{}'),
		('user', -1, 'deleted', null, null, '', '0044-03-15 12:00:00 BC', null),
		('user', 9223372036854775807, 'created', 1, '', null, 'infinity', '[1]')`}},
	{"rows that are no events", []string{"insert into legacy.events (kind) values (null)", "insert into legacy.events (ref) values (1)"}},
	{"values out of line", []string{insertInto + `('01970000-0000-7000-8000-000000000008', 'order', '1', 'x',
		(select json_agg(md5(i::text)) from generate_series(1, 80) i))`}},
	{"not inserts", []string{
		"update other set a = a + 10", "delete from other", "truncate other",
		"select pg_logical_emit_message(true, 'outbox', 'in the transaction')", "select pg_logical_emit_message(false, 'outbox', 'outside of it')",
		insertInto + row2 + " on conflict do nothing", "select",
	}},
	{"with an origin", []string{
		"select pg_replication_origin_create('elsewhere')", "select pg_replication_origin_session_setup('elsewhere')",
		"begin", "select pg_replication_origin_xact_setup('0/AABBCC', '2026-11-24 00:00:00+00')", insertInto + row1, "commit",
	}},
	{"payload becomes jsonb", []string{
		"alter table event_outbox alter column payload type jsonb using 'null'",
		insertInto + `('01970000-0000-7000-8000-000000000009', 'order', '1', 'x', '{"b":1,"a":2}')`,
	}},
	{"column retyped", []string{
		"alter table event_outbox alter column event_version drop default",
		"alter table event_outbox alter column event_version type text", "alter table event_outbox alter column event_version set default 'v2'",
		insertInto + row1,
	}},
	{"columns lost", []string{
		"alter table event_outbox rename column payload to body", "alter table event_outbox drop column tenant_id cascade",
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, body) values ('order', '1', 'x', '{}')",
	}},
}

// mappedTable is the table that -record makes beside event_outbox.
const mappedTable = `
create schema legacy;
create type legacy.type as enum ('created', 'deleted');
create table legacy.events (blob json, at timestamp, kind varchar(20), ref bigint, type legacy.type default 'created',
	version smallint, body bytea, notes text, seq bigserial);
create table other (a int primary key, b text);
alter table event_outbox drop constraint event_outbox_pkey;
create publication recorded for table event_outbox, legacy.events, other;`

// hostile gives a role settings that differ from ours as much as possible.
const hostile = `
alter role postgres set datestyle = 'SQL, DMY';
alter role postgres set timezone = 'Asia/Kathmandu';
alter role postgres set bytea_output = 'escape';
alter role postgres set intervalstyle = 'sql_standard';
alter role postgres set extra_float_digits = -15;`

// TestRecord writes what real servers send into files, for the tests that use no server:
//
//	go test ./decoder -run TestRecord -record 14,15,16,17,18 && go test ./decoder -run TestGolden -update
func TestRecord(t *testing.T) {
	if *record == "" {
		t.Skip("only with -record")
	}
	for version := range strings.SplitSeq(*record, ",") {
		server := pgtest.Start(t, servers.PostgresOptions{Version: version, Settings: servers.NoSync()})
		dsn := server.DSN("postgres")
		if err := migrations.Apply(t.Context(), dsn, migrations.Options{}); err != nil {
			t.Fatal(err)
		}
		r, err := recordFrom(t.Context(), dsn)
		if err != nil {
			t.Fatalf("PostgreSQL %s: %v", version, err)
		}
		r.version = server.Version()
		if err := r.write(filepath.Join("testdata", "pg"+version+".hex")); err != nil {
			t.Fatal(err)
		}
		t.Logf("PostgreSQL %s: %d messages", r.version, len(r.messages))
	}
}

const recordSlot = "recorded"

func recordFrom(ctx context.Context, dsn string) (*recording, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, mappedTable+hostile); err != nil {
		return nil, err
	}
	r := &recording{comments: map[int]string{}}
	err = conn.QueryRow(ctx, "select 'event_outbox'::regclass::oid, 'legacy.events'::regclass::oid").Scan(&r.outbox, &r.mapped)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "select pg_create_logical_replication_slot($1, 'pgoutput')", recordSlot); err != nil {
		return nil, err
	}
	for _, s := range scenarios {
		if err := s.run(ctx, dsn); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := copyRows(ctx, dsn); err != nil {
		return nil, fmt.Errorf("copy: %w", err)
	}
	return r, r.stream(ctx, dsn)
}

// marker is a logical message in the stream that names the part that follows.
const marker = "scenario"

func (s scenario) run(ctx context.Context, dsn string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, statement := range append([]string{mark(s.name)}, s.statements...) {
		if _, err := conn.PgConn().Exec(ctx, statement).ReadAll(); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

func mark(name string) string {
	return "select pg_logical_emit_message(false, '" + marker + "', '" + name + "')"
}

func copyRows(ctx context.Context, dsn string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, mark("copy")); err != nil {
		return err
	}
	_, err = conn.PgConn().CopyFrom(ctx, strings.NewReader("order\t1\t\\x01\norder\t2\t\\N\norder\t3\t\\x03\n"),
		`copy legacy.events (kind, ref, body) from stdin`)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, mark("end"))
	return err
}

// stream reads the stream up to the last marker, with the settings that replication uses.
func (r *recording) stream(ctx context.Context, dsn string) error {
	config, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return err
	}
	maps.Copy(config.RuntimeParams, map[string]string{
		"replication": "database", "client_encoding": "UTF8", "DateStyle": "ISO", "TimeZone": "UTC", "IntervalStyle": "postgres",
		"bytea_output": "hex", "extra_float_digits": "1",
	})
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	err = pglogrepl.StartReplication(ctx, conn, recordSlot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'recorded'", "messages 'true'"},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		message, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		data, ok := message.(*pgproto3.CopyData)
		if !ok {
			return fmt.Errorf("unexpected message %T", message)
		}
		if data.Data[0] != pglogrepl.XLogDataByteID {
			continue
		}
		x, err := pglogrepl.ParseXLogData(data.Data[1:])
		if err != nil {
			return err
		}
		logical, err := pglogrepl.Parse(x.WALData)
		if err != nil {
			return err
		}
		if m, ok := logical.(*pglogrepl.LogicalDecodingMessage); ok && m.Prefix == marker {
			if string(m.Content) == "end" {
				return nil
			}
			r.comments[len(r.messages)] = string(m.Content)
			continue
		}
		r.messages = append(r.messages, bytes.Clone(x.WALData))
	}
}
