package provision

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	blockerEvery = 250 * time.Millisecond // how often it is looked for whom the server waits,
	blockerAfter = 2 * time.Second        // and after how long that is worth telling
)

// Blocker is a transaction for whose end the creation of a slot has to wait.
type Blocker struct {
	PID      int    // 0 for a prepared transaction
	Prepared string // its name
	Xid      string
	User     string
	Since    string // when the transaction began, and when its last statement did;
	Query    string // empty where the login may not see them
}

func (b Blocker) String() string {
	text := fmt.Sprintf("pid %d", b.PID)
	if b.PID == 0 {
		text = fmt.Sprintf("prepared transaction %q", b.Prepared)
	}
	text += fmt.Sprintf(" (transaction %s of user %q", b.Xid, b.User)
	if b.Since != "" {
		text += ", open since " + b.Since
	}
	if b.Query != "" {
		text += ", last statement at " + b.Query
	}
	return text + ")"
}

// remedy is the statement that ends it.
func (b Blocker) remedy() string {
	if b.PID == 0 {
		return "rollback prepared '" + b.Prepared + "'"
	}
	return fmt.Sprintf("select pg_terminate_backend(%d)", b.PID)
}

// blockers names the transactions that pid, which is creating a slot, waits for: it waits until every transaction that
// was writing when it began has ended, in whatever database. The locks are readable by everybody, times of others only
// by a member of pg_read_all_stats.
func blockers(ctx context.Context, db SQL, pid uint32) ([]Blocker, error) {
	rows, err := db.Query(ctx, `select coalesce(h.pid, 0), coalesce(p.gid, ''), w.transactionid::text, coalesce(a.usename, p.owner, ''),
			coalesce(to_char(coalesce(a.xact_start, p.prepared), 'YYYY-MM-DD HH24:MI:SSOF'), ''),
			coalesce(to_char(a.query_start, 'YYYY-MM-DD HH24:MI:SSOF'), '')
		from pg_locks w
		join pg_locks h on h.locktype = 'transactionid' and h.transactionid = w.transactionid and h.granted and h.mode = 'ExclusiveLock'
		left join pg_stat_activity a on a.pid = h.pid
		left join pg_prepared_xacts p on p.transaction = w.transactionid
		where w.pid = $1 and w.locktype = 'transactionid' and not w.granted`, int(pid))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Blocker, error) {
		var b Blocker
		err := row.Scan(&b.PID, &b.Prepared, &b.Xid, &b.User, &b.Since, &b.Query)
		return b, err
	})
}

// watchBlockers looks, until ctx ends, for whom the creation of the slot waits, and gives the last ones. It is the only
// user of conn meanwhile; a query of it ends by itself, as ending it from outside would end the session and its lock.
func watchBlockers(ctx context.Context, conn *pgx.Conn, pid uint32, tell func([]Blocker)) []Blocker {
	var last []Blocker
	tick := time.NewTicker(blockerEvery)
	defer tick.Stop()
	tellAt := time.Now().Add(blockerAfter)
	for {
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
		b, err := blockers(context.WithoutCancel(ctx), conn, pid)
		if err != nil {
			return last // the creation itself will say what is wrong
		}
		if ctx.Err() != nil {
			return last // it may have been asked after the creation was given up
		}
		last = b
		if now := time.Now(); len(b) > 0 && tell != nil && now.After(tellAt) {
			tell(b)
			tellAt = now.Add(blockerAfter)
		}
	}
}
