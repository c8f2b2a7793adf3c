package connector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
)

// lockRetry is the longest wait before another session if the last one gave up waiting for the lock of a table. Each statement of the next one
// waits for two seconds by itself.
const lockRetry = 2 * time.Second

// explainLock adds to the error of a statement that gave up waiting for a lock who holds the lock of a table: nothing goes on before that
// ends, and the statement may be one that does not name the table. It gives back other errors as they are.
func (c *Connector) explainLock(ctx context.Context, err error) error {
	if !advisory.LockTimeout(err) {
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
	var pid *int // a prepared transaction has none
	err := p.pool.QueryRow(ctx, advisory.TableLocks+`
			and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
		order by (select nspname from pg_namespace n where n.oid = c.relnamespace) = $1 and c.relname like 'outbox\_%' desc, a.xact_start limit 1`, string(p.Schema)).Scan(&pid, &who)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ""
	case err != nil:
		return "who holds it cannot be asked (" + err.Error() + ")"
	}
	return who
}
