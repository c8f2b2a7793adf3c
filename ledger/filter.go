package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// filterPatience bounds how long a filter is tried on the rows to find out whether it is to blame for an error.
const filterPatience = "2s"

// FilterError says that the condition of an "init --backlog where:…" fails on the outbox, and how another one takes its place.
type FilterError struct {
	text string
}

func (e *FilterError) Error() string { return e.text }

// explainFilters returns a FilterError if one of these filters is why a statement on the outbox has failed with err, and otherwise err. Init has
// checked the filters, but the table may have lost a column since, or may have rows on which they fail. It tries each filter on the table.
func (s Schema) explainFilters(ctx context.Context, db Beginner, table OutboxTable, filters []string, err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || slices.Contains([]string{"08", "25", "40", "53", "55", "57", "58"}, pg.Code[:min(2, len(pg.Code))]) {
		return err // of the server, and not of what the statement says
	}
	try := func(columns, behind string) error {
		return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "set transaction read only; set local statement_timeout = '"+filterPatience+"'"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, fmt.Sprintf("select %s from %s t %s", columns, pgx.Identifier{table.Schema, table.Name}.Sanitize(), behind))
			return err
		})
	}
	if len(filters) == 0 || try("", "limit 0") != nil {
		return err // the table is to blame
	}
	for _, filter := range filters {
		found, ok := errors.AsType[*pgconn.PgError](try("count(*) filter (where ("+filter+"\n))", ""))
		if !ok || found.Code != pg.Code {
			continue
		}
		return &FilterError{fmt.Sprintf("the filter of \"outbox-cdc init --backlog where:…\" fails on %s.%s: %s; write another condition in its place: "+
			"update %s set filter = jsonb_set(filter, '{where}', to_jsonb('<condition>'::text)) where filter ->> 'where' = %s; see docs/slot.md#filter",
			table.Schema, table.Name, found.Message, s.statement("ledger.outbox_backlog"), literal(filter))}
	}
	return err
}

// literal quotes a text for SQL.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// Filters returns the filter of a job as it stands in the ledger now, because a person may have mended it, and what the init before the job
// has left out.
func (s Schema) Filters(ctx context.Context, db Querier, j *Job) (own JobFilter, d Declined, err error) {
	err = db.QueryRow(ctx, s.statement("select coalesce(filter, '{}') from ledger.outbox_backlog where id = $1"), j.ID).Scan(&own)
	if err != nil {
		return own, d, fmt.Errorf("read the filter of backlog job %d: %w", j.ID, err)
	}
	d, err = s.declined(ctx, db, j)
	return own, d, err
}
