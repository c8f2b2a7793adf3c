package connector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// lockRetry is the longest wait before another session if the last one gave up waiting for the lock of a table. Each statement of the next one
// waits for two seconds by itself.
const lockRetry = 2 * time.Second

// lockTimeout reports whether an error says that a statement gave up waiting for a lock.
func lockTimeout(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "55P03"
}

// explainLock adds to the error of a statement that gave up waiting for a lock who holds the lock of a table: nothing goes on before that
// ends, and the statement may be one that does not name the table. It gives back other errors as they are.
func (c *Connector) explainLock(ctx context.Context, err error) error {
	if !lockTimeout(err) {
		return err
	}
	who := c.db.lockHolder(ctx)
	if who == "" { // it may have ended meanwhile
		return err
	}
	return fmt.Errorf("%s, and this goes on by itself when that ends: %w", who, err)
}

// lockHolder reads only PostgreSQL's own views. Locks under which others may still write hold up nothing of ours.
func (p *postgres) lockHolder(ctx context.Context) (who string) {
	ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	err := p.pool.QueryRow(ctx, `select format('pid %s (user "%s", application "%s") has the %s of %s', l.pid, a.usename, a.application_name, l.mode, l.relation::regclass)
		from pg_locks l left join pg_stat_activity a on a.pid = l.pid join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
		where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid() and l.relation >= 16384 and c.relkind in ('r', 'p')
			and l.database = (select oid from pg_database where datname = current_database())
			and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
		order by n.nspname = $1 and c.relname like 'outbox\_%' desc, a.xact_start limit 1`, string(p.Schema)).Scan(&who)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ""
	case err != nil:
		return "who holds it cannot be asked (" + err.Error() + ")"
	}
	return who
}
