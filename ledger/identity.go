package ledger

import (
	"context"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// Identity tells a database from a copy of it. What is not known is zero, and equals anything.
type Identity struct {
	SystemIdentifier string // of the cluster: initdb makes it, and every physical copy has it too
	// Timeline is the timeline of the cluster's WAL: a promotion begins another one. In a checkpoint 0 means that a person has said that
	// this database is the right one although it is on another server (Adopt).
	Timeline     int32
	DatabaseOID  uint32
	DatabaseName string
	// Hosts are the hosts and ports of source.dsn as they are configured (dsn.Hosts). They are not the addresses of the server itself,
	// which change with every restart of a container.
	Hosts string
}

// Continuation says from where on a session streams, and what it knows of the database.
type Continuation struct {
	Identity
	Prefix    checkpoint.Position
	Confirmed pglogrepl.LSN
	Jobs      []NewJob // Continue sets their SnapshotXmax
}

// Continue writes into the checkpoint from where on the session of this epoch streams, and files the jobs that compare what the stream has
// passed. It returns checkpoint.ErrFenced if another session has taken over. db is a connection or a pool.
func (s Schema) Continue(ctx context.Context, db interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}, slot string, epoch int32, c Continuation,
) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, s.statement(`update ledger.outbox_checkpoints set system_identifier = $3, timeline = $4, database_oid = nullif($5::oid, 0),
				database_name = nullif($6, ''), source_hosts = nullif($7, ''), prefix_lsn = $8, prefix_index = $9, confirmed_lsn = $10, updated_at = clock_timestamp()
			where slot_name = $1 and epoch = $2 and state = 'ready'`),
			slot, epoch, c.SystemIdentifier, c.Timeline, c.DatabaseOID, c.DatabaseName, c.Hosts, c.Prefix.LSN, c.Prefix.Index, c.Confirmed)
		if err != nil {
			return fmt.Errorf("write where slot %q goes on: %w", slot, err)
		}
		if tag.RowsAffected() != 1 {
			return checkpoint.ErrFenced
		}
		var xmax uint64
		if err := tx.QueryRow(ctx, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").Scan(&xmax); err != nil {
			return fmt.Errorf("ask which transactions may still be open: %w", err)
		}
		for i := range c.Jobs {
			c.Jobs[i].SnapshotXmax = xmax
		}
		return s.FileJobs(ctx, tx, c.Jobs)
	})
}

// Adoption is what a person says of a database that is not the one of the checkpoint: the outbox goes on here.
type Adoption struct {
	Identity
	// Another says that it is another database, so that the log's rows from before say nothing of events at the same positions here.
	Another bool
	Epoch   int32 // of the checkpoint
}

// Adopt writes into the checkpoint which database it is of. It returns an error if a session has begun since the epoch was read.
func (s Schema) Adopt(ctx context.Context, db Execer, slot string, a Adoption) error {
	tag, err := db.Exec(ctx, s.statement(`update ledger.outbox_checkpoints set system_identifier = $3, timeline = $4, database_oid = nullif($5::oid, 0),
			database_name = nullif($6, ''), source_hosts = nullif($7, ''), slot_epoch = case when $8 then epoch + 1 else slot_epoch end, updated_at = clock_timestamp()
		where slot_name = $1 and epoch = $2 and state = 'ready'`),
		slot, a.Epoch, a.SystemIdentifier, a.Timeline, a.DatabaseOID, a.DatabaseName, a.Hosts, a.Another)
	if err != nil {
		return fmt.Errorf("write which database the checkpoint of slot %q is of: %w", slot, err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("write which database the checkpoint of slot %q is of: %w", slot, checkpoint.ErrFenced)
	}
	return nil
}
