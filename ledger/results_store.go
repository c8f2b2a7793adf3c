package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// ResultsKept is how far back an objective looks. The cleanup keeps rows of outbox_metrics for two days longer.
	ResultsKept = 28 * 24 * time.Hour
	// SingleMinutesKept is how far back a session knows single minutes.
	SingleMinutesKept = 6 * time.Hour
	// newestRows is how many of the newest rows of outbox_metrics are looked at for single minutes. With four sinks, six hours are 7,200.
	newestRows = 20_000
	// resultsPatience bounds the statement of WriteResults on the server, so that no try of it goes on behind the next one.
	resultsPatience = 5 * time.Second
)

// MinuteResults are the results of a sink in one minute, as one session has counted them.
type MinuteResults struct {
	Processor int32
	Start     time.Time // by PostgreSQL's clock
	// Partial says that the session has not delivered during the whole minute. Another session may have rows of the same minute then: counts
	// add up.
	Partial bool
	Results
	// Within and Ratio are the objective by which Results.InTime was counted.
	Within time.Duration
	Ratio  float64
}

// ResultBatch is what one call of WriteResults writes.
type ResultBatch struct {
	// ID tells this batch from all others, so that one whose answer was lost is not written twice.
	ID      string
	Minutes []MinuteResults
}

// HourResults are the results of a sink in one hour of UTC.
type HourResults struct {
	Processor int32
	Start     time.Time
	Results
	Within time.Duration
	Ratio  float64
}

// writeResults adds the rows of minutes, and adds the minutes to the rows of their hours. The latter are what is read of the past: 28 days are
// 672 rows a sink, and not 200,000. A batch whose id has one of the last thousand rows was written before.
const writeResults = `with fresh as (
		select where not exists (select from (select metadata from ledger.outbox_metrics order by id desc limit 1000) l where l.metadata->>'write' = $1)),
	minutes as (
		insert into ledger.outbox_metrics (processor_id, metric_type, time_window, value, unit, metadata)
		select m.processor, v.metric, tstzrange(m.start, m.start + interval '1 minute'), v.value, v.unit,
			jsonb_strip_nulls(jsonb_build_object('write', case when v.metric = 'count' then $1::text end,
				'within_seconds', case when v.metric = 'within' then m.within end, 'partial', nullif(m.partial, false)))
		from fresh, unnest($2::int[], $3::timestamptz[], $4::float8[], $5::float8[], $6::float8[], $7::float8[], $8::float8[], $9::float8[], $10::bool[])
			with ordinality as m (processor, start, events, in_time, p50, p99, worst, within, partial, n)
		cross join lateral (values (1, 'count', m.events, 'events'), (2, 'within', m.in_time, 'events'), (3, 'p50', m.p50, 'seconds'),
			(4, 'p99', m.p99, 'seconds'), (5, 'worst', m.worst, 'seconds')) as v (place, metric, value, unit)
		where v.value is not null order by m.n, v.place)
	insert into ledger.outbox_metrics as h (processor_id, metric_type, time_window, value, unit, metadata)
	select g.processor, 'hour', tstzrange(g.start, g.start + interval '1 hour'), g.events, 'events', g.metadata::jsonb
	from fresh, unnest($11::int[], $12::timestamptz[], $13::float8[], $14::text[]) as g (processor, start, events, metadata)
	on conflict (processor_id, lower(time_window)) where metric_type = 'hour' do update set value = h.value + excluded.value,
		metadata = excluded.metadata || jsonb_build_object(
			'within', coalesce((h.metadata->>'within')::bigint, 0) + (excluded.metadata->>'within')::bigint,
			'worst', greatest((h.metadata->>'worst')::float8, (excluded.metadata->>'worst')::float8),
			'buckets', (select coalesce(jsonb_object_agg(b.key, b.n), '{}') from (
				select key, sum(value::bigint) as n from (
					select key, value from jsonb_each_text(h.metadata->'buckets') union all
					select key, value from jsonb_each_text(excluded.metadata->'buckets')) both_rows group by key) b))`

// hourMetadata is the column metadata of the row of an hour.
type hourMetadata struct {
	Within        int64     `json:"within"`
	Worst         float64   `json:"worst"` // seconds
	WithinSeconds float64   `json:"within_seconds"`
	Objective     float64   `json:"objective"` // a share
	Buckets       Durations `json:"buckets,omitempty"`
}

// WriteResults writes a batch in one statement. It may be called again with the same batch until it has succeeded.
func (s Schema) WriteResults(ctx context.Context, db Beginner, b *ResultBatch) error {
	n := len(b.Minutes)
	var (
		processors      = make([]int32, n)
		starts          = make([]time.Time, n)
		events, inTime  = make([]float64, n), make([]float64, n)
		p50, p99, worst = make([]*float64, n), make([]*float64, n), make([]*float64, n)
		within          = make([]float64, n)
		partial         = make([]bool, n)
		hours           []HourResults
		hourOf          = map[hourKey]int{}
	)
	for i := range b.Minutes {
		m := &b.Minutes[i]
		processors[i], starts[i], partial[i], within[i] = m.Processor, m.Start, m.Partial, m.Within.Seconds()
		events[i], inTime[i] = float64(m.Events), float64(m.InTime)
		if len(m.Took) > 0 { // else nothing was accepted
			p50[i], p99[i], worst[i] = new(m.Percentile(.5).Seconds()), new(m.Percentile(.99).Seconds()), new(m.Worst.Seconds())
		}
		key := hourKey{m.Processor, m.Start.Truncate(time.Hour).Unix()}
		at, known := hourOf[key]
		if !known {
			at = len(hours)
			hourOf[key] = at
			hours = append(hours, HourResults{Processor: m.Processor, Start: m.Start.Truncate(time.Hour)})
		}
		hours[at].Add(&m.Results)
		hours[at].Within, hours[at].Ratio = m.Within, m.Ratio
	}
	args := []any{b.ID, processors, starts, events, inTime, p50, p99, worst, within, partial}
	hourArgs, err := argsOfHours(hours)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		// An earlier try whose client has given up may still be at work. This waits for it, so that the statement sees what it has written.
		_, err := tx.Exec(ctx, "select set_config('statement_timeout', $1::text, true), pg_advisory_xact_lock(hashtextextended($2, 0))",
			strconv.FormatInt(resultsPatience.Milliseconds(), 10), "outbox-cdc results "+b.ID)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, s.statement(writeResults), append(args, hourArgs...)...)
		return err
	})
	return explainResults("write", err)
}

type hourKey struct {
	processor int32
	start     int64
}

func argsOfHours(hours []HourResults) ([]any, error) {
	n := len(hours)
	processors, starts, events, metadata := make([]int32, n), make([]time.Time, n), make([]float64, n), make([]string, n)
	for i := range hours {
		h := &hours[i]
		text, err := json.Marshal(hourMetadata{h.InTime, h.Worst.Seconds(), h.Within.Seconds(), h.Ratio, h.Took})
		if err != nil {
			return nil, err
		}
		processors[i], starts[i], events[i], metadata[i] = h.Processor, h.Start, float64(h.Events), string(text)
	}
	return []any{processors, starts, events, metadata}, nil
}

// explainResults adds the remedy to an error about a ledger that lacks the index of the hours.
func explainResults(step string, err error) error {
	if err == nil {
		return nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42P10" {
		return fmt.Errorf("%s the results of outbox_metrics: an older version has made this ledger: outbox-cdc init brings it up to date: %w", step, err)
	}
	return fmt.Errorf("%s the results of outbox_metrics: %w", step, err)
}

// ResultHistory is what the ledger has of the results of some sinks. Times are by PostgreSQL's clock.
type ResultHistory struct {
	Now time.Time // when it was read
	// Hours are those of the last 28 days, in order of sink and time. They have no Took.
	Hours []HourResults
	// Minutes are those of the last six hours, as far as they are among the newest rows, in order of time. They have counts only.
	Minutes []MinuteResults
}

// ReadResults reads the past of these sinks. It looks at a bounded number of rows.
func (s Schema) ReadResults(ctx context.Context, db Querier, processors []int32) (h ResultHistory, err error) {
	if err := db.QueryRow(ctx, "select clock_timestamp()").Scan(&h.Now); err != nil {
		return h, explainResults("read", err)
	}
	if h.Hours, err = s.ReadHours(ctx, db, HoursQuery{Processors: processors, From: h.Now.Add(-ResultsKept).Truncate(time.Hour)}); err != nil {
		return h, err
	}
	rows, err := db.Query(ctx, s.statement(`select processor_id, lower(time_window), coalesce(sum(value) filter (where metric_type = 'count'), 0)::bigint,
			coalesce(sum(value) filter (where metric_type = 'within'), 0)::bigint
		from (select processor_id, metric_type, time_window, value from ledger.outbox_metrics order by id desc limit $1) newest
		where metric_type in ('count', 'within') and processor_id = any ($2) and lower(time_window) >= $3
		group by 1, 2 order by 2, 1`), newestRows, processors, h.Now.Add(-SingleMinutesKept))
	if err != nil {
		return h, explainResults("read", err)
	}
	h.Minutes, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (m MinuteResults, err error) {
		err = row.Scan(&m.Processor, &m.Start, &m.Events, &m.InTime)
		return m, err
	})
	return h, explainResults("read", err)
}

// HoursQuery says which hours ReadHours reads.
type HoursQuery struct {
	Processors []int32
	From       time.Time
	// Took asks for Results.Took as well, which is most of a row.
	Took bool
}

// ReadHours reads hours of these sinks, in order of sink and time.
func (s Schema) ReadHours(ctx context.Context, db Querier, q HoursQuery) ([]HourResults, error) {
	metadata := "metadata - 'buckets'"
	if q.Took {
		metadata = "metadata"
	}
	rows, err := db.Query(ctx, s.statement("select processor_id, lower(time_window), value, ("+metadata+`)::text from ledger.outbox_metrics
		where metric_type = 'hour' and processor_id = any ($1) and lower(time_window) >= $2 order by processor_id, lower(time_window)`), q.Processors, q.From)
	if err != nil {
		return nil, explainResults("read", err)
	}
	var hours []HourResults
	var id int32
	var start time.Time
	var events float64
	var text string
	_, err = pgx.ForEachRow(rows, []any{&id, &start, &events, &text}, func() error {
		var m hourMetadata
		if json.Unmarshal([]byte(text), &m) != nil { // a person, or another version, may have written anything
			return nil
		}
		hours = append(hours, HourResults{
			Processor: id, Start: start, Within: seconds(m.WithinSeconds), Ratio: m.Objective,
			Results: Results{Events: int64(events), InTime: m.Within, Took: m.Buckets, Worst: seconds(m.Worst)},
		})
		return nil
	})
	return hours, explainResults("read", err)
}

// seconds returns a duration of so many seconds.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
