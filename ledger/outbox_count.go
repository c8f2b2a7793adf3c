package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Count returns how many rows the walk looks at behind the cursor, with those that the filter leaves out. It counts them if that is done within
// patience, and returns the planner's estimate otherwise. With a patience of 0 it asks the planner at once.
func (w *OutboxWalk) Count(ctx context.Context, db Beginner, q WalkQuery, patience time.Duration) (rows int64, err error) {
	var c walkCursor
	if err := json.Unmarshal(q.Cursor, &c); err != nil || c.Until == nil {
		return 0, err
	}
	// Conditions that say which rows are wanted leave no row out here, and their arguments would be too many.
	q.Filter.Where, q.Declined.Filter.Where = "", ""
	if !w.timed {
		q.Since, q.Filter.Since, q.Declined = time.Time{}, time.Time{}, Declined{}
	}
	var args [][]byte
	where, _ := w.conditions(&q, c, func(value string) int {
		args = append(args, []byte(value))
		return len(args)
	})
	counted := fmt.Sprintf("select count(*) from %s t where %s", w.name(), strings.Join(where, " and "))
	ask := func(settings, sql string) (text string, err error) {
		err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "set transaction read only; "+settings); err != nil {
				return err
			}
			found, err := textRows(ctx, tx, sql, args)
			if err == nil {
				text = string(found[0][0])
			}
			return err
		})
		return text, err
	}
	if patience > 0 {
		text, err := ask(fmt.Sprintf("set local statement_timeout = %d", patience.Milliseconds()), counted)
		if err == nil {
			return strconv.ParseInt(text, 10, 64)
		}
		if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "57014" { // query_canceled: the time is over
			return 0, fmt.Errorf("count the rows of %s.%s: %w", w.table.Schema, w.table.Name, err)
		}
	}
	plan, err := ask("set local jit = off", "explain (format json) "+strings.Replace(counted, "count(*)", "1", 1))
	if err != nil {
		return 0, fmt.Errorf("estimate the rows of %s.%s: %w", w.table.Schema, w.table.Name, err)
	}
	var explained []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err := json.Unmarshal([]byte(plan), &explained); err != nil || len(explained) != 1 {
		return 0, fmt.Errorf("estimate the rows of %s.%s: the plan cannot be read: %w", w.table.Schema, w.table.Name, err)
	}
	return int64(explained[0].Plan.Rows), nil
}
