package e2e

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// transaction is what one transaction has changed in a database, as the oracle's slot tells it. The slot keeps what cleanup deletes.
type transaction struct {
	end     pglogrepl.LSN // of its commit record
	at      time.Time     // of its COMMIT, by the server's clock
	changes []change
}

// change is one changed row. A value that is null is missing.
type change struct {
	table, op string
	row       map[string]string // of a DELETE the key
}

// in reports whether the change is of a table or of a partition of it, by the partition's name.
func (c *change) in(table string) bool {
	return c.table == table || strings.HasPrefix(c.table, table+"_2") || strings.HasPrefix(c.table, table+"_default")
}

func (c *change) number(column string) int64 {
	n, err := strconv.ParseInt(c.row[column], 10, 64)
	if err != nil {
		panic(fmt.Sprintf("%s of %s: %v in %v", column, c.table, err, c.row))
	}
	return n
}

func (c *change) lsn(column string) pglogrepl.LSN {
	lsn, err := pglogrepl.ParseLSN(c.row[column])
	if err != nil {
		panic(fmt.Sprintf("%s of %s: %v in %v", column, c.table, err, c.row))
	}
	return lsn
}

func (c *change) time(column string) time.Time {
	at, err := pgTime(c.row[column])
	if err != nil {
		panic(fmt.Sprintf("%s of %s: %v in %v", column, c.table, err, c.row))
	}
	return at
}

func pgTime(text string) (time.Time, error) { return time.Parse("2006-01-02 15:04:05.999999Z07", text) }

// historic are the columns that a history keeps, by their names: a name of the line would keep the whole line in memory.
var historic = func() map[string]string {
	names := map[string]string{}
	for name := range strings.FieldsSeq(`id aggregate_type aggregate_id payload created_at event_id processor_id status error_message commit_lsn tx_index
		slot_name state prefix_lsn prefix_index name`) {
		names[name] = name
	}
	return names
}()

// history reads what was committed since init in tables whose names begin so, in the order of the commits. Nothing is consumed.
func (w *world) history(tables ...string) []transaction {
	w.t.Helper()
	conn := connect(w.t, w.dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(w.t.Context(), "set timezone = 'UTC'; set datestyle = 'ISO'"); err != nil {
		w.t.Fatal(err)
	}
	rows, err := conn.Query(w.t.Context(), `select lsn, data from pg_logical_slot_peek_changes($1, null, null, 'skip-empty-xacts', '1', 'include-timestamp', '1')
		where data ~ '^(BEGIN|COMMIT)' or split_part(data, ' ', 2) ~ $2`, w.oracle, `^public\.(`+strings.Join(tables, "|")+")")
	if err != nil {
		w.t.Fatal(err)
	}
	var all []transaction
	var open transaction
	var lsn pglogrepl.LSN
	var text string
	_, err = pgx.ForEachRow(rows, []any{&lsn, &text}, func() error {
		switch {
		case strings.HasPrefix(text, "BEGIN"):
			open = transaction{}
		case strings.HasPrefix(text, "COMMIT"):
			_, at, _ := strings.Cut(text, "(at ")
			open.end = lsn
			if open.at, err = pgTime(strings.TrimSuffix(at, ")")); err != nil {
				return err
			}
			if len(open.changes) > 0 {
				all = append(all, open)
			}
		default:
			c, err := parseChange(text)
			if err != nil {
				return err
			}
			open.changes = append(open.changes, c)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// parseChange reads a line of test_decoding, such as
//
//	table public.t: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 name[text]:'it''s' note[text]:null
func parseChange(text string) (c change, err error) {
	rest, ok := strings.CutPrefix(text, "table ")
	if !ok {
		return c, fmt.Errorf("test_decoding says %q", text)
	}
	c.table, rest, _ = strings.Cut(rest, ": ")
	if _, name, ok := strings.Cut(c.table, "."); ok {
		c.table = strings.Clone(name)
	}
	c.op, rest, _ = strings.Cut(rest, ":")
	c.op = strings.Clone(c.op)
	c.row = map[string]string{}
	for rest = strings.TrimPrefix(rest, " "); rest != ""; rest = strings.TrimPrefix(rest, " ") {
		if after, ok := strings.CutPrefix(rest, "old-key: "); ok {
			rest = after
		}
		if after, ok := strings.CutPrefix(rest, "new-tuple: "); ok {
			c.row, rest = map[string]string{}, after
		}
		if strings.HasPrefix(rest, "(no-") { // (no-tuple-data), (no-flags)
			break
		}
		name, after, ok := strings.Cut(rest, "[")
		_, after, found := strings.Cut(after, "]:")
		if !ok || !found {
			return c, fmt.Errorf("test_decoding says %q, of which %q is no column", text, rest)
		}
		quoted, null := strings.HasPrefix(after, "'"), strings.HasPrefix(after, "null")
		value, end := "", strings.IndexByte(after+" ", ' ')
		if quoted {
			if value, end, ok = unquote(after); !ok {
				return c, fmt.Errorf("test_decoding says %q, of which %q has no end", text, after)
			}
		} else {
			value = after[:end]
		}
		if kept := historic[name]; !null && kept != "" {
			c.row[kept] = strings.Clone(value)
		}
		rest = after[min(end, len(after)):]
	}
	return c, nil
}

// unquote reads a literal at the beginning of text, and returns where it ends.
func unquote(text string) (value string, end int, ok bool) {
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		if text[i] == '\'' {
			if i+1 == len(text) || text[i+1] != '\'' {
				return b.String(), i + 1, true
			}
			i++
		}
		b.WriteByte(text[i])
	}
	return "", 0, false
}

// committed are the events of a history, in the order of their commits.
func committed(all []transaction) (events []event) {
	for _, tx := range all {
		var index int64
		for _, c := range tx.changes {
			if c.op != "INSERT" || !c.in("event_outbox") {
				continue
			}
			events = append(events, event{
				id: c.row["id"], aggregateType: c.row["aggregate_type"], aggregateID: c.row["aggregate_id"], payload: c.row["payload"], commitEnd: tx.end, index: index,
			})
			index++
		}
	}
	return events
}

// logged are all rows that the log has ever had, in the order of their positions.
func (w *world) logged(all []transaction) (outcomes []outcome) {
	w.t.Helper()
	sinks := w.processors()
	for _, tx := range all {
		for _, c := range tx.changes {
			if c.op != "INSERT" || !c.in("outbox_delivery_log") {
				continue
			}
			outcomes = append(outcomes, outcome{
				id: c.row["event_id"], sink: sinks[c.row["processor_id"]], status: c.row["status"], lsn: c.lsn("commit_lsn"), index: c.number("tx_index"),
				person: c.row["status"] == "discarded" && strings.HasPrefix(c.row["error_message"], "discarded by "),
			})
		}
	}
	slices.SortStableFunc(outcomes, func(a, b outcome) int { return cmp.Or(cmp.Compare(a.lsn, b.lsn), cmp.Compare(a.index, b.index)) })
	return outcomes
}

// processors are the names of sinks by their ids in the ledger.
func (w *world) processors() map[string]string {
	w.t.Helper()
	names := map[string]string{}
	for _, pair := range ask[[]string](w, "select array_agg(id || ' ' || processor_name) from outbox_processors") {
		id, name, _ := strings.Cut(pair, " ")
		names[id] = name
	}
	return names
}
