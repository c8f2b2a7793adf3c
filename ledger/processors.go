package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Processor is a sink as outbox_processors knows it.
type Processor struct {
	Name string
	Type string
	// Configuration is for people. It holds no secrets.
	Configuration json.RawMessage
	// RenamedFrom is the sink's former name, or empty. If outbox_processors has a row of the former name and none of the new one,
	// the row is renamed.
	RenamedFrom string
	// Replaces says that a row of the new name which owns nothing is deleted first, so that the row of the former name can be
	// renamed. Only the session that holds the slot may ask for it: another session would go on writing for the deleted row, and
	// nobody would ever find what it writes.
	Replaces bool
	// FromStart says that the sink is also owed what the outbox holds from before the sink was first known.
	FromStart bool
	// Backlog is the job that delivers these events, if the stream does not bring them. It is filed when the sink is first known, together with
	// the sink, which is then owed everything from the start. Its Processor and SnapshotXmax are set here. It is nil if there is no job.
	Backlog *NewJob
}

// Beginner is a database in which a transaction can be begun: a connection, a pool or a transaction.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// RegisterProcessors writes the sinks of a connector into outbox_processors, and returns their ids by name. It may be called at
// every start: what has not changed is not written. Whether a sink is paused, and since when it is owed events, stays as it is.
func (s Schema) RegisterProcessors(ctx context.Context, db Beginner, connector string, processors []Processor) (map[string]int32, error) {
	ids := map[string]int32{}
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		for _, p := range processors {
			id, err := s.registerProcessor(ctx, tx, connector, p)
			if err != nil {
				return fmt.Errorf("register sink %q: %w", p.Name, err)
			}
			ids[p.Name] = id
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

func (s Schema) registerProcessor(ctx context.Context, tx pgx.Tx, connector string, p Processor) (int32, error) {
	configuration := p.Configuration
	if configuration == nil {
		configuration = json.RawMessage("{}")
	}
	if err := s.rename(ctx, tx, connector, p); err != nil {
		return 0, err
	}
	// The select asks first whether the row is there: an insert that meets a conflict uses up an id.
	tag, err := tx.Exec(ctx, s.statement(`insert into ledger.outbox_processors (connector, processor_name, processor_type, configuration, since)
		select $1, $2, $3, $4::jsonb, case when $5 then '-infinity' else now() end
		where not exists (select from ledger.outbox_processors where connector = $1 and processor_name = $2)
		on conflict (connector, processor_name) do nothing`), connector, p.Name, p.Type, configuration, p.FromStart || p.Backlog != nil)
	if err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, s.statement(`update ledger.outbox_processors set processor_type = $3, configuration = $4::jsonb
		where connector = $1 and processor_name = $2 and (processor_type, configuration) is distinct from ($3, $4::jsonb)`),
		connector, p.Name, p.Type, configuration)
	if err != nil {
		return 0, err
	}
	var id int32
	err = tx.QueryRow(ctx, s.statement("select id from ledger.outbox_processors where connector = $1 and processor_name = $2"), connector, p.Name).Scan(&id)
	if err != nil || p.Backlog == nil || tag.RowsAffected() == 0 {
		return id, err
	}
	job := *p.Backlog
	job.Processor = id
	if job.SnapshotXmax, err = s.SnapshotXmax(ctx, tx); err != nil {
		return id, err
	}
	return id, s.FileJobs(ctx, tx, []NewJob{job})
}

// deleteEmpty deletes the row of the new name if it owns nothing and the row of the former name exists, and returns whether a
// person had paused it. The log has no index of processors, so it is read only as far as the first row, and only from when the sink
// was first known.
const deleteEmpty = `delete from ledger.outbox_processors n where connector = $1 and processor_name = $3
		and exists (select from ledger.outbox_processors where connector = $1 and processor_name = $2)
		and not exists (select from ledger.outbox_parked where processor_id = n.id)
		and (select true from ledger.outbox_delivery_log where processor_id = n.id and completed_at >= n.since - interval '1 hour' limit 1) is null
	returning not is_active`

func (s Schema) rename(ctx context.Context, tx pgx.Tx, connector string, p Processor) error {
	if p.RenamedFrom == "" {
		return nil
	}
	paused := false
	if p.Replaces {
		err := tx.QueryRow(ctx, s.statement(deleteEmpty), connector, p.RenamedFrom, p.Name).Scan(&paused)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
	}
	_, err := tx.Exec(ctx, s.statement(`update ledger.outbox_processors set processor_name = $3, is_active = is_active and not $4 where connector = $1 and processor_name = $2
		and not exists (select from ledger.outbox_processors where connector = $1 and processor_name = $3)`), connector, p.RenamedFrom, p.Name, paused)
	return err
}

// Orphans returns the sinks of a connector that are not among the known ones and still have parked events, with the number of
// these.
func (s Schema) Orphans(ctx context.Context, db Querier, connector string, known []string) (map[string]int64, error) {
	rows, err := db.Query(ctx, s.statement(`select p.processor_name, (select count(*) from ledger.outbox_parked where processor_id = p.id and status = 'parked')
		from ledger.outbox_processors p where p.connector = $1 and p.processor_name <> all ($2)
			and exists (select from ledger.outbox_parked where processor_id = p.id and status = 'parked')`), connector, known)
	if err != nil {
		return nil, fmt.Errorf("look for parked events of sinks that are gone: %w", err)
	}
	orphans := map[string]int64{}
	var name string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error { orphans[name] = n; return nil })
	return orphans, err
}

// Heartbeat is what is noted of a processor beside the sign of life.
type Heartbeat struct {
	Name string
	// Metrics is an object of numbers. If it is nil, what is there stays.
	Metrics json.RawMessage
	// ProcessedAt is when the sink has last accepted an event, by this process's clock. If it is zero, what is there stays.
	ProcessedAt time.Time
}

// WriteHeartbeat notes in outbox_processors that the connector of this name runs, and what is known of its processors. It is one statement,
// which changes each row once, whatever is noted.
func (s Schema) WriteHeartbeat(ctx context.Context, db Execer, connector string, beats []Heartbeat) error {
	names, metrics, ages := make([]string, len(beats)), make([]*string, len(beats)), make([]*float64, len(beats))
	for i, b := range beats {
		names[i] = b.Name
		if b.Metrics != nil {
			metrics[i] = new(string(b.Metrics))
		}
		if !b.ProcessedAt.IsZero() {
			ages[i] = new(max(0, time.Since(b.ProcessedAt).Seconds()))
		}
	}
	_, err := db.Exec(ctx, s.statement(`update ledger.outbox_processors p set heartbeat_at = now(), metrics = coalesce(b.metrics::jsonb, p.metrics),
			last_processed_at = greatest(p.last_processed_at, now() - b.age * interval '1 s')
		from ledger.outbox_processors q left join unnest($2::text[], $3::text[], $4::float8[]) b (name, metrics, age) on b.name = q.processor_name
		where q.connector = $1 and p.id = q.id`), connector, names, metrics, ages)
	if err != nil {
		return fmt.Errorf("write the heartbeat: %w", err)
	}
	return nil
}

// ReadActivity says of each of these processors whether a person has paused its sink.
func (s Schema) ReadActivity(ctx context.Context, db Querier, processors []int32) (map[int32]Activity, error) {
	rows, err := db.Query(ctx, s.statement("select id, is_active from ledger.outbox_processors where id = any ($1)"), processors)
	if err != nil {
		return nil, fmt.Errorf("read which sinks are paused: %w", err)
	}
	activities := map[int32]Activity{}
	var id int32
	var active bool
	_, err = pgx.ForEachRow(rows, []any{&id, &active}, func() error {
		activities[id] = Activity(active)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read which sinks are paused: %w", err)
	}
	return activities, nil
}
