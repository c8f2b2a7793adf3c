package ledger

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// RowCounts counts rows of a sink in outbox_parked by their status, or says by how much these numbers have changed.
type RowCounts struct{ Parked, Dead int64 }

// Plus returns the sum of two counts.
func (c RowCounts) Plus(d RowCounts) RowCounts {
	return RowCounts{c.Parked + d.Parked, c.Dead + d.Dead}
}

// RowChange says by how much one committed transaction has changed the numbers of a sink's rows. It is either a batch of the recorder
// or a change that a person has made.
type RowChange struct {
	Processor int32
	Rows      RowCounts
	// Batch is the batch_seq of the recorder's transaction, or 0 if a person has made the change.
	Batch int64
	// Transaction is the id of the person's transaction (pg_current_xact_id), or 0 if the recorder has made the change.
	Transaction uint64
	// Oldest says that the oldest parked row may be another one now: parked rows have left, or a dead one is parked again.
	Oldest bool
}

// addRows adds to the changes of a transaction. There are as many of them as the transaction has sinks, so a slice is enough.
func addRows(changes []RowChange, c RowChange) []RowChange {
	for i := range changes {
		if k := &changes[i]; k.Processor == c.Processor {
			k.Rows, k.Oldest = k.Rows.Plus(c.Rows), k.Oldest || c.Oldest
			return changes
		}
	}
	return append(changes, c)
}

// CountPoint says which transactions a count has seen. The zero value has seen none.
type CountPoint struct {
	// Batch is the last batch of the recorder that the count has seen.
	Batch    int64
	Snapshot Snapshot
}

// Sees reports whether the count has seen the transaction that has made this change.
func (p *CountPoint) Sees(c RowChange) bool {
	if c.Batch > 0 {
		return c.Batch <= p.Batch
	}
	return p.Snapshot.sees(c.Transaction)
}

// Snapshot is PostgreSQL's pg_snapshot: which transactions a statement sees.
type Snapshot struct {
	Min, Max uint64   // it sees all transactions below Min that were committed, and none from Max on
	Running  []uint64 // transactions between Min and Max that it does not see
}

// sees reports whether the snapshot sees a transaction that was committed.
func (s *Snapshot) sees(id uint64) bool {
	return id < s.Min || id < s.Max && !slices.Contains(s.Running, id)
}

// parseSnapshot reads the text of a pg_snapshot, "min:max:id,id".
func parseSnapshot(text string) (Snapshot, error) {
	var s Snapshot
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return s, fmt.Errorf("a pg_snapshot of %d parts", len(parts))
	}
	numbers := parts[:2]
	if parts[2] != "" {
		numbers = append(numbers, strings.Split(parts[2], ",")...)
	}
	for i, text := range numbers {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return s, fmt.Errorf("a pg_snapshot: %w", err)
		}
		switch i {
		case 0:
			s.Min = n
		case 1:
			s.Max = n
		default:
			s.Running = append(s.Running, n)
		}
	}
	return s, nil
}

// ParkedCount is what a sink has in outbox_parked.
type ParkedCount struct {
	RowCounts
	Oldest time.Duration // for how long the oldest parked row has been parked
}

// ParkedCounts is what one count has found, by processor.
type ParkedCounts struct {
	Point CountPoint
	Sinks map[int32]ParkedCount
}

// countParked counts in one statement, and so in one snapshot, from which batch_seq and the snapshot itself come as well.
const countParked = `select p.id, count(*) filter (where k.status = 'parked'), count(*) filter (where k.status = 'dead'),
		coalesce(extract(epoch from clock_timestamp() - min(k.parked_at) filter (where k.status = 'parked')), 0)::float8,
		coalesce((select batch_seq from ledger.outbox_checkpoints where slot_name = $2), 0), pg_current_snapshot()::text
	from ledger.outbox_processors p left join ledger.outbox_parked k on k.processor_id = p.id where p.id = any ($1) group by p.id`

// CountParked counts the rows of these processors. It may have to look at millions of rows. The slot's checkpoint says which batches
// the count has seen.
func (s Schema) CountParked(ctx context.Context, db Querier, slot string, processors []int32) (ParkedCounts, error) {
	counts := ParkedCounts{Sinks: map[int32]ParkedCount{}}
	rows, err := db.Query(ctx, s.statement(countParked), processors, slot)
	if err == nil {
		var id int32
		var c ParkedCount
		var oldest float64
		var snapshot string
		_, err = pgx.ForEachRow(rows, []any{&id, &c.Parked, &c.Dead, &oldest, &counts.Point.Batch, &snapshot}, func() (err error) {
			c.Oldest = time.Duration(oldest * float64(time.Second))
			counts.Sinks[id] = c
			counts.Point.Snapshot, err = parseSnapshot(snapshot)
			return err
		})
	}
	if err != nil {
		return ParkedCounts{}, fmt.Errorf("count parked rows: %w", err)
	}
	return counts, nil
}

// OldestQuery selects the rows among which the oldest parked row of a sink is looked for.
type OldestQuery struct {
	Processor int32
	From      pglogrepl.LSN // there is no parked row before it
	// Window is the most events that may be in flight. A row that was parked before the first one in position order was in flight
	// together with that one, so it is one of the first so many rows.
	Window int
}

// OldestParked is what a sink's first parked rows say. The zero value says that there is none.
type OldestParked struct {
	Age   time.Duration // for how long the oldest row has been parked
	First pglogrepl.LSN // where the first row is, in position order
	// Committed is the commit time of the first row. It is zero if the row does not say it.
	Committed time.Time
}

// storedTime returns a time as StoredEvent has it. It is zero if there is none: a person may have written anything.
func storedTime(text *string) time.Time {
	if text == nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, *text)
	if err != nil {
		return time.Time{}
	}
	return t
}

const readOldest = `select coalesce(extract(epoch from clock_timestamp() - min(parked_at)), 0)::float8, coalesce(min(commit_lsn), '0/0'),
		(select event->>'committed_at' from ledger.outbox_parked where processor_id = $1 and commit_lsn >= $2 and status = 'parked'
			order by commit_lsn, tx_index limit 1) from (
	select parked_at, commit_lsn from ledger.outbox_parked where processor_id = $1 and commit_lsn >= $2 and status = 'parked'
	order by commit_lsn, tx_index limit $3) f`

// ReadOldest finds the oldest parked row of a sink. It walks the primary key over the first q.Window parked rows, and the dead ones
// before them.
func (s Schema) ReadOldest(ctx context.Context, db Beginner, q OldestQuery) (OldestParked, error) {
	var found OldestParked
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, planParkedLocal); err != nil {
			return err
		}
		var age float64
		var committed *string
		err := tx.QueryRow(ctx, s.statement(readOldest), q.Processor, q.From, q.Window).Scan(&age, &found.First, &committed)
		found.Age, found.Committed = time.Duration(age*float64(time.Second)), storedTime(committed)
		return err
	})
	if err != nil {
		return OldestParked{}, fmt.Errorf("look for the oldest parked row: %w", err)
	}
	return found, nil
}

// countInserts adds the rows that are parked anew to the changes of the transaction at hand.
func (w *BatchWriter) countInserts(changes []checkpoint.Outcome) {
	for i := range changes {
		o := &changes[i]
		if o.Row != checkpoint.RowInsert {
			continue
		}
		rows := RowCounts{Parked: 1}
		if o.Status == checkpoint.Dead {
			rows = RowCounts{Dead: 1}
		}
		w.changed = addRows(w.changed, RowChange{Processor: o.Processor, Rows: rows})
	}
}

// readRowChanges reads what updateParked and deleteParked return.
func (w *BatchWriter) readRowChanges(rows pgx.Rows) error {
	c := RowChange{Oldest: true}
	_, err := pgx.ForEachRow(rows, []any{&c.Processor, &c.Rows.Parked, &c.Rows.Dead}, func() error {
		w.changed = addRows(w.changed, c)
		return nil
	})
	return err
}

// tell tells what the batch has changed that was just found to be committed.
func (w *BatchWriter) tell() {
	if len(w.changed) == 0 || w.cfg.Changed == nil {
		return
	}
	for i := range w.changed {
		w.changed[i].Batch = w.seq
	}
	w.cfg.Changed(w.changed)
}
