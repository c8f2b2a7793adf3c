package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// TransactionRow is a row of the outbox that a transaction has written.
type TransactionRow struct {
	ID        string     `json:"id"`
	CreatedAt *time.Time `json:"created_at"` // nil if the table has no times, or the row has none that is finite
	// Known says that the ledger has the event already: as parked, or with an outcome.
	Known bool `json:"known"`
}

// transactionRows is the text of a subquery that finds the rows of the outbox that a transaction has written, and that are still as it has
// written them. $1 is the transaction's number. No index helps: it reads the whole table.
func (m *outboxShape) transactionRows(schema Schema) string {
	created := "null::timestamptz"
	if m.timeType != "" {
		created = fmt.Sprintf("case when isfinite(%[1]s) then %[1]s::timestamptz end", m.column(m.table.CreatedAt))
	}
	return fmt.Sprintf("(select r.*, exists (select from %s l where l.event_id = r.event_id and l.status <> 'failed') or exists (select from %s p where p.event_id = r.event_id) as known "+
		"from (select %s as event_id, %s as created_at from %s t where t.xmin = $1::text::xid and %s is not null offset 0) r)",
		schema.quote("outbox_delivery_log"), schema.quote("outbox_parked"), m.id.event, created,
		pgx.Identifier{m.table.Schema, m.table.Name}.Sanitize(), m.column(m.table.ID))
}

// maxTransactionRows is how many rows TransactionRows returns at most.
const maxTransactionRows = 100

// TransactionRows finds the rows of the outbox that a transaction has written. It returns 100 of them at most, those that the ledger does
// not know first, and how many there are. Rows that were written after a savepoint have another number, and are not found. It returns
// an error if the table was not read within t.Patience.
func (s Schema) TransactionRows(ctx context.Context, db Beginner, t OutboxTable, transaction uint32) (found []TransactionRow, total int, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("set local statement_timeout = %d", max(t.Patience.Milliseconds(), 1))); err != nil {
			return err
		}
		shape, err := s.openShape(ctx, tx, t)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "select concat(event_id), created_at, known, count(*) over () from "+shape.transactionRows(s)+" r order by known, created_at, 1 limit $2",
			fmt.Sprint(transaction), maxTransactionRows)
		if err != nil {
			return err
		}
		var r TransactionRow
		_, err = pgx.ForEachRow(rows, []any{&r.ID, &r.CreatedAt, &r.Known, &total}, func() error {
			found = append(found, r)
			return nil
		})
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("look for the rows of transaction %d in %s.%s: %w", transaction, t.Schema, t.Name, err)
	}
	return found, total, nil
}

func (s Schema) openShape(ctx context.Context, db Querier, t OutboxTable) (*outboxShape, error) {
	idType, err := s.EventIDType(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("look at the ledger: %w", err)
	}
	return readShape(ctx, db, t, idType)
}

// Skip says what a person has decided to pass.
type Skip struct {
	Slot string
	// At is the position from which on nothing of the transaction was read: its commit LSN, and the index of the first insert.
	At checkpoint.Position
	// To is what the checkpoint confirms from then on. Whatever commits before it counts as settled.
	To pglogrepl.LSN
	// Transaction is the number of the transaction; 0 if it is not known, or if it is more than one.
	Transaction uint32
	Outbox      OutboxTable
	Why         string // for the log
	Jobs        []NewJob
}

// ErrCheckpointMoved says that a session of a connector has changed the checkpoint since it was read.
var ErrCheckpointMoved = errors.New("a connector has changed the checkpoint meanwhile")

// Skip moves the prefix of a checkpoint past a transaction, and writes into the log what that has left out: one row of processor 0 for each
// event of the transaction that is found and that the ledger does not know, or one row without an event if there is none. seen is the
// checkpoint by which the caller has decided: if a session has changed it since then, nothing is written (ErrCheckpointMoved).
//
// It raises the epoch. A session that has lost the slot and still records its last outcomes is fenced by that: its prefix would move the
// checkpoint back. What it has not recorded is beyond the prefix that was seen, so the caller would have refused.
func (s Schema) Skip(ctx context.Context, db Beginner, seen *Checkpoint, k Skip) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		// The row lock comes last, because the outbox may be large.
		if err := s.logSkipped(ctx, tx, seen, k); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, s.statement(`update ledger.outbox_checkpoints set prefix_lsn = $4, prefix_index = -1, confirmed_lsn = $4, epoch = epoch + 1, updated_at = clock_timestamp()
			where slot_name = $1 and epoch = $2 and batch_seq = $3 and state = 'ready' and (prefix_lsn, prefix_index) < ($4, -1)`), k.Slot, seen.Epoch, seen.batchSeq, k.To)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return ErrCheckpointMoved
		}
		return s.FileJobs(ctx, tx, k.Jobs)
	})
	if err != nil {
		return fmt.Errorf("move the checkpoint of slot %q: %w", k.Slot, err)
	}
	return nil
}

const insertSkipped = `insert into ledger.outbox_delivery_log (event_id, processor_id, attempt_number, status, started_at, completed_at, error_message, commit_lsn, tx_index, epoch) `

func (s Schema) logSkipped(ctx context.Context, tx pgx.Tx, seen *Checkpoint, k Skip) error {
	if err := s.MakePartitions(ctx, tx); err != nil {
		return err
	}
	values := []any{k.At.LSN, k.At.Index, seen.Epoch + 1, asciiText(cleanText(k.Why))}
	if k.Transaction != 0 {
		shape, err := s.openShape(ctx, tx, k.Outbox)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, s.statement(insertSkipped)+"select event_id, 0, 1, 'discarded', clock_timestamp(), clock_timestamp(), $5, $2, $3 + row_number() over () - 1, $4 from "+
			shape.transactionRows(s)+" r where not known", append([]any{fmt.Sprint(k.Transaction)}, values...)...)
		if err != nil || tag.RowsAffected() > 0 {
			return err
		}
	}
	_, err := tx.Exec(ctx, s.statement(insertSkipped+"values (null, 0, 1, 'discarded', clock_timestamp(), clock_timestamp(), $4, $1, $2, $3)"), values...)
	return err
}
