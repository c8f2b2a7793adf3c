package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Backlog says what becomes of the rows of the outbox that a new slot does not send. Its zero value refuses a table with such rows.
type Backlog struct {
	// None leaves them undelivered.
	None bool
	// Some files a job for each sink, which delivers them: those that are not older than Since, if it is set, and for which the SQL
	// condition Where holds, if there is one.
	Some  bool
	Since time.Time
	Where string
}

func (b Backlog) filter() ledger.JobFilter { return ledger.JobFilter{Since: b.Since, Where: b.Where} }

// countTime bounds how long rows are counted before the planner's estimate is taken instead.
const countTime = 2 * time.Second

// Estimate is a number of rows.
type Estimate struct {
	Rows int64
	// Exact says that the rows were counted. Otherwise the number is the planner's estimate.
	Exact bool
}

func (e Estimate) String() string {
	switch {
	case e.Exact && e.Rows == 1:
		return "1 row"
	case e.Exact:
		return fmt.Sprintf("%d rows", e.Rows)
	}
	return fmt.Sprintf("about %d rows (an estimate)", e.Rows)
}

// where returns the condition for the rows that a filter names, as SQL with its arguments.
func (s Source) where(f ledger.JobFilter) (sql string, args []any) {
	var all []string
	if !f.Since.IsZero() {
		all = append(all, pgx.Identifier{s.Columns.CreatedAt}.Sanitize()+" >= $1")
		args = append(args, f.Since)
	}
	if f.Where != "" {
		all = append(all, "("+f.Where+"\n)") // a comment at its end must not hide what follows
	}
	if all == nil {
		return "", nil
	}
	return " where " + strings.Join(all, " and "), args
}

// checkFilter adds to p what is wrong with the filter of a backlog. It prepares the statement, and executes nothing.
func checkFilter(ctx context.Context, conn *pgx.Conn, s Source, f ledger.JobFilter, p *problems) error {
	if !f.Since.IsZero() && s.Columns.CreatedAt == "" {
		p.add(exitcode.Config, "--backlog since:… needs the time of a row, and source.columns names no created_at; write where:<condition> instead")
		return nil
	}
	if f.Where == "" {
		return nil
	}
	// Between brackets a condition such as "true) or (true" is an error. Between parentheses it would not be one.
	for _, sql := range []string{"select array[" + f.Where + "\n] from " + s.table(), "select from " + s.table() + " where (" + f.Where + "\n)"} {
		d, err := conn.Prepare(ctx, "", sql)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
			p.add(exitcode.Config, "--backlog where:%s is no SQL condition on the columns of %s: %s", f.Where, s.Table, pg.Message)
			return nil
		}
		if err != nil {
			return fmt.Errorf("check the condition of the backlog: %w", err)
		}
		if len(d.ParamOIDs) > 0 {
			p.add(exitcode.Config, "--backlog where:%s has a parameter ($1); write its value", f.Where)
			return nil
		}
	}
	return nil
}

// estimateRows says how many rows of the outbox a filter names. It counts them if that is done soon, and asks the planner otherwise.
func estimateRows(ctx context.Context, conn *pgx.Conn, s Source, f ledger.JobFilter) (e Estimate, err error) {
	where, args := s.where(f)
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("set local statement_timeout = %d", countTime.Milliseconds())); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "select count(*) from "+s.table()+where, args...).Scan(&e.Rows)
	})
	if err == nil {
		e.Exact = true
		return e, nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "57014" { // query_canceled: the time is over
		if ok && f.Where != "" {
			return e, exitcode.Errorf(exitcode.Config, "--backlog where:%s fails on the rows of %s: %s", f.Where, s.Table, pg.Message)
		}
		return e, fmt.Errorf("count the rows of %s: %w", s.Table, err)
	}
	var plan []byte
	if err := conn.QueryRow(ctx, "explain (format json) select from "+s.table()+where, args...).Scan(&plan); err != nil {
		return e, fmt.Errorf("estimate the rows of %s: %w", s.Table, err)
	}
	var explained []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err := json.Unmarshal(plan, &explained); err != nil {
		return e, fmt.Errorf("estimate the rows of %s: read the server's plan: %w", s.Table, err)
	}
	if len(explained) != 1 {
		return e, fmt.Errorf("estimate the rows of %s: the server has made %d plans", s.Table, len(explained))
	}
	e.Rows = int64(explained[0].Plan.Rows)
	return e, nil
}

// holdsRows reports whether the outbox holds a row. It reads one row at most.
func holdsRows(ctx context.Context, db ledger.Querier, s Source) (bool, error) {
	var filled bool
	if err := db.QueryRow(ctx, "select exists (select from "+s.table()+")").Scan(&filled); err != nil {
		return false, fmt.Errorf("look for rows in %s: %w", s.Table, err)
	}
	return filled, nil
}

// backlogProblem is the error for a table with rows that were written before the slot.
func backlogProblem(s Source, e Estimate) error {
	return exitcode.Errorf(exitcode.Config, "table %s holds %s from before the slot, which the stream never carries; say what becomes of them: "+
		`"outbox-cdc init --backlog all" delivers them, --backlog since:7d those of the last 7 days, --backlog "where:<SQL condition>" those that it names, `+
		"and --backlog none none of them", s.Table, e)
}

// checkBacklog looks at the rows of the outbox before a slot is made. It refuses rows of which nobody has said what becomes of them, and a
// filter that is wrong or names no row. It returns about how many rows a job will compare, and how many it will look at for that: a walk finds
// rows since a time by the index of its order, and looks at every row for a condition.
func checkBacklog(ctx context.Context, conn *pgx.Conn, s Source, b Backlog, p *problems) (e, walked Estimate, err error) {
	if b.None {
		return e, walked, nil
	}
	before := len(*p)
	if err := checkFilter(ctx, conn, s, b.filter(), p); err != nil || len(*p) > before {
		return e, walked, err
	}
	if !b.Some {
		filled, err := holdsRows(ctx, conn, s)
		if err != nil || !filled {
			return e, walked, err
		}
	}
	if e, err = estimateRows(ctx, conn, s, b.filter()); err != nil {
		if exitcode.Of(err) == exitcode.Config {
			*p = append(*p, err)
			return e, walked, nil
		}
		return e, walked, err
	}
	walked = e
	found := ledger.JobFilter{}
	if s.walkOrder()[0] == s.Columns.CreatedAt {
		found.Since = b.Since
	}
	if found != b.filter() {
		if walked, err = estimateRows(ctx, conn, s, found); err != nil {
			return e, walked, err
		}
	}
	switch {
	case !b.Some:
		*p = append(*p, backlogProblem(s, e))
	case e.Exact && e.Rows == 0 && b.filter() != (ledger.JobFilter{}):
		p.add(exitcode.Config, "the filter of --backlog names no row of %s; correct it, or write --backlog none if no row is to be delivered", s.Table)
	}
	return e, walked, nil
}
