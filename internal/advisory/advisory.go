// Package advisory waits for an advisory lock of PostgreSQL, and says who holds it. A statement that waits in pg_advisory_lock
// would say nothing for as long as the holder's connection lives.
package advisory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	every     = 250 * time.Millisecond // between two tries to get the lock
	tellAfter = time.Second            // from the first try to the first call of Wait.Tell
	tellEvery = 10 * time.Second       // between two calls of Wait.Tell
)

// holder is the session that has the lock.
type holder struct {
	PID         int
	User        string
	Application string
	Since       string // when it connected; empty if our login may not see it
	Statement   string // when its last statement began; empty likewise
}

func (h holder) String() string {
	text := fmt.Sprintf("pid %d (user %q, application %q", h.PID, h.User, h.Application)
	if h.Since != "" {
		text += ", connected since " + h.Since
	}
	if h.Statement != "" {
		text += ", last statement at " + h.Statement
	}
	return text + ")"
}

// Wait says how long Lock waits, and whom it calls meanwhile.
type Wait struct {
	Timeout time.Duration       // 0 means a minute
	Tell    func(holder string) // called with the holder after a second, and then every 10 seconds; it may be nil
}

// Lock takes an advisory lock, which ends with the connection. Messages call the lock by the name what.
func Lock(ctx context.Context, conn *pgx.Conn, key int64, what string, w Wait) error {
	timeout := cmp.Or(w.Timeout, time.Minute)
	start := time.Now()
	tellAt := start.Add(min(tellAfter, timeout))
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var locked bool
		if err := conn.QueryRow(ctx, "select pg_catalog.pg_try_advisory_lock($1::pg_catalog.int8)", key).Scan(&locked); err != nil {
			return fmt.Errorf("lock %s: %w", what, err)
		}
		if locked {
			return nil
		}
		if now := time.Now(); !now.Before(tellAt) {
			h, err := findHolder(ctx, conn, key)
			if err != nil {
				return fmt.Errorf("lock %s: %w", what, err)
			}
			if h != nil && now.Sub(start) >= timeout {
				still := ""
				if timeout >= time.Second { // else the caller does not want to wait
					still = fmt.Sprintf(", and still was after %s", timeout)
				}
				return fmt.Errorf("%s is locked by another session%s: %s; wait until it is done, or end it "+
					"(select pg_terminate_backend(%d)), and try again", what, still, h, h.PID)
			}
			if h != nil && w.Tell != nil {
				w.Tell(h.String())
			}
			tellAt = now.Add(min(tellEvery, max(0, timeout-now.Sub(start))))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// findHolder returns nil if nobody has the lock any more. A key of 64 bits stands in pg_locks as two halves, with objsubid 1.
func findHolder(ctx context.Context, conn *pgx.Conn, key int64) (*holder, error) {
	var h holder
	err := conn.QueryRow(ctx, `select l.pid, coalesce(a.usename::text, ''), coalesce(a.application_name, ''),
			coalesce(to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SSOF'), ''), coalesce(to_char(a.query_start, 'YYYY-MM-DD HH24:MI:SSOF'), '')
		from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
		where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.classid = $1 and l.objid = $2
			and l.database = (select oid from pg_catalog.pg_database where datname = current_database())`,
		uint32(uint64(key)>>32), uint32(uint64(key)),
	).Scan(&h.PID, &h.User, &h.Application, &h.Since, &h.Statement)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return &h, err
}
