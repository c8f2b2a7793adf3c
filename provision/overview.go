package provision

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// ServerOverview is what the server's catalogs and statistics say of an outbox at one moment. A login without any right can read all of it,
// except what Hidden tells. Times are by PostgreSQL's clock.
type ServerOverview struct {
	Now        time.Time
	Version    string // such as 15.8
	Database   string
	User       string
	InRecovery bool // it is a standby of PostgreSQL
	// Written is how far the server has written its WAL, or how far a standby has replayed it.
	Written pglogrepl.LSN
	// SlotLimit is max_slot_wal_keep_size in bytes, or -1 if a slot may keep any amount of WAL.
	SlotLimit int64
	Slot      *SlotOverview // nil if the server has no slot of this name
	// Relations are the outbox and the tables of the ledger that exist, by schema.name.
	Relations map[string]RelationOverview
	// TimeIndexed says that the outbox has an index that begins with its created_at, which is of type timestamptz.
	TimeIndexed bool
	// HasState says that outbox_processors has the column state.
	HasState bool
	// Holders are transactions that are open for longer than a moment, and what else keeps the server from forgetting WAL or from vacuuming
	// away deleted rows. The oldest comes first.
	Holders []Holder
	// Hidden says that the login does not see the transactions of other roles.
	Hidden bool
}

// SlotOverview is a slot as pg_replication_slots shows it.
type SlotOverview struct {
	Plugin         string // empty for a physical slot
	Database       string
	ActivePID      int    // of the walsender that streams from it; 0 if there is none
	ClientAddress  string // of whoever streams; empty if that is not known
	WALStatus      string // reserved, extended, unreserved or lost
	SafeWALSize    *int64 // how many bytes may still be written before the slot is in danger; nil if that is not limited, or if it is lost
	Invalidated    string // why the slot was invalidated; empty if it was not
	RestartLSN     pglogrepl.LSN
	ConfirmedFlush pglogrepl.LSN
	InactiveSince  *time.Time // PostgreSQL 17 and later
}

// RelationOverview is a table that exists.
type RelationOverview struct {
	OID uint32
	// Readable says that the login may select from it.
	Readable bool
}

// HolderKind is a kind of what holds something back.
type HolderKind string

// The kinds.
const (
	HolderTransaction HolderKind = "transaction"          // an open transaction
	HolderPrepared    HolderKind = "prepared_transaction" // one that waits for COMMIT PREPARED
	HolderSlot        HolderKind = "slot"                 // another replication slot, or a standby's feedback by one
)

// Holder keeps the server from vacuuming away rows that were deleted after it has begun. A transaction also keeps the WAL since then for
// each logical slot.
type Holder struct {
	Kind HolderKind
	// Name is the application's name of a session, or the name of the prepared transaction or the slot.
	Name  string
	User  string
	PID   int
	State string     // of a session, such as "idle in transaction"
	Since *time.Time // nil if that is not known
	// Transactions is how many transactions have begun since.
	Transactions int64
}

// holderAge is how long a transaction has to be open before it is told.
const holderAge = 5 * time.Minute

// holderTransactions is how many transactions must have begun after a slot's horizon before the slot is told.
const holderTransactions = 1_000_000

const selectHolders = `select * from (
	select 'transaction', coalesce(application_name, ''), coalesce(usename::text, ''), pid, coalesce(state, ''), xact_start,
			greatest(age(backend_xmin), age(backend_xid), 0)::bigint as behind
		from pg_stat_activity where pid <> pg_backend_pid() and datname is not null and backend_type <> 'walsender'
			and xact_start < now() - $2::interval and (backend_xmin is not null or backend_xid is not null)
	union all
	select 'prepared_transaction', gid, owner::text, 0, '', prepared, age(transaction)::bigint from pg_prepared_xacts where prepared < now() - $2::interval
	union all
	select 'slot', slot_name::text, '', coalesce(active_pid, 0), '', null, age(xmin)::bigint
		from pg_replication_slots where slot_name <> $1 and age(xmin) > $3) h (kind, name, who, pid, state, since, behind)
	order by since nulls last, behind desc limit 3`

// ReadOverview reads the catalogs, in one round trip after the statements are prepared. It takes no lock.
func ReadOverview(ctx context.Context, conn *pgx.Conn, s Source) (ServerOverview, error) {
	o := ServerOverview{Relations: map[string]RelationOverview{}}
	var b pgx.Batch
	b.Queue(`select clock_timestamp(), split_part(current_setting('server_version'), ' ', 1), current_database(), current_user::text, pg_is_in_recovery(),
			coalesce(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, '0/0'),
			coalesce((select setting::bigint * 1024 * 1024 from pg_settings where name = 'max_slot_wal_keep_size' and setting::bigint >= 0), -1),
			not pg_has_role('pg_read_all_stats', 'usage') and exists (select from pg_stat_activity where usesysid <> (select oid from pg_roles where rolname = current_user)
				and backend_type = 'client backend')`).QueryRow(func(row pgx.Row) error {
		return row.Scan(&o.Now, &o.Version, &o.Database, &o.User, &o.InRecovery, &o.Written, &o.SlotLimit, &o.Hidden)
	})
	// Columns that only newer servers have are read from the row as JSON.
	b.Queue(`select coalesce(plugin, ''), coalesce(database, ''), coalesce(active_pid, 0),
			coalesce((select host(client_addr) from pg_stat_activity where pid = active_pid), ''), coalesce(wal_status, ''), safe_wal_size,
			coalesce(j ->> 'invalidation_reason', case when wal_status = 'lost' then 'wal_status=lost' when j ->> 'conflicting' = 'true' then 'conflicting' end, ''),
			coalesce(restart_lsn, '0/0'), coalesce(confirmed_flush_lsn, '0/0'), (j ->> 'inactive_since')::timestamptz
		from pg_replication_slots s, to_jsonb(s) as j where slot_name = $1`, s.Slot).Query(func(rows pgx.Rows) error {
		var slot SlotOverview
		_, err := pgx.ForEachRow(rows, []any{
			&slot.Plugin, &slot.Database, &slot.ActivePID, &slot.ClientAddress, &slot.WALStatus, &slot.SafeWALSize, &slot.Invalidated,
			&slot.RestartLSN, &slot.ConfirmedFlush, &slot.InactiveSince,
		}, func() error {
			o.Slot = &slot
			return nil
		})
		return err
	})
	schema, name := s.tableName()
	b.Queue(`select n.nspname || '.' || c.relname, c.oid, has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.relkind in ('r', 'p') and (n.nspname = $1 and c.relname = any ($2) or n.nspname = $3 and c.relname = $4)`,
		s.LedgerSchema, append(ledgerTables(), "outbox_migrations", "outbox_retention"), schema, name).Query(func(rows pgx.Rows) error {
		var name string
		var r RelationOverview
		_, err := pgx.ForEachRow(rows, []any{&name, &r.OID, &r.Readable}, func() error {
			o.Relations[name] = r
			return nil
		})
		return err
	})
	b.Queue(`select exists (select from pg_attribute a join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace
		where nspname = $1 and relname = 'outbox_processors' and attname = 'state' and not attisdropped)`, s.LedgerSchema).QueryRow(func(row pgx.Row) error {
		return row.Scan(&o.HasState)
	})
	b.Queue(`select exists (select from pg_index i join pg_class x on x.oid = indexrelid join pg_am m on m.oid = x.relam
			join pg_attribute a on a.attrelid = indrelid and a.attnum = indkey[0] join pg_class c on c.oid = indrelid join pg_namespace n on n.oid = c.relnamespace
		where nspname = $1 and c.relname = $2 and attname = $3 and atttypid = 'timestamptz'::regtype and amname = 'btree' and indisvalid and indpred is null)`,
		schema, name, s.Columns.CreatedAt).QueryRow(func(row pgx.Row) error { return row.Scan(&o.TimeIndexed) })
	b.Queue(selectHolders, s.Slot, holderAge, holderTransactions).Query(func(rows pgx.Rows) error {
		var h Holder
		_, err := pgx.ForEachRow(rows, []any{&h.Kind, &h.Name, &h.User, &h.PID, &h.State, &h.Since, &h.Transactions}, func() error {
			o.Holders = append(o.Holders, h)
			return nil
		})
		return err
	})
	if err := conn.SendBatch(ctx, &b).Close(); err != nil {
		return ServerOverview{}, fmt.Errorf("read the server's catalogs: %w", err)
	}
	return o, nil
}

// ledgerTable returns what the overview knows of a table of the ledger. ok is false if the table does not exist.
func (o *ServerOverview) ledgerTable(s Source, name string) (r RelationOverview, ok bool) {
	r, ok = o.Relations[s.LedgerSchema+"."+name]
	return r, ok
}

// Sizes are the sizes on disk, in bytes, with indexes and TOAST. A table that does not exist has 0, and one that could not be read has none.
type Sizes struct {
	Outbox, Log, Parked *int64
	// LogFrom is where the oldest partition of the log begins, and LogPartitions how many partitions there are.
	LogFrom       *time.Time
	LogPartitions int
	// OutboxFrom is when the oldest event of the outbox was created; nil if the outbox is empty or has no index by which that is found at once.
	OutboxFrom *time.Time
	// ParkedDeadRows counts the row versions of outbox_parked that were deleted and not vacuumed away yet; it is the server's estimate.
	ParkedDeadRows int64
	ParkedVacuumed *time.Time
	// Unread says what could not be read. A person may have locked a table, to rewrite it for example; the others are known all the same.
	Unread []UnreadSize
}

// UnreadSize is something of Sizes that could not be read, and why.
type UnreadSize struct {
	What string
	Err  error
}

// sizesPatience bounds how long ReadSizes waits for the lock of each table, and sizesTimeout how long each of its statements may take.
const (
	sizesPatience = 200 * time.Millisecond
	sizesTimeout  = time.Second
)

const selectSize = `with recursive tree (oid) as (
		select oid from pg_class where oid = $1
		union all select i.inhrelid from pg_inherits i join tree t on i.inhparent = t.oid)
	select coalesce(sum(pg_total_relation_size(oid)), 0)::bigint from tree`

const selectLogRange = `select count(*), min(substring(pg_get_expr(c.relpartbound, c.oid) from 'FROM \(''([^'']+)''\)')::timestamptz)
	from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = $1`

// ReadSizes reads how much the outbox and the ledger occupy, and how far back they go. Each table is read by itself.
func ReadSizes(ctx context.Context, conn *pgx.Conn, s Source, o *ServerOverview) (z Sizes) {
	outbox := o.Relations[s.Table]
	log, _ := o.ledgerTable(s, "outbox_delivery_log")
	parked, _ := o.ledgerTable(s, "outbox_parked")
	read := func(what string, statements func(*pgx.Batch)) {
		err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			// The limits are set before the batch is sent: to prepare its statements, the server waits for the lock of the tables that they name.
			_, err := tx.Exec(ctx, fmt.Sprintf("set local lock_timeout = %d; set local statement_timeout = %d", sizesPatience.Milliseconds(), sizesTimeout.Milliseconds()))
			if err != nil {
				return err
			}
			var b pgx.Batch
			statements(&b)
			return tx.SendBatch(ctx, &b).Close()
		})
		if err != nil {
			z.Unread = append(z.Unread, UnreadSize{what, err})
		}
	}
	size := func(b *pgx.Batch, oid uint32, into **int64) {
		b.Queue(selectSize, oid).QueryRow(func(row pgx.Row) error { return row.Scan(into) })
	}
	read("the size of the outbox", func(b *pgx.Batch) { size(b, outbox.OID, &z.Outbox) })
	if o.TimeIndexed && outbox.Readable && z.Outbox != nil {
		read("how far back the outbox goes", func(b *pgx.Batch) {
			at := pgx.Identifier{s.Columns.CreatedAt}.Sanitize()
			b.Queue(fmt.Sprintf("select %[1]s from %[2]s where %[1]s > '-infinity' and %[1]s < 'infinity' order by %[1]s limit 1", at, s.table())).Query(func(rows pgx.Rows) error {
				_, err := pgx.ForEachRow(rows, []any{&z.OutboxFrom}, func() error { return nil })
				return err
			})
		})
	}
	read("the size of the log", func(b *pgx.Batch) {
		b.Queue(selectLogRange, log.OID).QueryRow(func(row pgx.Row) error { return row.Scan(&z.LogPartitions, &z.LogFrom) })
		size(b, log.OID, &z.Log)
	})
	read("the size of outbox_parked", func(b *pgx.Batch) {
		b.Queue("select n_dead_tup, greatest(last_vacuum, last_autovacuum) from pg_stat_all_tables where relid = $1", parked.OID).
			Query(func(rows pgx.Rows) error {
				_, err := pgx.ForEachRow(rows, []any{&z.ParkedDeadRows, &z.ParkedVacuumed}, func() error { return nil })
				return err
			})
		size(b, parked.OID, &z.Parked)
	})
	return z
}

// Readable returns the tables of the ledger that the login may read.
func (o *ServerOverview) Readable(s Source) map[string]bool {
	readable := map[string]bool{}
	for _, name := range append(ledgerTables(), "outbox_migrations", "outbox_retention") {
		if r, ok := o.ledgerTable(s, name); ok && r.Readable {
			readable[name] = true
		}
	}
	return readable
}
