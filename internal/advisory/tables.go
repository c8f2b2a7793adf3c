package advisory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// LimitTableLocks sets how long each statement of the session waits for the lock of a table before it gives up; 0 means a
// minute. Without it a statement waits for ever and says nothing. ExplainTableLock makes a message of the error.
func LimitTableLocks(ctx context.Context, conn *pgx.Conn, timeout time.Duration) error {
	milliseconds := strconv.FormatInt(cmp.Or(timeout, time.Minute).Milliseconds(), 10)
	_, err := conn.Exec(ctx, "select pg_catalog.set_config('lock_timeout', $1, false)", milliseconds)
	return err
}

// LockTimeout reports whether an error says that a statement gave up waiting for a lock.
func LockTimeout(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "55P03"
}

// TableLocks begins a query for the sessions that have the lock of a table of this database: its columns are the pid and a text that names the
// session, the lock's mode and the table. The caller adds conditions on pg_locks l, pg_stat_activity a and pg_class c, and the order.
const TableLocks = `select l.pid, format('pid %s (user "%s", application "%s") has the %s of %s', l.pid, a.usename, a.application_name, l.mode, l.relation::regclass)
		from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid join pg_catalog.pg_class c on c.oid = l.relation
		where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid() and l.relation >= 16384 and c.relkind in ('r', 'p')
			and l.database = (select oid from pg_catalog.pg_database where datname = current_database())`

// ExplainTableLock says which session has the lock for which a statement of this one has waited until it gave up. It gives
// other errors back as they are. After an error within a transaction it rolls that back.
func ExplainTableLock(ctx context.Context, conn *pgx.Conn, err error) error {
	if !LockTimeout(err) {
		return err
	}
	if conn.PgConn().TxStatus() != 'I' {
		if _, failed := conn.Exec(ctx, "rollback"); failed != nil {
			return err
		}
	}
	var pid int
	var who string
	// Ordinary reads and writes conflict only with statements that need the table for themselves, so stronger locks come first.
	failed := conn.QueryRow(ctx, TableLocks+`
		order by array_position('{AccessShareLock,RowShareLock,RowExclusiveLock}'::text[], l.mode) desc nulls first, a.xact_start limit 1`).Scan(&pid, &who)
	if failed != nil { // it may have ended meanwhile
		return fmt.Errorf("another session has held the lock of a table for too long; try again: %w", err)
	}
	return fmt.Errorf("another session holds the lock of a table for too long: %s; wait until it is done, or end it (select pg_terminate_backend(%d)), "+
		"and try again: %w", who, pid, err)
}
