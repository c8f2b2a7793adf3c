package connector

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

const (
	// What one read takes of untried rows at most.
	maxFresh = 2000
	// What one read takes of untried rows, and again of due ones, at most; see largeTurn for larger ones.
	maxReadBytes = 4 << 20
	// maxHeld is how many aggregates a lane keeps in memory as held.
	maxHeld = 10_000
)

// before is the position before all others.
var before = checkpoint.Position{LSN: 0, Index: -1 << 63}

// question is what a lane asks of its rows in outbox_parked.
type question struct {
	// A pass of fresh rows goes on behind From, where the last read ended that began behind Prev, and leaves out the hashes of
	// Passed. A new one begins with From = before, behind Floor: no untried row is at or before that.
	Prev, From checkpoint.Position
	Floor      checkpoint.Position
	Passed     map[int64]struct{}
	Batch      int  // due rows at most
	Large      bool // one row may be larger than maxReadBytes
}

// start is behind where fresh rows are looked for.
func (q *question) start() checkpoint.Position {
	if q.From == before {
		return q.Floor
	}
	return q.From
}

// answer is what there is, in one snapshot.
type answer struct {
	// Fresh are the rows that were never tried and stand behind no tried one of their hash, in position order.
	Fresh []*delivery
	// First is where the first untried row is, fresh or not, if a pass begins; before: there is none.
	First checkpoint.Position
	// More says that there may be further ones behind the last of Fresh.
	More bool
	// Due is the first tried row of each hash, if its time has come; longest due first.
	Due []*delivery
	// Heads has the first tried row of every hash, with its time; maxHeld+1 of them at most.
	Heads map[int64]time.Time
	// Left are the hashes of which rows are left between Prev and From.
	Left []int64
	// Large says that a row was left out, and what stands behind it, because it is larger than maxReadBytes.
	Large bool
}

// probe is one row that asks whether the sink is back: the first fresh one of any aggregate, else the one longest due. It is
// taken at random: many that were never tried and are never answered must not keep the others out.
func (a *answer) probe() []*delivery {
	if len(a.Fresh) == 0 {
		return a.Due[:min(1, len(a.Due))]
	}
	hash := a.Fresh[rand.IntN(len(a.Fresh))].hash
	first := slices.IndexFunc(a.Fresh, func(d *delivery) bool { return d.hash == hash })
	return a.Fresh[first : first+1 : first+1]
}

// table is where a lane reads its rows of outbox_parked. For one goroutine at a time.
type table interface {
	read(ctx context.Context, q question) (answer, error)
}

// parkedTable is a lane's share of outbox_parked.
type parkedTable struct {
	pool      *pgxpool.Pool
	sql       parkedSQL
	processor int32
	lane      int
	lanes     int
	most      int // bytes that one read takes of fresh rows, and again of due ones: maxReadBytes, or a test's
	address   func(*outbox.Event) (topic, key string)
	// seenBefore is the reader's.
	seenBefore pglogrepl.LSN
}

// parkedSQL are the statements, with the ledger's schema.
type parkedSQL struct {
	fresh, first, heads, due, left string
}

func newParkedSQL(s ledger.Schema) parkedSQL {
	return parkedSQL{fresh: s.SQL(readFresh), first: s.SQL(readFirst), heads: s.SQL(readHeads), due: s.SQL(readDue), left: s.SQL(readLeft)}
}

var planParked = PlanParked("set local")

// PlanParked returns the planner's settings for reads of outbox_parked; how is "set" or "set local". They disable every plan
// but one: the primary key in order, with one probe a row into the partial index of the heads. A queue table rarely has
// usable statistics, and the planner then expects a lane's share to be 0.5 % of the rows and sorts a million of them. Measured
// on PostgreSQL 15 with 1,000,000 rows and four lanes, a read of 5,000 rows takes 1,000 ms without these settings, and 13 to
// 40 ms with them. A generic plan, which the sixth execution of a prepared statement would get, takes 200 ms, because it
// compares the hashes to leave out one by one.
func PlanParked(how string) string {
	return how + " " + strings.Join([]string{
		"enable_seqscan = off", "enable_bitmapscan = off", "enable_hashjoin = off", "enable_mergejoin = off", "enable_material = off", "enable_sort = off",
		"jit = off", "work_mem = '32MB'", "max_parallel_workers_per_gather = 0", "plan_cache_mode = force_custom_plan",
	}, "; "+how+" ")
}

// The first try by how long ago it was: the server's clock is not ours.
const parkedColumns = `commit_lsn, tx_index, event_id::text, agg_hash, attempts, tries, extract(epoch from clock_timestamp() - tried_at)::float8,
	case when fits then event end, case when fits then payload end, fits`

// forgetLarge makes pgx forget a large row: a connection keeps the last row that it has read until one with as many columns comes.
var forgetLarge = "select " + strings.Repeat("null, ", 20) + "null"

// rowBytes is what a row takes in memory. The size of a compressed event is known only by decompressing it; 16 KiB of it are 2 MiB at most.
const rowBytes = `coalesce(octet_length(payload), 0) + case when pg_column_size(event) < 16384 then pg_column_size(event) else octet_length(event::text) end`

// The first row that does not fit comes without its content, and none behind it.
const readFresh = `select ` + parkedColumns + `, total from (
		select *, bytes + size <= $8 or $9 and bytes = 0 as fits from (
			select *, count(*) over () as total, sum(size) over (rows unbounded preceding) - size as bytes from (
				select *, ` + rowBytes + ` as size from (
					select commit_lsn, tx_index, event_id, agg_hash, attempts, tries, tried_at, event, payload from ledger.outbox_parked p
					where processor_id = $1 and status = 'parked' and next_attempt_at is null and (commit_lsn, tx_index) > ($2, $3)
						and abs(agg_hash % $4) = $5 and agg_hash <> all ($6)
						and not exists (select from ledger.outbox_parked h where h.processor_id = p.processor_id and h.agg_hash = p.agg_hash
							and (h.commit_lsn, h.tx_index) < (p.commit_lsn, p.tx_index) and h.next_attempt_at is not null)
					order by commit_lsn, tx_index limit $7) f) sized) summed
		where bytes < $8) fitting`

const readFirst = `select commit_lsn, tx_index from ledger.outbox_parked
	where processor_id = $1 and status = 'parked' and next_attempt_at is null and (commit_lsn, tx_index) > ($2, $3)
		and abs(agg_hash % $4) = $5
	order by commit_lsn, tx_index limit 1`

const readHeads = `select distinct on (agg_hash) agg_hash, extract(epoch from next_attempt_at)::float8, extract(epoch from clock_timestamp())::float8
	from ledger.outbox_parked where processor_id = $1 and next_attempt_at is not null and abs(agg_hash % $2) = $3
	order by agg_hash, commit_lsn, tx_index limit $4`

const readDue = `with heads as materialized (select distinct on (agg_hash) commit_lsn, tx_index, next_attempt_at
		from ledger.outbox_parked where processor_id = $1 and next_attempt_at is not null and abs(agg_hash % $2) = $3
		order by agg_hash, commit_lsn, tx_index),
	due as materialized (select commit_lsn, tx_index, next_attempt_at from heads
		where next_attempt_at <= clock_timestamp() order by next_attempt_at, commit_lsn, tx_index limit $4),
	sized as (select p.*, due.next_attempt_at as due, ` + rowBytes + ` as size
		from due join ledger.outbox_parked p on p.processor_id = $1 and p.commit_lsn = due.commit_lsn and p.tx_index = due.tx_index
		where p.status = 'parked')
	select ` + parkedColumns + ` from (
		select *, bytes + size <= $5 or $6 and bytes = 0 as fits from (
			select *, sum(size) over (order by due, commit_lsn, tx_index rows unbounded preceding) - size as bytes from sized) summed
		where bytes < $5) fitting
	order by due, commit_lsn, tx_index`

const readLeft = `select distinct agg_hash from ledger.outbox_parked where processor_id = $1 and abs(agg_hash % $2) = $3
	and (commit_lsn, tx_index) > ($4, $5) and (commit_lsn, tx_index) <= ($6, $7) and (status = 'parked' or next_attempt_at is not null)`

func (t *parkedTable) read(ctx context.Context, q question) (answer, error) {
	var a answer
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, t.pool, options, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, planParked); err != nil {
			return err
		}
		if err := t.readLeft(ctx, tx, q, &a); err != nil {
			return err
		}
		b := &pgx.Batch{}
		a.First = before
		if q.From == before {
			b.Queue(t.sql.first, t.processor, q.Floor.LSN, q.Floor.Index, t.lanes, t.lane).Query(func(rows pgx.Rows) error {
				_, err := pgx.ForEachRow(rows, []any{&a.First.LSN, &a.First.Index}, func() error { return nil })
				return err
			})
		}
		start := q.start()
		b.Queue(t.sql.fresh, t.processor, start.LSN, start.Index, t.lanes, t.lane, passed(q, a), maxFresh, t.most, q.Large).
			Query(func(rows pgx.Rows) error { return t.scanFresh(rows, &a) })
		b.Queue("set local enable_sort = on")
		b.Queue(t.sql.heads, t.processor, t.lanes, t.lane, maxHeld+1).Query(func(rows pgx.Rows) error { return scanHeads(rows, &a) })
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		if err := t.readDue(ctx, tx, q, &a); err != nil || !q.Large {
			return err
		}
		_, err := tx.Exec(ctx, forgetLarge)
		return err
	})
	if err != nil {
		return answer{}, fmt.Errorf("read outbox_parked: %w", err)
	}
	return a, nil
}

func (t *parkedTable) readLeft(ctx context.Context, tx pgx.Tx, q question, a *answer) error {
	if q.From == before {
		return nil
	}
	rows, err := tx.Query(ctx, t.sql.left, t.processor, t.lanes, t.lane, q.Prev.LSN, q.Prev.Index, q.From.LSN, q.From.Index)
	if err != nil {
		return err
	}
	a.Left, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	return err
}

func passed(q question, a answer) []int64 {
	hashes := slices.Clone(a.Left)
	for h := range q.Passed {
		hashes = append(hashes, h)
	}
	if hashes == nil {
		hashes = []int64{}
	}
	return hashes
}

func (t *parkedTable) scanFresh(rows pgx.Rows, a *answer) error {
	total := 0
	for rows.Next() {
		d, err := t.scan(rows, &total)
		if err != nil {
			return err
		}
		if d == nil {
			a.Large = len(a.Fresh) == 0
			continue
		}
		a.Fresh = append(a.Fresh, d)
	}
	a.More = len(a.Fresh) > 0 && (total == maxFresh || len(a.Fresh) < total)
	return rows.Err()
}

// readDue asks for due rows where the heads say that there are some, or are too many to say.
func (t *parkedTable) readDue(ctx context.Context, tx pgx.Tx, q question, a *answer) error {
	now := time.Now()
	some := len(a.Heads) > maxHeld
	for _, due := range a.Heads {
		some = some || !due.After(now)
	}
	if !some {
		return nil
	}
	large := q.Large && !slices.ContainsFunc(a.Fresh, t.isLarge) // one in all
	rows, err := tx.Query(ctx, t.sql.due, t.processor, t.lanes, t.lane, q.Batch, t.most, large)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		d, err := t.scan(rows)
		if err != nil {
			return err
		}
		if d == nil {
			a.Large = a.Large || len(a.Due) == 0
			continue
		}
		d.due = true
		a.Due = append(a.Due, d)
	}
	return rows.Err()
}

func (t *parkedTable) isLarge(d *delivery) bool {
	return len(d.Event.Payload)+len(d.Event.Metadata) > t.most/2
}

// scanHeads turns times by PostgreSQL's clock into ours.
func scanHeads(rows pgx.Rows, a *answer) error {
	a.Heads = map[int64]time.Time{}
	var hash int64
	var due, theirs float64
	read := time.Now()
	_, err := pgx.ForEachRow(rows, []any{&hash, &due, &theirs}, func() error {
		in := min(due-theirs, 1<<30) // infinity: dead, and holding its aggregate
		a.Heads[hash] = read.Add(time.Duration(in * float64(time.Second)))
		return nil
	})
	return err
}

// scan makes a delivery of a row, or returns nil for one that does not fit. Topic and key are by the configuration of now.
func (t *parkedTable) scan(rows pgx.Rows, more ...any) (*delivery, error) {
	d := &delivery{row: true}
	var lsn pglogrepl.LSN
	var id *string
	var tried *float64
	var event, payload []byte
	var fits bool
	into := append([]any{&lsn, &d.Index, &id, &d.hash, &d.attempts, &d.tries, &tried, &event, &payload, &fits}, more...)
	if err := rows.Scan(into...); err != nil || !fits {
		return nil, err
	}
	e, committed, err := eventOf(event, payload)
	if err != nil {
		return nil, fmt.Errorf("parked row at %s/%d of processor %d: %w", lsn, d.Index, t.processor, err)
	}
	if id != nil {
		e.ID = *id
	}
	d.Event, d.LSN, d.CommitTime = e, lsn, committed
	if tried != nil {
		d.triedAt = time.Now().Add(-time.Duration(*tried * float64(time.Second)))
	}
	d.repeats = mayRepeat(d.position(), t.seenBefore)
	d.Topic, d.Key = t.address(e)
	return d, nil
}

// addressOf gives an event's topic and key at a sink: the route's that leads there, else the sink's own.
func addressOf(r *router.Router, own router.Sink) func(*outbox.Event) (string, string) {
	var targets []router.Target
	return func(e *outbox.Event) (string, string) {
		targets = r.Route(e, targets[:0])
		for _, t := range targets {
			if t.Processor == own.Processor {
				return t.Topic, t.Key
			}
		}
		return own.Topic.Expand(e), own.Key.Expand(e)
	}
}

// StoredEvent is an event without its payload, as outbox_parked keeps it.
type StoredEvent struct {
	ID            string     `json:"id,omitempty"`
	AggregateType string     `json:"aggregate_type,omitempty"`
	AggregateID   string     `json:"aggregate_id,omitempty"`
	EventType     string     `json:"event_type,omitempty"`
	EventVersion  int        `json:"event_version,omitempty"`
	CreatedAt     *time.Time `json:"created_at,omitempty"`
	CommittedAt   *time.Time `json:"committed_at,omitempty"`
	MaxRetries    *int       `json:"max_retries,omitempty"`
	TenantID      string     `json:"tenant_id,omitempty"`
	CorrelationID string     `json:"correlation_id,omitempty"`
	CausationID   string     `json:"causation_id,omitempty"`
	// MetadataText is metadata that is no JSON: a mapped text column may hold anything.
	MetadataText *string `json:"metadata_text,omitempty"`
	// Metadata comes last and is written as it is: encoding/json would take its spaces away.
	Metadata json.RawMessage `json:"metadata,omitempty"`
}

// eventJSON is an event as outbox_parked keeps it.
func eventJSON(e *outbox.Event, committed time.Time) []byte {
	s := StoredEvent{
		ID: e.ID, AggregateType: e.AggregateType, AggregateID: e.AggregateID, EventType: e.EventType, EventVersion: e.EventVersion,
		CreatedAt: storable(e.CreatedAt), CommittedAt: storable(committed), MaxRetries: e.MaxRetries,
		TenantID: e.TenantID, CorrelationID: e.CorrelationID, CausationID: e.CausationID,
	}
	raw := len(e.Metadata) > 0 && json.Valid(e.Metadata) && !padded(e.Metadata)
	if len(e.Metadata) > 0 && !raw {
		text := string(e.Metadata)
		s.MetadataText = &text
	}
	b, err := json.Marshal(s)
	if err != nil {
		panic("an event's columns are always JSON: " + err.Error())
	}
	if !raw {
		return b
	}
	b = b[:len(b)-1]
	if len(b) > 1 {
		b = append(b, ',')
	}
	b = append(b, `"metadata":`...)
	return append(append(b, e.Metadata...), '}')
}

// padded: JSON with spaces around it, which a field of JSON does not keep.
func padded(b []byte) bool {
	return b[0] <= ' ' || b[len(b)-1] <= ' '
}

// storable is what JSON can hold of a time.
func storable(t time.Time) *time.Time {
	if y := t.Year(); t.IsZero() || y <= 0 || y >= 10000 {
		return nil
	}
	return &t
}

// eventOf is the event that eventJSON has stored.
func eventOf(stored, payload []byte) (*outbox.Event, time.Time, error) {
	var s StoredEvent
	if err := json.Unmarshal(stored, &s); err != nil {
		return nil, time.Time{}, fmt.Errorf("decode the event: %w", err)
	}
	e := &outbox.Event{
		ID: s.ID, AggregateType: s.AggregateType, AggregateID: s.AggregateID, EventType: s.EventType, EventVersion: s.EventVersion,
		Payload: payload, Metadata: s.Metadata, MaxRetries: s.MaxRetries,
		TenantID: s.TenantID, CorrelationID: s.CorrelationID, CausationID: s.CausationID,
	}
	if s.MetadataText != nil {
		e.Metadata = json.RawMessage(*s.MetadataText)
	}
	if s.CreatedAt != nil {
		e.CreatedAt = *s.CreatedAt
	}
	var committed time.Time
	if s.CommittedAt != nil {
		committed = *s.CommittedAt
	}
	return e, committed, nil
}
