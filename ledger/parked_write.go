package ledger

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

const copyParked = `copy ledger.outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, attempts, tries, tried_at,
	next_attempt_at, parked_at, error_message, event, payload) from stdin (format binary)`

// A row that a person has declared dead meanwhile stays dead. The time of the first try is written once: if it were turned from one
// clock into the other and back at each try, it would wander.
//
// What becomes of the numbers of rows is counted here, because a person may have taken or changed a row: see RowChange.
const updateParked = `with changed as (update ledger.outbox_parked p set status = c.status, attempts = c.attempts, tries = c.tries,
		tried_at = coalesce(p.tried_at, c.tried_at), next_attempt_at = c.next_attempt_at, error_message = c.error_message
	from unnest($1::int[], $2::text[]::pg_lsn[], $3::bigint[], $4::text[], $5::int[], $6::int[], $7::timestamptz[], $8::timestamptz[], $9::text[])
		c (processor_id, commit_lsn, tx_index, status, attempts, tries, tried_at, next_attempt_at, error_message)
	where p.processor_id = c.processor_id and p.commit_lsn = c.commit_lsn and p.tx_index = c.tx_index and p.status = 'parked'
	returning p.processor_id, p.status)
	select processor_id, -count(*), count(*) from changed where status = 'dead' group by processor_id`

const deleteParked = `with gone as (delete from ledger.outbox_parked p using ` + rowsOfKeys + ` returning p.processor_id, p.status)
	select processor_id, -count(*) filter (where status = 'parked'), -count(*) filter (where status = 'dead') from gone group by processor_id`

// writeParked makes the changes of rows of outbox_parked that the outcomes ask for. The changes of one delivery are made as one: a
// delivery that is parked and settled within one batch leaves no row.
func (w *BatchWriter) writeParked(ctx context.Context, batch []checkpoint.Outcomes) error {
	changes := rowChanges(batch)
	if len(changes) == 0 {
		return nil
	}
	if err := w.insertParked(ctx, changes); err != nil {
		return err
	}
	w.countInserts(changes)
	q := &pgx.Batch{}
	w.queueUpdates(q, changes)
	w.queueDeletes(q, changes)
	if q.Len() == 0 {
		return nil
	}
	for _, queued := range q.QueuedQueries {
		queued.Query(w.readRowChanges)
	}
	if err := w.conn.SendBatch(ctx, q).Close(); err != nil {
		return fmt.Errorf("change parked rows: %w", err)
	}
	return nil
}

// rowChanges returns the outcomes that change a row, one for each delivery. Several changes of a delivery come to one, which may be
// RowNone.
func rowChanges(batch []checkpoint.Outcomes) []checkpoint.Outcome {
	var changes []checkpoint.Outcome
	at := map[checkpoint.Key]int{}
	for i := range batch {
		for _, o := range batch[i].Rows {
			if o.Row == checkpoint.RowNone {
				continue
			}
			k := checkpoint.Key{Processor: o.Processor, Position: o.Position}
			if n, ok := at[k]; ok {
				changes[n] = folded(changes[n], o)
				continue
			}
			at[k] = len(changes)
			changes = append(changes, o)
		}
	}
	return changes
}

// folded returns the one change that a change and a later one of the same row come to.
func folded(earlier, later checkpoint.Outcome) checkpoint.Outcome {
	if earlier.Row != checkpoint.RowInsert {
		return later
	}
	if later.Row == checkpoint.RowDelete {
		later.Row = checkpoint.RowNone
		return later
	}
	row := *later.Parked
	row.Event, row.Payload = earlier.Parked.Event, earlier.Parked.Payload
	later.Row, later.Parked = checkpoint.RowInsert, &row
	return later
}

func (w *BatchWriter) insertParked(ctx context.Context, changes []checkpoint.Outcome) error {
	b := append(w.buf[:0], copyHeader...)
	var parts net.Buffers // what comes before b[from:]; large values are not copied, but sent from where they are
	from, n := 0, 0
	add := func(value []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
		if len(value) < largeValue {
			b = append(b, value...)
			return
		}
		parts = append(parts, b[from:len(b):len(b)], value)
		from = len(b)
	}
	now := time.Now()
	for i := range changes {
		o := &changes[i]
		if o.Row != checkpoint.RowInsert {
			continue
		}
		n++
		p := o.Parked
		b = binary.BigEndian.AppendUint16(b, 14)
		b = appendInt4(b, o.Processor)
		b = appendInt8(b, int64(o.Position.LSN))
		b = appendInt8(b, o.Position.Index)
		var err error
		if b, err = w.appendID(b, o.EventID); err != nil {
			return err
		}
		b = appendInt8(b, p.AggregateHash)
		b = appendText(b, rowStatus(o.Status))
		b = appendInt4(b, int32(p.Attempts))
		b = appendInt4(b, int32(p.Tries))
		b = w.appendTimeOrNull(b, p.TriedAt)
		if p.Blocks {
			b = appendInt8(b, math.MaxInt64) // infinity, as timestamptz has it
		} else {
			b = w.appendTimeOrNull(b, p.NextAttempt)
		}
		b = appendTime(b, now.Add(w.clock))
		if o.Error == "" {
			b = appendNull(b)
		} else {
			b = appendText(b, w.errorText(o.Error))
		}
		add(p.Event)
		if p.Payload == nil {
			b = appendNull(b)
		} else {
			add(p.Payload)
		}
	}
	b = binary.BigEndian.AppendUint16(b, 0xffff)
	w.keep(b)
	parts = append(parts, b[from:])
	return w.copy(ctx, "the parked rows", w.sql.copyParked, &parts, n)
}

// largeValue is the size in bytes from which a value is not copied into the buffer of a COPY.
const largeValue = 64 << 10

func (w *BatchWriter) appendTimeOrNull(b []byte, at time.Time) []byte {
	if at.IsZero() {
		return appendNull(b)
	}
	return appendTime(b, at.Add(w.clock))
}

func rowStatus(s checkpoint.Status) string {
	if s == checkpoint.Dead {
		return "dead"
	}
	return "parked"
}

// rowsOfKeys joins outbox_parked as p with keys, which are the arguments $1 to $3.
const rowsOfKeys = `unnest($1::int[], $2::text[]::pg_lsn[], $3::bigint[]) c (processor_id, commit_lsn, tx_index)
	where p.processor_id = c.processor_id and p.commit_lsn = c.commit_lsn and p.tx_index = c.tx_index`

// keys are the values of the columns by which rows are found, for unnest.
type keys struct {
	processors []int32
	lsns       []string
	indexes    []int64
}

func (k *keys) add(key checkpoint.Key) {
	k.processors = append(k.processors, key.Processor)
	k.lsns = append(k.lsns, key.Position.LSN.String())
	k.indexes = append(k.indexes, key.Position.Index)
}

func (w *BatchWriter) queueUpdates(q *pgx.Batch, changes []checkpoint.Outcome) {
	var k keys
	var status []string
	var attempts, tries []int32
	var tried, next []pgtype.Timestamptz
	var errs []*string
	for i := range changes {
		o := &changes[i]
		if o.Row != checkpoint.RowUpdate {
			continue
		}
		k.add(checkpoint.Key{Processor: o.Processor, Position: o.Position})
		status = append(status, rowStatus(o.Status))
		attempts, tries = append(attempts, int32(o.Parked.Attempts)), append(tries, int32(o.Parked.Tries))
		tried = append(tried, w.timeOrNull(o.Parked.TriedAt))
		due := w.timeOrNull(o.Parked.NextAttempt)
		if o.Parked.Blocks {
			due = pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
		}
		next = append(next, due)
		text := w.errorText(o.Error)
		errs = append(errs, &text)
	}
	if len(status) > 0 {
		q.Queue(w.sql.updateParked, k.processors, k.lsns, k.indexes, status, attempts, tries, tried, next, errs)
	}
}

func (w *BatchWriter) timeOrNull(at time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: at.Add(w.clock), Valid: !at.IsZero()}
}

func (w *BatchWriter) queueDeletes(q *pgx.Batch, changes []checkpoint.Outcome) {
	var k keys
	for i := range changes {
		if changes[i].Row == checkpoint.RowDelete {
			k.add(checkpoint.Key{Processor: changes[i].Processor, Position: changes[i].Position})
		}
	}
	if len(k.lsns) > 0 {
		q.Queue(w.sql.deleteParked, k.processors, k.lsns, k.indexes)
	}
}
