package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// DeadRows is how far vacuum is with the deleted rows of a table and its partitions. The numbers are estimates of the server's.
type DeadRows struct {
	Table string `json:"table"` // schema.name
	Dead  int64  `json:"dead_rows"`
	Live  int64  `json:"live_rows"`
	// VacuumedAt is when a vacuum last ended, nil for never. It, and AutovacuumOff, is of the partition with the most deleted rows.
	VacuumedAt    *time.Time `json:"vacuumed_at"`
	AutovacuumOff bool       `json:"autovacuum_off"`
	// Holder is who keeps vacuum from removing rows that were deleted after it has begun; nil if the login sees nobody.
	Holder *VacuumHolder `json:"holder,omitempty"`
	// At is when all this was read, by the server's clock.
	At time.Time `json:"at"`
}

// VacuumHolder has the oldest snapshot or transaction of those that vacuum has to spare the rows for.
type VacuumHolder struct {
	Kind HolderKind `json:"kind"`
	// Name is that of the prepared transaction, the slot or the replica; of a session it is the application's.
	Name  string     `json:"name,omitempty"`
	PID   int        `json:"pid,omitempty"`
	Since *time.Time `json:"since,omitempty"` // nil if the login may not see it, or if nobody knows
}

// HolderKind is a kind of VacuumHolder.
type HolderKind string

// The kinds.
const (
	HoldsTransaction HolderKind = "transaction"
	HoldsPrepared    HolderKind = "prepared_transaction"
	HoldsSlot        HolderKind = "slot"
	HoldsReplica     HolderKind = "replica" // by hot_standby_feedback
)

// selectDeadRows reads statistics, and no table. A login without pg_read_all_stats sees of other roles' sessions the horizon, but not
// since when they have it. Autovacuum has no user.
const selectDeadRows = `with recursive
	tables as (select c.oid as top, c.oid as part from pg_class c join pg_namespace n on n.oid = c.relnamespace
			where (n.nspname, c.relname) in (($1, $2), ($3, 'outbox_parked')) and c.relkind in ('r', 'p')
		union all select top, inhrelid from tables join pg_inherits on inhparent = part),
	counts as (select top, pg_stat_get_dead_tuples(part) as dead, pg_stat_get_live_tuples(part) as live,
			greatest(pg_stat_get_last_vacuum_time(part), pg_stat_get_last_autovacuum_time(part)) as vacuumed,
			exists (select from pg_options_to_table(c.reloptions) where option_name = 'autovacuum_enabled' and not option_value::boolean) as off
		from tables join pg_class c on c.oid = part where c.relkind = 'r'),
	holder as (select * from (
			select case when datid is null then 'replica' else 'transaction' end, coalesce(application_name, ''), pid, xact_start,
					greatest(age(backend_xmin), age(backend_xid))
				from pg_stat_activity where pid <> pg_backend_pid() and (backend_xmin is not null or backend_xid is not null)
					and (datid is null or datname = current_database() and usesysid is not null) and pid not in (select pid from pg_stat_progress_vacuum)
			union all select 'prepared_transaction', gid, 0, prepared, age(transaction) from pg_prepared_xacts where database = current_database()
			union all select 'slot', slot_name::text, 0, null, age(xmin) from pg_replication_slots where xmin is not null) h (kind, name, pid, since, behind)
		where since is null or since < now() - interval '1 minute'
		order by behind desc limit 1)
	select nspname || '.' || relname, sum(dead)::bigint, sum(live)::bigint, (array_agg(vacuumed order by dead desc))[1],
		(array_agg(off or not current_setting('autovacuum')::boolean order by dead desc))[1], now(), kind, name, pid, since
	from counts join pg_class c on c.oid = top join pg_namespace n on n.oid = c.relnamespace left join holder on true
	group by nspname, relname, kind, name, pid, since order by 2 desc`

// ReadDeadRows reads how many deleted rows the outbox and outbox_parked have, and what keeps vacuum from them.
func (s Schema) ReadDeadRows(ctx context.Context, db Querier, outbox OutboxTable) ([]DeadRows, error) {
	rows, err := db.Query(ctx, selectDeadRows, outbox.Schema, outbox.Name, string(s))
	var all []DeadRows
	if err == nil {
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (d DeadRows, err error) {
			var kind, name *string
			var pid *int
			var since *time.Time
			if err := row.Scan(&d.Table, &d.Dead, &d.Live, &d.VacuumedAt, &d.AutovacuumOff, &d.At, &kind, &name, &pid, &since); err != nil {
				return d, err
			}
			if kind != nil {
				d.Holder = &VacuumHolder{Kind: HolderKind(*kind), Name: *name, PID: *pid, Since: since}
			}
			return d, nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read how many deleted rows the outbox has: %w", err)
	}
	return all, nil
}
