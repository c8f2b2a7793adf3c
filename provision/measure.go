package provision

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// measureLockPatience bounds how long a measurement waits for the lock of a table whose size it asks.
	measureLockPatience = 200 * time.Millisecond
	// measureTimeout bounds each statement of a measurement.
	measureTimeout = 3 * time.Second
	// oldestTimeout bounds the look for the oldest row. The index may begin with millions of entries of deleted rows, which a transaction that is
	// open for long keeps from being removed, and each look has to pass all of them.
	oldestTimeout = 100 * time.Millisecond
)

// MeasureQuery says what Measure reads.
type MeasureQuery struct {
	// ApplicationName is that of the process whose connections are counted.
	ApplicationName string
	// Storage asks for sizes, and Oldest, which needs Storage, for the oldest row. Both cost the more the more partitions there are.
	Storage, Oldest bool
	// TimeIndexed is what the last measurement has found; nil if there was none. Then one more round trip looks for it.
	TimeIndexed *bool
}

// Measurement is what the server's catalogs and statistics say of an outbox, as far as it changes all the time. What the server or the
// login's rights do not tell is nil.
type Measurement struct {
	// Spilled is how much of transactions that were too large for its memory the server has written to disk for the slot, in bytes.
	Spilled *int64
	Plugin  *string
	// Failover and Synced are those of PostgreSQL 17 and later.
	Failover, Synced *bool
	// SyncStandbys counts the standbys that ask this server for copies of its failover slots. It is nil if the slot is none.
	SyncStandbys *int64
	// XminAge is how many transactions have begun since the oldest one that vacuum has to spare deleted rows for.
	XminAge *int64
	// Connections counts the connections of the process by their state in pg_stat_activity.
	Connections map[string]int
	// ParkedAutovacuumedAt is when an autovacuum of outbox_parked has last ended.
	ParkedAutovacuumedAt *time.Time
	// TimeIndexed is true if the outbox has a valid index that begins with its created_at, and if the login may read the table.
	TimeIndexed *bool
	// Storage is nil unless it was asked for, and if a lock or a timeout has kept it. StorageTook is how long the server was at work for it.
	Storage     *Storage
	StorageTook time.Duration
	// OldestRefused is true if the oldest row was looked for, and a lock or the timeout has ended that.
	OldestRefused bool
}

// Storage says how much the tables take on disk, in bytes with indexes and TOAST, and all partitions.
type Storage struct {
	Outbox *int64
	Ledger map[string]int64 // by the table's name
	// Oldest is when the oldest row of the outbox was created. It is nil if there is no row, no index by which it is found, or no time to
	// find it.
	Oldest *time.Time
}

// Sender is a database that takes several statements in one round trip: a connection, a pool or a transaction.
type Sender interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// selectSlotMeasures counts the connections of workers that copy slots to standbys, which name themselves so, perhaps after cluster_name.
// Everybody may see that name. Whether a standby has its copy can only be asked there.
const selectSlotMeasures = `select s.spill_bytes, r.plugin::text, (j ->> 'failover')::boolean, (j ->> 'synced')::boolean,
		case when (j ->> 'failover')::boolean then (select count(*) from pg_stat_activity where application_name like '%slotsync worker') end
	from pg_replication_slots r cross join to_jsonb(r) as j left join pg_stat_replication_slots s using (slot_name) where slot_name = $1`

// selectXminAge sees the horizons of all sessions, also without pg_read_all_stats. A session of another database holds nothing of ours, a
// vacuum holds nothing, and an autovacuum has no user.
const selectXminAge = `select coalesce(max(behind), 0)::bigint from (
	select greatest(age(backend_xmin), age(backend_xid)) from pg_stat_activity
		where pid <> pg_backend_pid() and (datid is null or datname = current_database() and usesysid is not null)
			and pid not in (select pid from pg_stat_progress_vacuum)
	union all select age(transaction) from pg_prepared_xacts where database = current_database()
	union all select age(xmin) from pg_replication_slots) h (behind)`

// selectConnections counts the connections for SQL. The login does not see the type of others' connections, and with it the state.
const selectConnections = `select coalesce(state, ''), count(*) from pg_stat_activity
	where application_name = $1 and backend_type = 'client backend' group by state`

const selectTimeIndexed = `select exists (select from pg_index i join pg_class x on x.oid = indexrelid join pg_am m on m.oid = x.relam
		join pg_attribute a on a.attrelid = indrelid and a.attnum = indkey[0] join pg_class c on c.oid = indrelid join pg_namespace n on n.oid = c.relnamespace
	where nspname = $1 and c.relname = $2 and attname = $3 and atttypid in ('timestamptz'::regtype, 'timestamp'::regtype) and amname = 'btree' and indisvalid
		and indpred is null and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'))`

// selectStorage needs no right on the tables. It waits for nobody but who has locked one of them exclusively.
const selectStorage = `with recursive tree (name, is_outbox, oid) as (
		select relname::text, nspname = $3 and relname = $4, c.oid from pg_class c join pg_namespace n on n.oid = relnamespace
			where relkind in ('r', 'p') and (nspname = $1 and relname = any ($2) or nspname = $3 and relname = $4)
		union all select name, is_outbox, inhrelid from tree join pg_inherits on inhparent = tree.oid)
	select name, is_outbox, sum(coalesce(pg_total_relation_size(oid), 0))::bigint from tree group by name, is_outbox`

// Measure reads all that q asks for in one round trip, after the statements are prepared.
func Measure(ctx context.Context, db Sender, s Source, q MeasureQuery) (Measurement, error) {
	m := Measurement{TimeIndexed: q.TimeIndexed}
	if q.Oldest && m.TimeIndexed == nil {
		var b pgx.Batch
		queueTimeIndexed(&b, s, &m)
		if err := db.SendBatch(ctx, &b).Close(); err != nil {
			return Measurement{}, fmt.Errorf("look for an index on the time: %w", err)
		}
	}
	findsOldest := q.Oldest && *m.TimeIndexed // the batch finds anew whether there is an index, for the next time
	// All statements of the batch are one transaction, for which set_config sets.
	var b pgx.Batch
	b.Queue("select set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)", milliseconds(measureTimeout), milliseconds(measureLockPatience))
	queueStatistics(&b, s, q, &m)
	queueTimeIndexed(&b, s, &m)
	storage := storageReader{m: &m}
	if q.Storage {
		storage.queueSizes(&b, s)
	}
	if findsOldest { // at the end, because an error ends the batch
		storage.queueOldest(&b, s)
	}
	sent := time.Now()
	err := db.SendBatch(ctx, &b).Close()
	_, refused := errors.AsType[*pgconn.PgError](err)
	switch {
	case refused && storage.begun():
		// Somebody has locked a table, it has taken too long, or a table or a right has just gone. All the rest is known.
		m.StorageTook, m.OldestRefused, err = time.Since(sent), m.Storage != nil, nil
	case refused && findsOldest:
		// The same, while the statement that names the outbox was prepared, before anything was asked.
		q.Oldest = false
		m, err = Measure(ctx, db, s, q)
		m.OldestRefused = true
		return m, err
	}
	if err != nil {
		return Measurement{}, fmt.Errorf("measure the database: %w", err)
	}
	return m, nil
}

func milliseconds(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }

func queueTimeIndexed(b *pgx.Batch, s Source, m *Measurement) {
	schema, name := s.tableName()
	b.Queue(selectTimeIndexed, schema, name, s.Columns.CreatedAt).QueryRow(func(row pgx.Row) error {
		return row.Scan(&m.TimeIndexed)
	})
}

func queueStatistics(b *pgx.Batch, s Source, q MeasureQuery, m *Measurement) {
	b.Queue(selectSlotMeasures, s.Slot).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&m.Spilled, &m.Plugin, &m.Failover, &m.Synced, &m.SyncStandbys}, func() error { return nil })
		return err
	})
	b.Queue(selectXminAge).QueryRow(func(row pgx.Row) error { return row.Scan(&m.XminAge) })
	b.Queue(selectConnections, q.ApplicationName).Query(func(rows pgx.Rows) error {
		m.Connections = map[string]int{}
		var state string
		var n int
		_, err := pgx.ForEachRow(rows, []any{&state, &n}, func() error {
			m.Connections[state] = n
			return nil
		})
		return err
	})
	b.Queue(`select pg_stat_get_last_autovacuum_time(c.oid) from pg_class c join pg_namespace n on n.oid = relnamespace
		where nspname = $1 and relname = 'outbox_parked'`, s.LedgerSchema).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&m.ParkedAutovacuumedAt}, func() error { return nil })
		return err
	})
}

// storageReader reads what has its costs, and what a lock or a timeout may keep.
type storageReader struct {
	m     *Measurement
	began time.Time // by the server's clock; zero before all other answers have come
}

func (r *storageReader) queueSizes(b *pgx.Batch, s Source) {
	b.Queue("select clock_timestamp()").QueryRow(func(row pgx.Row) error { return row.Scan(&r.began) })
	schema, name := s.tableName()
	b.Queue(selectStorage, s.LedgerSchema, ledgerTables(), schema, name).Query(r.sizes)
	b.Queue("select clock_timestamp()").QueryRow(r.took)
}

func (r *storageReader) queueOldest(b *pgx.Batch, s Source) {
	b.Queue("select set_config('statement_timeout', $1, true)", milliseconds(oldestTimeout))
	at := pgx.Identifier{s.Columns.CreatedAt}.Sanitize()
	b.Queue(fmt.Sprintf("select extract(epoch from %[1]s)::float8 from %[2]s where %[1]s > '-infinity' and %[1]s < 'infinity' order by %[1]s limit 1", at, s.table())).
		Query(r.oldest)
	b.Queue("select clock_timestamp()").QueryRow(r.took)
}

func (r *storageReader) begun() bool { return !r.began.IsZero() }

func (r *storageReader) sizes(rows pgx.Rows) error {
	st := &Storage{Ledger: map[string]int64{}}
	var name string
	var isOutbox bool
	var size int64
	_, err := pgx.ForEachRow(rows, []any{&name, &isOutbox, &size}, func() error {
		if isOutbox {
			st.Outbox = new(size)
		} else {
			st.Ledger[name] = size
		}
		return nil
	})
	if err == nil {
		r.m.Storage = st
	}
	return err
}

func (r *storageReader) oldest(rows pgx.Rows) error {
	var seconds float64
	_, err := pgx.ForEachRow(rows, []any{&seconds}, func() error {
		r.m.Storage.Oldest = new(time.UnixMicro(int64(seconds * 1e6)))
		return nil
	})
	return err
}

func (r *storageReader) took(row pgx.Row) error {
	var now time.Time
	err := row.Scan(&now)
	r.m.StorageTook = now.Sub(r.began)
	return err
}
