package provision

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	blockerEvery = 250 * time.Millisecond // between two looks at the transactions that the server waits for
	blockerAfter = 2 * time.Second        // between two reports of them, and before the first
)

// Blocker is an open transaction that the creation of a slot has to wait for, or the server's own work before it.
type Blocker struct {
	raising  bool   // no transaction: the server begins to write WAL for logical decoding
	waitsFor string // what it waits for meanwhile; empty if the login may not see it
	pid      int    // 0 for a prepared transaction
	prepared string // the name of a prepared transaction
	xid      string
	user     string
	since    string // when the transaction began; empty if the login may not see it
	query    string // when its last statement began; empty likewise
}

func (b Blocker) String() string {
	if b.raising {
		text := "the server's change to WAL for logical decoding, which the first slot brings about where wal_level is replica, and which may take a checkpoint"
		if b.waitsFor != "" {
			text += " (it waits for " + b.waitsFor + ")"
		}
		return text
	}
	text := fmt.Sprintf("pid %d", b.pid)
	if b.pid == 0 {
		text = fmt.Sprintf("prepared transaction %q", b.prepared)
	}
	text += fmt.Sprintf(" (transaction %s of user %q", b.xid, b.user)
	if b.since != "" {
		text += ", open since " + b.since
	}
	if b.query != "" {
		text += ", last statement at " + b.query
	}
	return text + ")"
}

// remedy is the statement that ends the transaction.
func (b Blocker) remedy() string {
	if b.raising {
		return "checkpoint"
	}
	if b.pid == 0 {
		return "rollback prepared '" + b.prepared + "'"
	}
	return fmt.Sprintf("select pg_terminate_backend(%d)", b.pid)
}

// blockers returns the transactions that the backend pid waits for while it creates a slot. The server waits for the end of
// every transaction that was writing when the creation began, in whatever database. Everybody may see the locks; only a member
// of pg_read_all_stats may see the times of other users' transactions.
func blockers(ctx context.Context, db ledger.Querier, pid uint32) ([]Blocker, error) {
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
		err := row.Scan(&b.pid, &b.prepared, &b.xid, &b.user, &b.since, &b.query)
		return b, err
	})
}

// watchBlockers looks again and again, until ctx ends, what the creation of the slot waits for, tells tell, and returns what it saw last.
// Nobody else uses the connection of look meanwhile. The end of ctx does not end a query: pgx would
// close the connection, and the lock of the slot's name would end with it.
func watchBlockers(ctx context.Context, look func(context.Context) ([]Blocker, error), tell func([]Blocker)) []Blocker {
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
		b, err := look(context.WithoutCancel(ctx))
		if err != nil {
			return last // the creation of the slot will fail too, and say why
		}
		if ctx.Err() != nil {
			return last // b may be from after the end of the creation
		}
		last = b
		if now := time.Now(); len(b) > 0 && tell != nil && now.After(tellAt) {
			tell(b)
			tellAt = now.Add(blockerAfter)
		}
	}
}
