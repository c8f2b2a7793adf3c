package ledger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// OutboxTable names a table of the user's own that holds the events, and those of its columns that a list of events shows. The names
// are as they are, without quotes. EventType, TenantID and CreatedAt may be empty: the table then has no such column.
type OutboxTable struct {
	Schema, Name                                                   string
	ID, AggregateType, AggregateID, EventType, TenantID, CreatedAt string
	// Patience bounds each read of the table, because nobody knows whether it has an index that helps.
	Patience time.Duration
}

// MappedOutbox reads an OutboxTable as Client.ReadEvents reads the view event_outbox_status, which exists only for the table of
// init. It needs the right to select from the table.
//
// It calls no function and no operator of the table's types but the one that writes a value as text, which the stream calls too: see
// the package comment. For that it uses concat(), because a cast to text may be a function of the type's owner, and because the
// ledger's text ids are what the stream said: a cast of char(8) to text would drop the blanks.
type MappedOutbox struct {
	client *Client
	outboxShape
	// seesDropped says that the login may read how far the log was dropped. Without that no event counts as expired.
	seesDropped bool
}

// outboxShape is how SQL deals with an OutboxTable.
type outboxShape struct {
	table OutboxTable
	oid   uint32
	id    mappedID
	// timeType is the type of the column of CreatedAt, "" if there is none.
	timeType string
	// grants are the statements that the owner has to run before the login can read the table; "" if it can.
	grants string
}

// mappedID says how SQL deals with the id column, so that an index on it is used where its type is one of PostgreSQL's own.
type mappedID struct {
	raw       string // for WHERE and ORDER BY
	parameter string // the type of a parameter that is compared with raw
	event     string // the id as the ledger has it
	integer   bool
}

// ErrOutboxTable says that there is no such table, or that it lacks a column or has one of another type.
var ErrOutboxTable = errors.New("source does not fit")

// OpenOutbox looks at the table's columns in the catalogs, and bounds all further statements of the connection by t.Patience.
func (c *Client) OpenOutbox(ctx context.Context, t OutboxTable) (*MappedOutbox, error) {
	shape, err := readShape(ctx, c.conn, t, c.idType())
	if err != nil {
		return nil, err
	}
	m := &MappedOutbox{client: c, outboxShape: *shape}
	err = c.conn.QueryRow(ctx, `select exists (select from pg_class c join pg_namespace n on n.oid = relnamespace
		where nspname = $1 and relname = 'outbox_retention' and has_table_privilege(c.oid, 'select'))`, string(c.schema)).Scan(&m.seesDropped)
	if err != nil {
		return nil, fmt.Errorf("look at the ledger: %w", err)
	}
	if _, err := c.conn.Exec(ctx, fmt.Sprintf("set statement_timeout = %d", max(t.Patience.Milliseconds(), 1))); err != nil {
		return nil, fmt.Errorf("set up the connection: %w", err)
	}
	return m, nil
}

// readShape looks at the table's columns in the catalogs. idType is the type of the ledger's event ids.
func readShape(ctx context.Context, db Querier, t OutboxTable, idType string) (*outboxShape, error) {
	m := &outboxShape{table: t}
	types, err := m.readTypes(ctx, db)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{t.ID, t.AggregateType, t.AggregateID, t.EventType, t.TenantID, t.CreatedAt} {
		if name != "" && types[name] == 0 {
			return nil, fmt.Errorf("%w: table %s.%s has no column %q; correct source.columns", ErrOutboxTable, t.Schema, t.Name, name)
		}
	}
	if t.CreatedAt != "" {
		switch types[t.CreatedAt] {
		case pgtype.TimestamptzOID:
			m.timeType = "timestamptz"
		case pgtype.TimestampOID: // in UTC, as the decoder takes it
			m.timeType = "timestamp"
		default:
			return nil, fmt.Errorf("%w: column %q of %s.%s is no timestamp, so it cannot be created_at; correct source.columns", ErrOutboxTable, t.CreatedAt, t.Schema, t.Name)
		}
	}
	column := m.column(t.ID)
	m.id = mappedID{raw: "concat(" + column + ")", parameter: "text", event: "concat(" + column + ")"}
	switch types[t.ID] {
	case pgtype.UUIDOID:
		m.id.raw, m.id.parameter = column, "uuid"
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID:
		m.id.raw, m.id.parameter, m.id.integer = column, "bigint", true
	case pgtype.TextOID, pgtype.VarcharOID:
		m.id.raw = column
	}
	if idType == "uuid" {
		m.id.event += "::uuid"
	}
	return m, nil
}

// readTypes returns the types of the table's columns, by name; of a domain the type that it is made of. It sets m.oid and m.grants.
func (m *outboxShape) readTypes(ctx context.Context, db Querier) (map[string]uint32, error) {
	var isTable *bool
	err := db.QueryRow(ctx, `select c.oid, relkind in ('r', 'p'), concat_ws('; ',
			case when not has_schema_privilege(n.oid, 'usage') then format('grant usage on schema %I to %I', nspname, current_user) end,
			case when not has_table_privilege(c.oid, 'select') then format('grant select on table %I.%I to %I', nspname, relname, current_user) end)
		from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = $1 and relname = $2`, m.table.Schema, m.table.Name).Scan(&m.oid, &isTable, &m.grants)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, fmt.Errorf("%w: table %s.%s does not exist; correct source.table", ErrOutboxTable, m.table.Schema, m.table.Name)
	case err != nil:
		return nil, fmt.Errorf("look for table %s.%s: %w", m.table.Schema, m.table.Name, err)
	case !*isTable: // to read a view runs functions of its owner
		return nil, fmt.Errorf("%w: %s.%s is no table; correct source.table", ErrOutboxTable, m.table.Schema, m.table.Name)
	}
	rows, err := db.Query(ctx, `select attname::text, case when typtype = 'd' then typbasetype else t.oid end
		from pg_attribute a join pg_type t on t.oid = atttypid join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace
		where nspname = $1 and relname = $2 and attnum > 0 and not attisdropped`, m.table.Schema, m.table.Name)
	if err != nil {
		return nil, fmt.Errorf("look at table %s.%s: %w", m.table.Schema, m.table.Name, err)
	}
	types, name, oid := map[string]uint32{}, "", uint32(0)
	_, err = pgx.ForEachRow(rows, []any{&name, &oid}, func() error {
		types[name] = oid
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at table %s.%s: %w", m.table.Schema, m.table.Name, err)
	}
	return types, nil
}

// column is a column of the table in SQL.
func (m *outboxShape) column(name string) string { return "t." + pgx.Identifier{name}.Sanitize() }

// text is a column of the table in SQL as text, ” if it is NULL or if the table has no such column.
func (m *outboxShape) text(name string) string {
	if name == "" {
		return "''"
	}
	return "concat(" + m.column(name) + ")"
}

// Timed reports whether the table has the times of its events. Without them lists go by id, and cannot be bounded by time.
func (m *MappedOutbox) Timed() bool { return m.timeType != "" }

// TakesID reports whether an event of the table can have this id.
func (m *MappedOutbox) TakesID(id string) bool {
	if m.id.integer {
		n, err := strconv.ParseInt(id, 10, 64)
		return err == nil && strconv.FormatInt(n, 10) == id
	}
	return id != ""
}

// mappedStatus is what the view event_outbox_status computes of the events that come from the subquery o: see the first file of package
// migrations, of which each line here is a copy. o has no payload, and the planner does not look into it (offset 0), so that the rows
// arrive in order and reading ends at the limit.
const mappedStatus = ` cross join lateral (
		select coalesce(bool_or(status = 'dead'), false) as dead, count(*) > 0 as owed, max(tries) as tries,
			min(next_attempt_at) filter (where status = 'parked') as next_retry_at,
			(array_agg(error_message order by status, parked_at desc) filter (where error_message is not null))[1] as error_message
		from ledger.outbox_parked where event_id = o.event_id) p
	cross join lateral (
		select count(*) > 0 as known, count(distinct processor_id) filter (where status <> 'failed') as processors, max(attempt_number) as tries,
			coalesce(bool_or(status = 'delivered'), false) as delivered,
			coalesce(bool_or(status = 'discarded'
				and exists (select from ledger.outbox_delivery_log d where d.event_id = r.event_id and d.processor_id = r.processor_id and d.status = 'dead')
				and not exists (select from ledger.outbox_delivery_log n where n.event_id = r.event_id and n.processor_id = r.processor_id
					and n.status = 'delivered' and n.completed_at >= r.completed_at)), false) as given_up,
			max(completed_at) filter (where status <> 'failed') as settled_at,
			(array_agg(error_message order by completed_at desc) filter (where error_message is not null))[1] as error_message,
			bool_or(exists (select from ledger.outbox_checkpoints c where r.tx_index >= 0 and r.epoch >= c.slot_epoch
				and (r.commit_lsn, r.tx_index) > (c.prefix_lsn, c.prefix_index))) as beyond_prefix
		from ledger.outbox_delivery_log r where event_id = o.event_id) l
	cross join lateral (
		select case when p.dead then 'dead'
			when p.owed then 'parked'
			when not l.known and o.created_at < ` + logDroppedUntil + ` then 'expired'
			when l.processors = 0 then 'pending'
			when l.beyond_prefix and l.processors < (select count(*) from ledger.outbox_processors) then 'pending'
			when l.delivered and not l.given_up then 'delivered'
			else 'discarded' end as status) s`

const logDroppedUntil = "(select log_dropped_until from ledger.outbox_retention)"

// mappedColumns are the columns of eventColumns, in the same order.
const mappedColumns = `o.event_id::text, aggregate_type, aggregate_id, event_type, tenant_id, created_at, s.status,
	case when s.status in ('delivered', 'discarded') then l.settled_at end, greatest(p.tries, l.tries, 1) - 1,
	case when isfinite(p.next_retry_at) and p.next_retry_at > clock_timestamp() then p.next_retry_at end,
	coalesce(case when s.status not in ('delivered', 'discarded') then coalesce(p.error_message, l.error_message) end, '')`

// ReadEvents reads events of the table that have an id: by their times, the newest first; without times, or if q names ids, by id, the
// highest first. Then q.Before is not used. q.Since and q.Until leave out events without a time.
func (m *MappedOutbox) ReadEvents(ctx context.Context, q EventQuery) ([]EventStatus, error) {
	byTime := m.Timed() && len(q.IDs) == 0
	var args []any
	arg := func(value any) string {
		args = append(args, value)
		return fmt.Sprintf("$%d", len(args))
	}
	at, created, order, key := "null", "null::timestamptz", m.id.raw, "sort_id"
	where := []string{m.column(m.table.ID) + " is not null"}
	if m.Timed() {
		at = m.column(m.table.CreatedAt)
		created = fmt.Sprintf("case when isfinite(%[1]s) then %[1]s::timestamptz end", at)
		if !q.Since.IsZero() {
			where = append(where, fmt.Sprintf("%s >= %s::timestamptz::%s", at, arg(q.Since), m.timeType))
		}
		if !q.Until.IsZero() {
			where = append(where, fmt.Sprintf("%s < %s::timestamptz::%s", at, arg(q.Until), m.timeType))
		}
		if byTime {
			where = append(where, at+" > '-infinity'", at+" < 'infinity'")
			order, key = at+" desc, "+m.id.raw, "sort_at desc, sort_id"
			if !q.Before.IsZero() {
				where = append(where, fmt.Sprintf("(%s, %s) < (%s::timestamptz::%s, %s::text::%s)", at, m.id.raw, arg(q.Before), m.timeType, arg(q.BeforeID), m.id.parameter))
			}
		}
	}
	if !byTime && q.BeforeID != "" {
		where = append(where, fmt.Sprintf("%s < %s::text::%s", m.id.raw, arg(q.BeforeID), m.id.parameter))
	}
	if len(q.IDs) > 0 {
		ids := []string{}
		for _, id := range q.IDs {
			if m.TakesID(id) {
				ids = append(ids, id)
			}
		}
		where = append(where, fmt.Sprintf("%s = any (%s::text[]::%s[])", m.id.raw, arg(ids), m.id.parameter))
	}
	// The schema is put only into our own part: the name of a column may be anything.
	from := " from (select " + strings.Join([]string{
		m.id.event + " as event_id", m.text(m.table.AggregateType) + " as aggregate_type", m.text(m.table.AggregateID) + " as aggregate_id",
		m.text(m.table.EventType) + " as event_type", m.text(m.table.TenantID) + " as tenant_id", created + " as created_at",
		at + " as sort_at", m.id.raw + " as sort_id",
	}, ", ") + " from " + pgx.Identifier{m.table.Schema, m.table.Name}.Sanitize() + " t where " + strings.Join(where, " and ") + " order by " + order + " desc offset 0) o"
	status := mappedStatus
	if !m.seesDropped {
		status = strings.ReplaceAll(status, logDroppedUntil, "null")
	}
	rest := fmt.Sprintf(" where %[1]s = '' or s.status = %[1]s order by %s desc limit %s", arg(q.Status), key, arg(q.Limit))
	return m.query(ctx, "select "+mappedColumns+from+m.client.schema.statement(status)+rest, args...)
}

// ReadEvent returns an event of the table, or nil if the table has none with this id.
func (m *MappedOutbox) ReadEvent(ctx context.Context, id string) (*EventStatus, error) {
	found, err := m.ReadEvents(ctx, EventQuery{IDs: []string{id}, Limit: 1})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], nil
}

func (m *MappedOutbox) query(ctx context.Context, sql string, args ...any) ([]EventStatus, error) {
	name := m.table.Schema + "." + m.table.Name
	rows, err := m.client.conn.Query(ctx, sql, args...)
	var all []EventStatus
	if err == nil {
		all, err = pgx.CollectRows(rows, scanEvent)
	}
	pg, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		return all, nil
	case pg != nil && pg.Code == "57014" && m.Timed():
		return nil, fmt.Errorf("read %s: not done after %s: %w; name the events (--id), take a shorter time (--since, --until), "+
			"or make an index on (%s)", name, m.table.Patience, err, pgx.Identifier{m.table.CreatedAt}.Sanitize())
	case pg != nil && pg.Code == "57014":
		return nil, fmt.Errorf("read %s: not done after %s: %w; name the events (--id), or list those that are parked, dead, failed or discarded", name, m.table.Patience, err)
	case pg != nil && pg.Code == "42501" && m.grants != "":
		return nil, fmt.Errorf("read %s: %w: %s", name, err, m.grants)
	}
	return nil, fmt.Errorf("read %s: %w", name, err)
}
