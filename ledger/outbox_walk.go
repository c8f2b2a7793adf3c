package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// WalkTable is an outbox that is walked in an order.
type WalkTable struct {
	Schema, Name string
	// Columns are those that an event is made of, with ID, Payload, Metadata and CreatedAt among them. Metadata and CreatedAt may be empty.
	Columns                          []string
	ID, Payload, Metadata, CreatedAt string
	// OrderBy are the columns that give the order. The id always comes last, whether it is among them or not. None of the columns may be
	// nullable, because a row with NULL in one of them has no place in the order and would be left out.
	OrderBy []string
	// MaxEventBytes is the size of the largest event. Of a larger row the payload is not read.
	MaxEventBytes int
	// Rows takes the rows.
	Rows RowTaker
}

// RowTaker takes the rows that a walk finds: package provision makes events of them.
type RowTaker interface {
	// Announce says which columns the rows have, with the types that the stream announces.
	Announce(names []string, types []uint32) error
	// Take takes a row: its columns in text format, nil for NULL. leftOut is how many bytes of it were left out, because it is larger than
	// the largest event. Take keeps nothing of texts.
	Take(texts [][]byte, leftOut int) error
}

// OutboxWalk reads the rows of an outbox in an order, a chunk at a time.
// It holds no snapshot between two chunks. For one goroutine at a time.
//
// The values are asked for in text format over a connection with the settings of the stream (Pin), so they are what the stream would have
// carried, byte by byte.
type OutboxWalk struct {
	schema  Schema
	table   WalkTable
	shape   *outboxShape
	keys    []walkKey
	timed   bool   // created_at is the first key, so that an index finds the rows of a time
	columns string // of a row, in the order in which the decoder knows them
	content string // the same, without what is too large
	sizes   string // of payload and metadata
}

// walkKey is an expression by which the rows are ordered, and the type of a parameter that is compared with it.
type walkKey struct{ sql, parameter string }

// WalkQuery says which rows Read returns.
type WalkQuery struct {
	// Cursor is where the last chunk has ended, or what Begin has returned.
	Cursor []byte
	// Since leaves out rows of earlier times, if the table has times; zero for all.
	Since  time.Time
	Filter JobFilter
	// Declined leaves out what an "init --backlog" has left out, if the table has times.
	Declined Declined
	// MaxRows bounds how many rows are looked at, and MaxBytes how many bytes of them are returned; a larger row comes alone.
	MaxRows, MaxBytes int
}

// WalkChunk is what Read has found, beside the rows.
type WalkChunk struct {
	Looked int    // how many rows were looked at, with those that Since and Filter leave out
	Cursor []byte // behind the last row that was looked at
	End    bool   // there is no row left
}

// walkCursor is a cursor, as JSON. At has the keys of the last row that was looked at, in text format. Until has those of the last row
// of the table when the walk began: rows that have become visible since then come on the stream.
type walkCursor struct {
	At    []string `json:"at,omitempty"`
	Until []string `json:"until,omitempty"`
}

// OpenOutboxWalk looks at the table's columns in the catalogs.
func (s Schema) OpenOutboxWalk(ctx context.Context, db Querier, t WalkTable) (*OutboxWalk, error) {
	idType, err := s.EventIDType(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("look at the ledger: %w", err)
	}
	shape, err := readShape(ctx, db, OutboxTable{Schema: t.Schema, Name: t.Name, ID: t.ID, CreatedAt: t.CreatedAt}, idType)
	if err != nil {
		return nil, err
	}
	w := &OutboxWalk{schema: s, table: t, shape: shape}
	if err := w.announce(ctx, db); err != nil {
		return nil, err
	}
	for _, name := range t.OrderBy {
		if name == t.ID {
			break // what comes behind a unique key orders nothing
		}
		w.keys = append(w.keys, walkKey{sql: shape.column(name)})
	}
	w.timed = shape.timeType != "" && len(w.keys) > 0 && t.OrderBy[0] == t.CreatedAt
	w.keys = append(w.keys, walkKey{sql: shape.id.raw, parameter: "::" + shape.id.parameter})
	return w, nil
}

// announce tells the decoder which columns the table has, with the types that the stream announces.
func (w *OutboxWalk) announce(ctx context.Context, db Querier) error {
	rows, err := db.Query(ctx, "select attname::text, atttypid from pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped", w.shape.oid)
	if err != nil {
		return fmt.Errorf("look at the outbox: %w", err)
	}
	types, name, oid := map[string]uint32{}, "", uint32(0)
	_, err = pgx.ForEachRow(rows, []any{&name, &oid}, func() error {
		types[name] = oid
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at the outbox: %w", err)
	}
	t := &w.table
	names := slices.DeleteFunc(slices.Clone(t.Columns), func(name string) bool { return types[name] == 0 })
	var oids []uint32
	var columns, content []string
	for i, name := range names {
		oids = append(oids, types[name])
		columns = append(columns, fmt.Sprintf("%s as c%d", w.shape.column(name), i))
		text := fmt.Sprintf("c%d", i)
		switch name {
		case t.Payload:
			text = "case when not large then " + text + " end"
		case t.Metadata:
			text = "case when metadata_size <= $2 then " + text + " end"
		}
		content = append(content, text)
	}
	w.columns, w.content = strings.Join(columns, ", "), strings.Join(content, ", ")
	w.sizes = w.size(t.Payload, types) + " as payload_size, " + w.size(t.Metadata, types) + " as metadata_size"
	return t.Rows.Announce(names, oids)
}

// size is how many bytes the event takes of a column.
func (w *OutboxWalk) size(name string, types map[string]uint32) string {
	switch types[name] {
	case 0:
		return "0"
	case pgtype.ByteaOID:
		return "coalesce(octet_length(" + w.shape.column(name) + "), 0)"
	}
	return "octet_length(" + w.shape.text(name) + ")"
}

// expressions are the keys in SQL, each with something behind it.
func (w *OutboxWalk) expressions(behind string) string {
	var list []string
	for _, k := range w.keys {
		list = append(list, k.sql+behind)
	}
	return strings.Join(list, ", ")
}

// parameters are parameters for the keys, the first of which has this number.
func (w *OutboxWalk) parameters(first int) string {
	var list []string
	for i, k := range w.keys {
		list = append(list, fmt.Sprintf("$%d%s", first+i, k.parameter))
	}
	return strings.Join(list, ", ")
}

func (w *OutboxWalk) name() string {
	return pgx.Identifier{w.table.Schema, w.table.Name}.Sanitize()
}

// planWalk makes the planner follow the index that has the order.
const planWalk = "set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off; set local jit = off; " +
	"set local max_parallel_workers_per_gather = 0"

// Begin returns the cursor of a walk of all rows that can be seen now.
func (w *OutboxWalk) Begin(ctx context.Context, db Beginner) ([]byte, error) {
	var c walkCursor
	err := w.inSnapshot(ctx, db, func(tx pgx.Tx) error {
		rows, err := textRows(ctx, tx, fmt.Sprintf("select %s from %s t order by %s limit 1", w.expressions(""), w.name(), w.expressions(" desc")), nil)
		for _, row := range rows {
			c.Until = texts(row)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// Read reads the next chunk. The taker gets its rows.
func (w *OutboxWalk) Read(ctx context.Context, db Beginner, q WalkQuery) (WalkChunk, error) {
	var c walkCursor
	if err := json.Unmarshal(q.Cursor, &c); err != nil || c.At != nil && len(c.At) != len(w.keys) || c.Until != nil && len(c.Until) != len(w.keys) {
		return WalkChunk{}, fmt.Errorf("the cursor %s is of a walk in another order: source.order_by has changed meanwhile; change it back until the job is done", q.Cursor)
	}
	chunk := WalkChunk{Cursor: q.Cursor, End: c.Until == nil}
	if chunk.End {
		return chunk, nil
	}
	var rows [][][]byte
	err := w.inSnapshot(ctx, db, func(tx pgx.Tx) (err error) {
		sql, args := w.statement(&q, c)
		rows, err = textRows(ctx, tx, sql, args)
		return err
	})
	if err != nil {
		filters := slices.DeleteFunc([]string{q.Filter.Where, q.Declined.Filter.Where}, func(f string) bool { return f == "" })
		return WalkChunk{}, w.schema.explainFilters(ctx, db, w.shape.table, filters, err)
	}
	for _, row := range rows {
		if err := w.take(row); err != nil {
			return WalkChunk{}, err
		}
	}
	if n := len(rows); n > 0 {
		c.At = texts(rows[n-1][3:][:len(w.keys)])
		all, err := strconv.Atoi(string(rows[0][2])) // which may be more than those that were returned
		if err != nil {
			return WalkChunk{}, err
		}
		chunk.End = n == all && n < q.MaxRows
	} else {
		chunk.End = true
	}
	if chunk.Cursor, err = json.Marshal(c); err != nil {
		return WalkChunk{}, err
	}
	chunk.Looked = len(rows)
	return chunk, nil
}

// take passes a row on: whether it is wanted, how many bytes were left out, how many rows there are, the keys, the columns.
func (w *OutboxWalk) take(row [][]byte) error {
	if string(row[0]) != "t" {
		return nil
	}
	leftOut, err := strconv.Atoi(string(row[1]))
	if err != nil {
		return err
	}
	if err := w.table.Rows.Take(row[3+len(w.keys):], leftOut); err != nil {
		return fmt.Errorf("row %q of %s.%s: %w", texts(row[3:][:len(w.keys)]), w.table.Schema, w.table.Name, err)
	}
	return nil
}

// rowOverhead is what a row takes in memory beside payload and metadata, roughly.
const rowOverhead = 512

// statement is that of a chunk. Rows that the filter does not want are returned without their content, so that the cursor moves past them
// and no statement has to look at the whole table.
func (w *OutboxWalk) statement(q *WalkQuery, c walkCursor) (sql string, args [][]byte) {
	arg := func(value string) int {
		args = append(args, []byte(value))
		return len(args)
	}
	arg(strconv.Itoa(q.MaxRows))
	arg(strconv.Itoa(w.table.MaxEventBytes))
	arg(strconv.Itoa(q.MaxBytes))
	where, wanted := w.conditions(q, c, arg)
	var names []string
	for i := range w.keys {
		names = append(names, fmt.Sprintf("k%d", i))
	}
	named := make([]string, len(names))
	for i, k := range w.keys {
		named[i] = k.sql + " as " + names[i]
	}
	// The part behind "rows" is in the order of the keys, and windows without an order keep it.
	sql = fmt.Sprintf(`select wanted, case when large then payload_size else 0 end + case when metadata_size > $2 then metadata_size else 0 end, total, %[1]s, %[2]s from (
			select *, count(*) over () as total, sum(size) over (rows unbounded preceding) - size as before from (
				select *, payload_size + metadata_size > $2::bigint as large,
					case when not wanted then 0 when payload_size + metadata_size > $2 then 0 else payload_size end + case when wanted and metadata_size <= $2 then metadata_size else 0 end + %[3]d as size from (
					select coalesce(%[4]s, false) as wanted, %[5]s, %[6]s, %[7]s from %[8]s t where %[9]s order by %[10]s limit $1) looked) sized) rows
		where before = 0 or before + size <= $3`,
		strings.Join(names, ", "), w.content, rowOverhead, strings.Join(wanted, " and "), strings.Join(named, ", "), w.columns, w.sizes, w.name(), strings.Join(where, " and "), w.expressions(""))
	return sql, args
}

// conditions returns which rows are looked at behind a cursor, and which of them are wanted. arg adds an argument, and returns its number.
func (w *OutboxWalk) conditions(q *WalkQuery, c walkCursor, arg func(string) int) (where, wanted []string) {
	list := func(values []string) string {
		first := 0
		for i, v := range values {
			if n := arg(v); i == 0 {
				first = n
			}
		}
		return w.parameters(first)
	}
	keys := "(" + w.expressions("") + ")"
	where = []string{keys + " <= (" + list(c.Until) + ")"}
	if c.At != nil && !w.beforeTimes(c, q) {
		where = append(where, keys+" > ("+list(c.At)+")")
	}
	wanted = []string{"true"}
	notBefore := func(t time.Time) string {
		// In UTC, as the connection's time zone and a column without zone are.
		return fmt.Sprintf("%s >= $%d::%s", w.shape.column(w.table.CreatedAt), arg(t.UTC().Format("2006-01-02 15:04:05.999999")), w.shape.timeType)
	}
	for _, since := range q.times() {
		if since.IsZero() || w.shape.timeType == "" {
			continue
		}
		condition := notBefore(since)
		if w.timed {
			where = append(where, condition)
		} else {
			wanted = append(wanted, condition)
		}
	}
	if q.Filter.Where != "" {
		wanted = append(wanted, "("+q.Filter.Where+"\n)")
	}
	if q.Declined.Filter.Where != "" && w.shape.timeType != "" {
		wanted = append(wanted, "("+notBefore(q.Declined.Before)+" is not false or ("+q.Declined.Filter.Where+"\n))")
	}
	return where, wanted
}

// times are those before which rows are left out; zero ones leave out none.
func (q *WalkQuery) times() [3]time.Time {
	return [...]time.Time{q.Since, q.Filter.Since, q.Declined.since()}
}

// beforeTimes reports whether the cursor stands before a time from which on rows are wanted. Then it must not be among the conditions: of
// two lower bounds the index scan may begin at the lower one, and go through everything up to the other.
func (w *OutboxWalk) beforeTimes(c walkCursor, q *WalkQuery) bool {
	if !w.timed {
		return false
	}
	times := q.times()
	for _, layout := range []string{"2006-01-02 15:04:05Z07", "2006-01-02 15:04:05", time.DateOnly} {
		if at, err := time.Parse(layout, c.At[0]); err == nil {
			return slices.ContainsFunc(times[:], at.Before)
		}
	}
	return false // infinity, or a year that has more digits
}

// CheckFilter returns an error if the filter is no condition on the columns of the table.
func (w *OutboxWalk) CheckFilter(ctx context.Context, db Beginner, f JobFilter) error {
	return w.inSnapshot(ctx, db, func(tx pgx.Tx) error {
		sql, _ := w.statement(&WalkQuery{Filter: f}, walkCursor{Until: make([]string, len(w.keys))})
		_, err := tx.Conn().PgConn().Prepare(ctx, "", sql, nil)
		return err
	})
}

// inSnapshot runs do in a transaction that reads only.
func (w *OutboxWalk) inSnapshot(ctx context.Context, db Beginner, do func(tx pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set transaction read only; "+planWalk); err != nil {
			return err
		}
		return do(tx)
	})
	if err != nil {
		return fmt.Errorf("read %s.%s: %w", w.table.Schema, w.table.Name, err)
	}
	return nil
}

// textRows returns the rows of a query in text format. Its parameters are texts as well.
func textRows(ctx context.Context, tx pgx.Tx, sql string, args [][]byte) ([][][]byte, error) {
	result := tx.Conn().PgConn().ExecParams(ctx, sql, args, nil, nil, nil).Read()
	return result.Rows, result.Err
}

func texts(row [][]byte) []string {
	list := make([]string, len(row))
	for i, b := range row {
		list[i] = string(b)
	}
	return list
}
