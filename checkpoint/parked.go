package checkpoint

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

const copyParked = `copy ledger.outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, attempts, tries, tried_at,
	next_attempt_at, parked_at, error_message, event, payload) from stdin (format binary)`

// What a person has declared dead meanwhile stays so. The first try's time is written once: turned from one clock into the
// other and back at each try, it would wander.
const updateParked = `update ledger.outbox_parked p set status = c.status, attempts = c.attempts, tries = c.tries,
		tried_at = coalesce(p.tried_at, c.tried_at), next_attempt_at = c.next_attempt_at, error_message = c.error_message
	from unnest($1::int[], $2::text[]::pg_lsn[], $3::bigint[], $4::text[], $5::int[], $6::int[], $7::timestamptz[], $8::timestamptz[], $9::text[])
		c (processor_id, commit_lsn, tx_index, status, attempts, tries, tried_at, next_attempt_at, error_message)
	where p.processor_id = c.processor_id and p.commit_lsn = c.commit_lsn and p.tx_index = c.tx_index and p.status = 'parked'`

const deleteParked = `delete from ledger.outbox_parked p using unnest($1::int[], $2::text[]::pg_lsn[], $3::bigint[]) c (processor_id, commit_lsn, tx_index)
	where p.processor_id = c.processor_id and p.commit_lsn = c.commit_lsn and p.tx_index = c.tx_index`

// writeParked makes the changes of rows that the outcomes ask for, each delivery's together: what is parked and settled within
// one batch leaves nothing.
func (l *postgres) writeParked(ctx context.Context, batch []Outcomes) error {
	changes := rowChanges(batch)
	if len(changes) == 0 {
		return nil
	}
	if err := l.insertParked(ctx, changes); err != nil {
		return err
	}
	q := &pgx.Batch{}
	l.queueUpdates(q, changes)
	l.queueDeletes(q, changes)
	if q.Len() == 0 {
		return nil
	}
	if err := l.conn.SendBatch(ctx, q).Close(); err != nil {
		return fmt.Errorf("change parked rows: %w", err)
	}
	return nil
}

// rowChanges are the outcomes that change a row, one a delivery: what several of them come to. RowNone: to nothing.
func rowChanges(batch []Outcomes) []Outcome {
	var changes []Outcome
	at := map[Key]int{}
	for i := range batch {
		for _, o := range batch[i].Rows {
			if o.Row == RowNone {
				continue
			}
			k := Key{o.Processor, o.Position}
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

// folded is what a change and a later one come to.
func folded(before, after Outcome) Outcome {
	if before.Row != RowInsert {
		return after
	}
	if after.Row == RowDelete {
		after.Row = RowNone
		return after
	}
	row := *after.Parked
	row.Event, row.Payload = before.Parked.Event, before.Parked.Payload
	after.Row, after.Parked = RowInsert, &row
	return after
}

func (l *postgres) insertParked(ctx context.Context, changes []Outcome) error {
	b := append(l.buf[:0], copyHeader...)
	var parts net.Buffers // what is before b[from:]; large values are sent from where they are
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
		if o.Row != RowInsert {
			continue
		}
		n++
		p := o.Parked
		b = binary.BigEndian.AppendUint16(b, 14)
		b = appendInt4(b, o.Processor)
		b = appendInt8(b, int64(o.Position.LSN))
		b = appendInt8(b, o.Position.Index)
		var err error
		if b, err = appendID(b, o.EventID, l.uuidIDs); err != nil {
			return err
		}
		b = appendInt8(b, p.AggregateHash)
		b = appendText(b, rowStatus(o.Status))
		b = appendInt4(b, int32(p.Attempts))
		b = appendInt4(b, int32(p.Tries))
		b = l.appendTimeOrNull(b, p.TriedAt)
		if p.Blocks {
			b = appendInt8(b, math.MaxInt64) // infinity, as timestamptz has it
		} else {
			b = l.appendTimeOrNull(b, p.NextAttempt)
		}
		b = appendTime(b, now.Add(l.clock))
		if o.Error == "" {
			b = appendNull(b)
		} else {
			b = appendText(b, cleanText(o.Error))
		}
		add(p.Event)
		if p.Payload == nil {
			b = appendNull(b)
		} else {
			add(p.Payload)
		}
	}
	b = binary.BigEndian.AppendUint16(b, 0xffff)
	l.keep(b)
	parts = append(parts, b[from:])
	return l.copy(ctx, "the parked rows", l.sql.copyParked, &parts, n)
}

// largeValue is the size from which a value is not copied into the buffer of a COPY.
const largeValue = 64 << 10

func (l *postgres) appendTimeOrNull(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return appendNull(b)
	}
	return appendTime(b, t.Add(l.clock))
}

func rowStatus(s Status) string {
	if s == Dead {
		return "dead"
	}
	return "parked"
}

// keys are the columns by which rows are found.
type keys struct {
	processors []int32
	lsns       []string
	indexes    []int64
}

func (k *keys) add(o *Outcome) {
	k.processors = append(k.processors, o.Processor)
	k.lsns = append(k.lsns, o.Position.LSN.String())
	k.indexes = append(k.indexes, o.Position.Index)
}

func (l *postgres) queueUpdates(q *pgx.Batch, changes []Outcome) {
	var k keys
	var status []string
	var attempts, tries []int32
	var tried, next []pgtype.Timestamptz
	var errs []*string
	for i := range changes {
		o := &changes[i]
		if o.Row != RowUpdate {
			continue
		}
		k.add(o)
		status = append(status, rowStatus(o.Status))
		attempts, tries = append(attempts, int32(o.Parked.Attempts)), append(tries, int32(o.Parked.Tries))
		tried = append(tried, l.timeOrNull(o.Parked.TriedAt))
		due := l.timeOrNull(o.Parked.NextAttempt)
		if o.Parked.Blocks {
			due = pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
		}
		next = append(next, due)
		text := cleanText(o.Error)
		errs = append(errs, &text)
	}
	if len(status) > 0 {
		q.Queue(l.sql.updateParked, k.processors, k.lsns, k.indexes, status, attempts, tries, tried, next, errs)
	}
}

func (l *postgres) timeOrNull(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t.Add(l.clock), Valid: !t.IsZero()}
}

func (l *postgres) queueDeletes(q *pgx.Batch, changes []Outcome) {
	var k keys
	for i := range changes {
		if changes[i].Row == RowDelete {
			k.add(&changes[i])
		}
	}
	if len(k.lsns) > 0 {
		q.Queue(l.sql.deleteParked, k.processors, k.lsns, k.indexes)
	}
}
