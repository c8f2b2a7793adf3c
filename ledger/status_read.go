package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// OverviewQuery says what ReadOverview reads.
type OverviewQuery struct {
	Slot      string
	Connector string
	// Window is the most events that may be in flight. The oldest parked row of a sink is among its first Window ones (see OldestQuery), of
	// which only some are looked at.
	Window int
	// Readable has the tables of the ledger that exist and that the login may read. What stands in others is not read.
	Readable map[string]bool
	// HasState says that outbox_processors has the column state.
	HasState bool
}

// overviewRows is how many rows of outbox_parked are looked at for each sink. To read them takes some 10 ms.
const overviewRows = 10_000

// Overview is what the ledger says of a connector at one moment. Times are by PostgreSQL's clock.
type Overview struct {
	Checkpoint *Checkpoint // nil if there is none, or if it could not be read
	// RecordedAt is when the checkpoint was last written.
	RecordedAt time.Time
	Sinks      []SinkOverview // in the order of their processors
	NoSink     ParkedOverview // of processor 0
	Migrations []int64        // those that were applied
	Jobs       []JobProgress  // of outbox_backlog, those that are not finished
	Retention  *RetentionRow  // nil if there is none
	// Unread is why outbox_parked could not be read. The counts are zero then.
	Unread error
}

// SinkOverview is a sink of the connector.
type SinkOverview struct {
	KnownSink
	Type        string
	HeartbeatAt time.Time
	// ProcessedAt is when the sink has last accepted an event, as the connector that streams has last written it, once a minute; zero if never.
	ProcessedAt time.Time
	// State is what the session of the checkpoint's epoch has written of the sink; nil if it has written nothing.
	State  *SinkState
	Parked ParkedOverview
}

// ParkedOverview is what was found among the first rows of a sink in outbox_parked, in the order of their positions.
type ParkedOverview struct {
	RowCounts
	// More says that the sink has more rows than were looked at, so that the counts are lower bounds.
	More bool
	// Oldest is when the oldest parked row was parked; zero if there is none. OldestMayBeOlder says that an older one may be behind those
	// that were looked at.
	Oldest           time.Time
	OldestMayBeOlder bool
}

// RetentionRow is the row of outbox_retention.
type RetentionRow struct {
	LogDroppedUntil *time.Time
	LastPassAt      *time.Time
	Report          json.RawMessage
}

// countFirst looks at the first rows of each sink only, in the order of the primary key: a count of a million rows takes a second. If a sink
// has more, its dead letters may all be behind these rows. Then the last thousand deaths in the log say which other rows to look at.
const countFirst = `select p.id, c.parked,
		case when c.rows <= $2 then c.dead else greatest(c.dead, (
			select count(*) from (select distinct commit_lsn, tx_index from (
				select processor_id, commit_lsn, tx_index from ledger.outbox_delivery_log where $3 and status = 'dead' order by completed_at desc limit 1000) last
				where processor_id = p.id) d
			where exists (select from ledger.outbox_parked k where k.processor_id = p.id and k.commit_lsn = d.commit_lsn and k.tx_index = d.tx_index
				and k.status = 'dead'))) end,
		c.rows > $2, c.oldest
	from (select id from ledger.outbox_processors where connector = $1 union all select 0) p
	cross join lateral (
		select count(*) as rows, count(*) filter (where status = 'parked') as parked, count(*) filter (where status = 'dead') as dead,
			min(parked_at) filter (where status = 'parked') as oldest
		from (select status, parked_at from ledger.outbox_parked where processor_id = p.id order by commit_lsn, tx_index limit $2 + 1) f) c`

// ReadOverview reads what the ledger says of a connector. It looks at a bounded number of rows. outbox_parked is read by itself: a person may
// have locked it, to vacuum it in full for example, and the rest is known all the same.
func (s Schema) ReadOverview(ctx context.Context, conn *pgx.Conn, q OverviewQuery) (Overview, error) {
	var o Overview
	var b pgx.Batch
	if q.Readable["outbox_checkpoints"] {
		s.queueCheckpoint(&b, q, &o)
	}
	if q.Readable["outbox_processors"] {
		s.queueSinks(&b, q, &o)
	}
	if q.Readable["outbox_migrations"] {
		b.Queue(s.statement("select coalesce(array_agg(version_id order by version_id), '{}') from ledger.outbox_migrations where is_applied")).
			QueryRow(func(row pgx.Row) error { return row.Scan(&o.Migrations) })
	}
	if q.Readable["outbox_backlog"] {
		s.queueJobs(&b, &o)
	}
	if q.Readable["outbox_retention"] {
		b.Queue(s.statement("select log_dropped_until, last_pass_at, report from ledger.outbox_retention limit 1")).Query(func(rows pgx.Rows) error {
			var r RetentionRow
			_, err := pgx.ForEachRow(rows, []any{&r.LogDroppedUntil, &r.LastPassAt, &r.Report}, func() error {
				o.Retention = &r
				return nil
			})
			return err
		})
	}
	if err := conn.SendBatch(ctx, &b).Close(); err != nil {
		return Overview{}, fmt.Errorf("read the ledger: %w", err)
	}
	parked := map[int32]ParkedOverview{}
	if q.Readable["outbox_processors"] && q.Readable["outbox_parked"] {
		var b pgx.Batch
		s.queueParked(&b, q, parked)
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			clear(parked)
			o.Unread = fmt.Errorf("read the parked rows: %w", err)
		}
	}
	for i := range o.Sinks {
		sink := &o.Sinks[i]
		sink.Parked = parked[sink.Processor]
		if o.Checkpoint == nil || sink.State != nil && sink.State.Epoch != o.Checkpoint.Epoch {
			sink.State = nil
		}
	}
	o.NoSink = parked[0]
	return o, nil
}

func (s Schema) queueCheckpoint(b *pgx.Batch, q OverviewQuery, o *Overview) {
	b.Queue(s.statement(`select state, coalesce(prefix_lsn, '0/0'), coalesce(prefix_index, 0), coalesce(confirmed_lsn, '0/0'), epoch, updated_at
		from ledger.outbox_checkpoints where slot_name = $1`), q.Slot).Query(func(rows pgx.Rows) error {
		var c Checkpoint
		_, err := pgx.ForEachRow(rows, []any{&c.State, &c.Prefix.LSN, &c.Prefix.Index, &c.Confirmed, &c.Epoch, &o.RecordedAt}, func() error {
			o.Checkpoint = &c
			return nil
		})
		return err
	})
}

func (s Schema) queueSinks(b *pgx.Batch, q OverviewQuery, o *Overview) {
	state := "null"
	if q.HasState {
		state = "state::text"
	}
	b.Queue(s.statement("select id, processor_name, processor_type, is_active, heartbeat_at, last_processed_at, "+state+
		" from ledger.outbox_processors where connector = $1 order by id"), q.Connector).Query(func(rows pgx.Rows) error {
		var sink SinkOverview
		var heartbeat, processed *time.Time
		var text *string
		_, err := pgx.ForEachRow(rows, []any{&sink.Processor, &sink.Name, &sink.Type, &sink.Active, &heartbeat, &processed, &text}, func() error {
			found := sink
			if heartbeat != nil {
				found.HeartbeatAt = *heartbeat
			}
			if processed != nil {
				found.ProcessedAt = *processed
			}
			var st SinkState
			if text != nil && json.Unmarshal([]byte(*text), &st) == nil { // a person, or another version, may have written anything
				found.State = &st
			}
			o.Sinks = append(o.Sinks, found)
			return nil
		})
		return err
	})
}

// queueJobs reads the unfinished jobs. The table of an older version lacks some columns.
func (s Schema) queueJobs(b *pgx.Batch, o *Overview) {
	b.Queue(s.statement(`select id, processor_id, coalesce(to_jsonb(b) ->> 'reason', ''), ordinal, coalesce((to_jsonb(b) ->> 'walked')::bigint, 0), coalesce(estimate, 0), created_at
		from ledger.outbox_backlog b where status <> 'done' and mode = 'missing' order by id`)).Query(func(rows pgx.Rows) error {
		var j JobProgress
		_, err := pgx.ForEachRow(rows, []any{&j.ID, &j.Processor, &j.Reason, &j.Ordinal, &j.Walked, &j.Estimate, &j.Filed}, func() error {
			o.Jobs = append(o.Jobs, j)
			return nil
		})
		return err
	})
}

func (s Schema) queueParked(b *pgx.Batch, q OverviewQuery, parked map[int32]ParkedOverview) {
	b.Queue(s.statement(countFirst), q.Connector, overviewRows, q.Readable["outbox_delivery_log"]).Query(func(rows pgx.Rows) error {
		var id int32
		var p ParkedOverview
		var oldest *time.Time
		_, err := pgx.ForEachRow(rows, []any{&id, &p.Parked, &p.Dead, &p.More, &oldest}, func() error {
			found := p
			if oldest != nil {
				found.Oldest = *oldest
			}
			found.OldestMayBeOlder = p.More && p.Parked < int64(q.Window)
			parked[id] = found
			return nil
		})
		return err
	})
}
