package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// Action is a change that a person makes to rows of outbox_parked.
type Action string

const (
	Retry   Action = "retry"   // make a dead letter due again, with no try counted
	Discard Action = "discard" // delete a dead letter, and write a row into the log
	Kill    Action = "kill"    // make a parked event a dead letter, and write a row into the log
)

// actionDetails holds, for each action, the status of the rows that it changes, and its past participle.
var actionDetails = map[Action]struct{ status, past string }{
	Retry:   {"dead", "retried"},
	Discard: {"dead", "discarded"},
	Kill:    {"parked", "killed"},
}

// Past returns the past participle: "retried".
func (a Action) Past() string { return actionDetails[a].past }

// rowNoun is what messages call a row with this status.
func rowNoun(status string) string {
	if status == "parked" {
		return "parked event"
	}
	return "dead letter"
}

// ChangeOptions say which rows to change, and how.
type ChangeOptions struct {
	Filter Filter
	// DryRun finds and counts the rows, and changes nothing.
	DryRun bool
	// Rate is the most rows to change in a second; 0 sets no limit.
	Rate int
	// Reason says who discards or kills the rows, and why. It is written into their rows of the log.
	Reason string
	// Confirm is called before anything is changed, with the number of rows in all and for each sink. If it returns an error,
	// nothing is changed. It may be nil.
	Confirm func(total int, sinks []SinkRows) error
	// Progress is called with the number of rows done and of all rows. It may be nil.
	Progress func(done, total int)
}

// SinkRows is the number of rows of one sink.
type SinkRows struct {
	Sink string `json:"sink"`
	Rows int    `json:"rows"`
	// Paused says that the sink is paused: rows that are retried then wait until it is resumed.
	Paused bool `json:"paused,omitempty"`
}

// ChangeResult says what ChangeParked did.
type ChangeResult struct {
	Action  Action `json:"action"`
	DryRun  bool   `json:"dry_run,omitempty"`
	Matched int    `json:"matched"`
	Changed int    `json:"changed"`
	// Meanwhile counts the rows that somebody else, perhaps the connector, changed between the search and the change. They were
	// left as they are.
	Meanwhile int `json:"meanwhile,omitempty"`
	// Left counts the dead letters of no sink that match. They cannot be retried.
	Left  int        `json:"left,omitempty"`
	Sinks []SinkRows `json:"sinks"`
}

const (
	// chunkRows is how many rows one transaction changes. It locks them until it ends, and a lane that wants to settle one of
	// them has to wait.
	chunkRows       = 500
	maxChunkTries   = 5
	maxErrorLetters = 2000 // of an error message or a reason that is written into the ledger
)

// ChangeParked applies an action to the rows that the filter selects.
//
// It first finds all rows and then changes them, 500 in a transaction. Each transaction wakes the lanes of the sinks that it
// touched. If the filter selects nothing, or names an id whose row the action cannot be applied to, that is an error, and
// nothing is changed. An error in the middle leaves the chunks that were changed before; the result says how many rows these
// are.
func ChangeParked(ctx context.Context, c Config, a Action, o ChangeOptions) (ChangeResult, error) {
	result := ChangeResult{Action: a, DryRun: o.DryRun, Sinks: []SinkRows{}}
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		keys, err := l.findRows(ctx, a, o.Filter, &result)
		if err != nil {
			return err
		}
		if o.Confirm != nil && !o.DryRun {
			if err := o.Confirm(len(keys), result.Sinks); err != nil {
				return err
			}
		}
		if o.DryRun {
			return nil
		}
		return l.changeAll(ctx, a, o, keys, &result)
	})
	return result, err
}

// findRows returns the keys of the rows to change, 24 bytes each. They are all found before the first is changed, so that
// exactly what a person has confirmed is changed, even if other messages die meanwhile.
func (l *ledgerConn) findRows(ctx context.Context, a Action, f Filter, result *ChangeResult) ([]checkpoint.Key, error) {
	processors, err := l.processorIDs(f.Sinks)
	if err != nil {
		return nil, err
	}
	var keys []checkpoint.Key
	counts := map[int32]int{}
	seen := map[string]bool{}
	err = l.eachParkedRow(ctx, parkedQuery{status: actionDetails[a].status, filter: f, processors: processors}, func(p *ParkedRow) (bool, error) {
		seen[p.Event.ID] = true
		if a == Retry && p.key.Processor == 0 {
			result.Left++
			return true, nil
		}
		keys = append(keys, p.key)
		counts[p.key.Processor]++
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range f.IDs {
		if !seen[l.canonicalID(id)] {
			return nil, nothingChanged(l.wrongStatus(ctx, actionDetails[a].status, a.Past(), id, processors))
		}
	}
	if result.Left > 0 && (len(keys) == 0 || len(f.IDs) > 0) {
		return nil, fmt.Errorf("%s of no sink cannot be retried: no valid event could be made of the row; mend what wrote it, insert it anew, and discard this",
			plural(result.Left, "dead letter"))
	}
	if len(keys) == 0 {
		return nil, nothingChanged(l.noMatch(ctx, actionDetails[a].status, f))
	}
	result.Matched = len(keys)
	for _, id := range processors {
		if n := counts[id]; n > 0 {
			result.Sinks = append(result.Sinks, SinkRows{Sink: l.sinkName(id), Rows: n, Paused: l.isPaused(id)})
		}
	}
	return keys, nil
}

// noMatch returns the error for a filter that selects no row. It says how many rows with this status there are at all.
func (l *ledgerConn) noMatch(ctx context.Context, status string, f Filter) error {
	all, err := l.processorIDs(nil)
	if err != nil {
		return err
	}
	var n int
	err = l.conn.QueryRow(ctx, l.sql("select count(*) from ledger.outbox_parked where processor_id = any ($1) and status = $2"), all, status).Scan(&n)
	switch {
	case err != nil:
		return fmt.Errorf("count rows: %w", err)
	case n == 0:
		return fmt.Errorf("there is no %s", rowNoun(status))
	}
	return fmt.Errorf("no %s matches (%s), of %d", rowNoun(status), f, n)
}

// nothingChanged adds to an error that came before the first change that nothing was changed.
func nothingChanged(err error) error { return fmt.Errorf("%w; nothing was changed", err) }

// wrongStatus returns the error for an event that was named by its id, but has no row with the wanted status. It says what the
// event is instead, at each of the processors.
func (l *ledgerConn) wrongStatus(ctx context.Context, wanted, done, id string, processors []int32) error {
	rows, err := l.conn.Query(ctx, l.sql(`select processor_id, status from ledger.outbox_parked where event_id = $1::text::`+l.idType()+` and processor_id = any ($2)
		union all
		select * from (select distinct on (processor_id) processor_id, status from ledger.outbox_delivery_log
			where event_id = $1::text::`+l.idType()+` and processor_id = any ($2) and status <> 'failed' order by processor_id, completed_at desc, id desc) l
		where not exists (select from ledger.outbox_parked p where p.event_id = $1::text::`+l.idType()+` and p.processor_id = l.processor_id)`), id, processors)
	if err != nil {
		return fmt.Errorf("look for event %s: %w", id, err)
	}
	var processor int32
	var status string
	var states []string
	_, err = pgx.ForEachRow(rows, []any{&processor, &status}, func() error {
		state := status
		if status == wanted {
			state += ", and the other filters leave it out,"
		}
		if processor != 0 {
			state += " at " + l.sinkName(processor)
		}
		states = append(states, state)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for event %s: %w", id, err)
	}
	if states == nil {
		return fmt.Errorf("event %s cannot be %s: the ledger has nothing of it, at these sinks", id, done)
	}
	slices.Sort(states)
	return fmt.Errorf("event %s cannot be %s: it is no %s, but %s", id, done, rowNoun(wanted), strings.Join(states, ", "))
}

// changeAll changes the rows chunk by chunk, not faster than o.Rate.
func (l *ledgerConn) changeAll(ctx context.Context, a Action, o ChangeOptions, keys []checkpoint.Key, result *ChangeResult) error {
	chunk := chunkRows
	limit := rate.NewLimiter(rate.Inf, chunk)
	if o.Rate > 0 {
		// Four chunks a second, so that the rows come to the lanes evenly, and not in one burst a second.
		chunk = min(chunkRows, max(1, o.Rate/4))
		limit = rate.NewLimiter(rate.Limit(o.Rate), chunk)
	}
	report := func(done int) {
		if o.Progress != nil {
			o.Progress(done, len(keys))
		}
	}
	report(0)
	done := 0
	for part := range slices.Chunk(keys, chunk) {
		err := limit.WaitN(ctx, len(part))
		n := 0
		if err == nil {
			n, err = l.changeChunk(ctx, a, o, part)
		}
		if err != nil {
			return fmt.Errorf("%d of %d %s, then: %w", result.Changed, len(keys), a.Past(), cmp.Or(context.Cause(ctx), err))
		}
		done += len(part)
		result.Changed += n
		result.Meanwhile += len(part) - n
		report(done)
	}
	return nil
}

// changeChunk changes the rows with these keys in one transaction. The connector may settle some of them at the same time, and
// lock them in another order. If the server ends our transaction because of a deadlock, it is tried again.
func (l *ledgerConn) changeChunk(ctx context.Context, a Action, o ChangeOptions, keys []checkpoint.Key) (n int, err error) {
	for try := 1; ; try++ {
		err = pgx.BeginFunc(ctx, l.conn, func(tx pgx.Tx) (err error) {
			n, err = l.changeInTx(ctx, tx, a, o, keys)
			return err
		})
		switch {
		case try == maxChunkTries:
			return n, err
		case sqlState(err) == "23514": // the log has no partition for today: no connector, which makes them, has run for long
			if _, perr := l.conn.Exec(ctx, l.sql(`select ledger.outbox_make_partitions(now(), 7)`)); perr != nil {
				return 0, errors.Join(err, perr)
			}
		case sqlState(err) != "40P01":
			return n, err
		}
	}
}

// rowsOfChunk joins a table p with the keys of a chunk.
const rowsOfChunk = `unnest($1::int[], $2::text[]::pg_lsn[], $3::bigint[]) c (processor_id, commit_lsn, tx_index)
	where p.processor_id = c.processor_id and p.commit_lsn = c.commit_lsn and p.tx_index = c.tx_index`

// retryRows makes dead letters due now. If there were tries and the sink refused them all (attempts = tries), the destination
// cannot have the message, and the row becomes untried. Otherwise the destination may have accepted a try, or the last try is not recorded.
// Then tries becomes 1 with attempts 0: one try that was not refused stands for all of them, so that no lane takes the message
// for one that is new to the destination (connector/unsent.go).
const retryRows = `update ledger.outbox_parked p set status = 'parked', attempts = 0,
		tries = case when p.tries = 0 or p.attempts < p.tries then 1 else 0 end, tried_at = null, next_attempt_at = now()
	from ` + rowsOfChunk + ` and p.status = 'dead' and p.processor_id <> 0 returning p.processor_id`

// logChange writes a row of the log for each row that the statement before it has put into "changed".
const logChange = `insert into ledger.outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, error_message, commit_lsn, tx_index, epoch)
	select event_id, processor_id, tries, $4, clock_timestamp(), $5, commit_lsn, tx_index,
		coalesce((select epoch from ledger.outbox_checkpoints where slot_name = $6), 0) from changed`

const discardRows = `with changed as (delete from ledger.outbox_parked p using ` + rowsOfChunk + ` and p.status = 'dead'
		returning p.event_id, p.processor_id, p.tries, p.commit_lsn, p.tx_index),
	logged as (` + logChange + `)
	select processor_id from changed`

// killRows makes parked events dead letters. A try may be under way, whose answer the recorder will not write into a row that is
// dead. So attempts becomes less than tries, and a later retryRows treats the row as one that the destination may have accepted.
const killRows = `with changed as (update ledger.outbox_parked p set status = 'dead', next_attempt_at = $7::text::timestamptz,
			attempts = least(p.attempts, greatest(p.tries - 1, 0)),
			error_message = left(concat($5::text, '; before that: ' || nullif(p.error_message, '')), $8)
		from ` + rowsOfChunk + ` and p.status = 'parked'
		returning p.event_id, p.processor_id, p.tries, p.commit_lsn, p.tx_index),
	logged as (` + logChange + `)
	select processor_id from changed`

// changeInTx runs the statement of an action for the rows with these keys, and notifies the connector. It returns how many rows
// were changed: those that no longer had the right status are left out.
func (l *ledgerConn) changeInTx(ctx context.Context, tx pgx.Tx, a Action, o ChangeOptions, keys []checkpoint.Key) (int, error) {
	var processors []int32
	var lsns []string
	var indexes []int64
	for _, k := range keys {
		processors, lsns, indexes = append(processors, k.Processor), append(lsns, k.Position.LSN.String()), append(indexes, k.Position.Index)
	}
	sql, args := retryRows, []any{processors, lsns, indexes}
	reason := cutText(o.Reason, maxErrorLetters)
	switch a {
	case Discard:
		sql, args = discardRows, append(args, "discarded", reason, l.cfg.Source.Slot)
	case Kill:
		var next *string
		if l.cfg.Block {
			next = new("infinity")
		}
		sql, args = killRows, append(args, "dead", reason, l.cfg.Source.Slot, next, maxErrorLetters)
	}
	rows, err := tx.Query(ctx, l.sql(sql), args...)
	if err != nil {
		return 0, fmt.Errorf("change rows: %w", err)
	}
	changed, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return 0, fmt.Errorf("change rows: %w", err)
	}
	n := len(changed)
	slices.Sort(changed)
	for _, id := range withoutZero(slices.Compact(changed)) {
		if err := l.notify(ctx, tx, id); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// cutText makes a text fit for a text column: valid UTF-8, without NUL, and not longer than this many characters.
func cutText(s string, longest int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\x00", "�")
	if r := []rune(s); len(r) > longest {
		return string(r[:longest])
	}
	return s
}

// withoutZero leaves processor 0 out, which no lane works for.
func withoutZero(ids []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(ids), func(id int32) bool { return id == 0 })
}
