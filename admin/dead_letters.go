package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// Action is what a person does to rows of outbox_parked.
type Action string

const (
	Retry   Action = "retry"   // a dead letter is tried again, as if it had never been
	Discard Action = "discard" // a dead letter is deleted, with a row in the log
	Kill    Action = "kill"    // what waits becomes a dead letter, with a row in the log
)

// actions are the status of the rows that an action is for, and what it has done to them.
var actions = map[Action]struct{ picks, past string }{
	Retry:   {"dead", "retried"},
	Discard: {"dead", "discarded"},
	Kill:    {"parked", "killed"},
}

// Past is the word for a row to which it was done.
func (a Action) Past() string { return actions[a].past }

// noun is what a row of a status is called.
func noun(status string) string {
	if status == "parked" {
		return "parked event"
	}
	return "dead letter"
}

// ChangeOptions say which rows are changed, and how.
type ChangeOptions struct {
	Filter Filter
	// DryRun finds the rows, and changes nothing.
	DryRun bool
	// Rate is rows a second at most; 0: as fast as they go.
	Rate int
	// Reason stands in the log row of what is discarded or killed: by whom, and why.
	Reason string
	// Confirm is asked before anything is changed, with how many rows of which sinks; its error ends it. It may be nil.
	Confirm func(total int, sinks []SinkRows) error
	// Progress is told how many of how many are done; it may be nil.
	Progress func(done, total int)
}

// SinkRows counts rows of a sink.
type SinkRows struct {
	Sink string `json:"sink"`
	Rows int    `json:"rows"`
	// Paused: what is retried waits until the sink is resumed.
	Paused bool `json:"paused,omitempty"`
}

// ChangeResult says what was done.
type ChangeResult struct {
	Action  Action `json:"action"`
	DryRun  bool   `json:"dry_run,omitempty"`
	Matched int    `json:"matched"`
	Changed int    `json:"changed"`
	// Meanwhile is how many were changed by somebody else, the connector included, after they were found.
	Meanwhile int `json:"meanwhile,omitempty"`
	// Left are dead letters of no sink that match, and cannot be retried.
	Left  int        `json:"left,omitempty"`
	Sinks []SinkRows `json:"sinks"`
}

// Rows of a chunk are changed in one transaction. A lane may want to settle one of them.
const (
	chunkRows    = 500
	chunkTries   = 5
	longestError = 2000 // characters kept
)

// ChangeParked does an action to the rows that a filter picks. They are found first, and then changed by 500 in transactions of their own,
// each of which wakes the lanes. A filter that picks nothing, or an id that is not what the action is for, is an error, and nothing is changed. An error in
// the middle leaves what was done, which the result says.
func ChangeParked(ctx context.Context, c Config, a Action, o ChangeOptions) (ChangeResult, error) {
	result := ChangeResult{Action: a, DryRun: o.DryRun, Sinks: []SinkRows{}}
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		keys, err := l.find(ctx, a, o.Filter, &result)
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

// find gives the keys of the rows: 24 bytes each. What a person confirms is what is changed, whatever dies meanwhile.
func (l *ledgerConn) find(ctx context.Context, a Action, f Filter, result *ChangeResult) ([]checkpoint.Key, error) {
	processors, err := l.named(f.Sinks)
	if err != nil {
		return nil, err
	}
	var keys []checkpoint.Key
	counts := map[int32]int{}
	seen := map[string]bool{}
	err = l.each(ctx, parkedQuery{status: actions[a].picks, filter: f, processors: processors}, func(p *Parked) (bool, error) {
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
		if !seen[l.canonical(id)] {
			return nil, unchanged(l.notThat(ctx, actions[a].picks, a.Past(), id, processors))
		}
	}
	if result.Left > 0 && (len(keys) == 0 || len(f.IDs) > 0) {
		return nil, fmt.Errorf("%s of no sink cannot be retried: no valid event could be made of the row; mend what wrote it, insert it anew, and discard this",
			plural(result.Left, "dead letter"))
	}
	if len(keys) == 0 {
		return nil, unchanged(l.nothing(ctx, actions[a].picks, f))
	}
	result.Matched = len(keys)
	for _, id := range processors {
		if n := counts[id]; n > 0 {
			s := l.sink(id)
			result.Sinks = append(result.Sinks, SinkRows{Sink: l.name(id), Rows: n, Paused: s != nil && !s.active})
		}
	}
	return keys, nil
}

// nothing says that a filter picks nothing, and whether there is anything that it could pick.
func (l *ledgerConn) nothing(ctx context.Context, status string, f Filter) error {
	all, err := l.named(nil)
	if err != nil {
		return err
	}
	var n int
	err = l.conn.QueryRow(ctx, l.sql("select count(*) from ledger.outbox_parked where processor_id = any ($1) and status = $2"), all, status).Scan(&n)
	switch {
	case err != nil:
		return fmt.Errorf("count rows: %w", err)
	case n == 0:
		return fmt.Errorf("there is no %s", noun(status))
	}
	return fmt.Errorf("no %s matches (%s), of %d", noun(status), f, n)
}

// unchanged adds what matters to whoever wanted a change.
func unchanged(err error) error { return fmt.Errorf("%w; nothing was changed", err) }

// notThat says what an event is that has not the status for what was to be done with it.
func (l *ledgerConn) notThat(ctx context.Context, wanted, done, id string, processors []int32) error {
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
			state += " at " + l.name(processor)
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
	return fmt.Errorf("event %s cannot be %s: it is no %s, but %s", id, done, noun(wanted), strings.Join(states, ", "))
}

func (l *ledgerConn) changeAll(ctx context.Context, a Action, o ChangeOptions, keys []checkpoint.Key, result *ChangeResult) error {
	chunk := chunkRows
	limit := rate.NewLimiter(rate.Inf, chunk)
	if o.Rate > 0 {
		// Four chunks a second: a rate that is one for the lanes as well.
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
			n, err = l.change(ctx, a, o, part)
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

// change does a chunk. The connector settles rows of it at the same time, in another order: who loses a deadlock tries again.
func (l *ledgerConn) change(ctx context.Context, a Action, o ChangeOptions, keys []checkpoint.Key) (n int, err error) {
	for try := 1; ; try++ {
		err = pgx.BeginFunc(ctx, l.conn, func(tx pgx.Tx) (err error) {
			n, err = l.changeIn(ctx, tx, a, o, keys)
			return err
		})
		switch {
		case try == chunkTries:
			return n, err
		case sqlState(err) == "23514": // the connector, which makes the log's partitions, was away for long
			if _, perr := l.conn.Exec(ctx, l.sql(`select ledger.outbox_make_partitions(now(), 7)`)); perr != nil {
				return 0, errors.Join(err, perr)
			}
		case sqlState(err) != "40P01":
			return n, err
		}
	}
}

const theseRows = `unnest($1::int[], $2::text[]::pg_lsn[], $3::bigint[]) c (processor_id, commit_lsn, tx_index)
	where p.processor_id = c.processor_id and p.commit_lsn = c.commit_lsn and p.tx_index = c.tx_index`

// A row of which every try was refused is as good as untried. Of another one the destination may have accepted a try, or its last
// try is not recorded: then one try that was not refused stands for all of them, so that no lane takes it for new
// (connector/unsent.go).
const retryRows = `update ledger.outbox_parked p set status = 'parked', attempts = 0,
		tries = case when p.tries = 0 or p.attempts < p.tries then 1 else 0 end, tried_at = null, next_attempt_at = now()
	from ` + theseRows + ` and p.status = 'dead' and p.processor_id <> 0 returning p.processor_id`

const logChange = `insert into ledger.outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, error_message, commit_lsn, tx_index, epoch)
	select event_id, processor_id, tries, $4, clock_timestamp(), $5, commit_lsn, tx_index,
		coalesce((select epoch from ledger.outbox_checkpoints where slot_name = $6), 0) from changed`

const discardRows = `with changed as (delete from ledger.outbox_parked p using ` + theseRows + ` and p.status = 'dead'
		returning p.event_id, p.processor_id, p.tries, p.commit_lsn, p.tx_index),
	logged as (` + logChange + `)
	select processor_id from changed`

// killRows counts one refusal less: a try may be under way, whose answer the recorder no longer writes into the row. So retryRows takes
// it for one of unknown outcome.
const killRows = `with changed as (update ledger.outbox_parked p set status = 'dead', next_attempt_at = $7::text::timestamptz,
			attempts = least(p.attempts, greatest(p.tries - 1, 0)),
			error_message = left(concat($5::text, '; before that: ' || nullif(p.error_message, '')), $8)
		from ` + theseRows + ` and p.status = 'parked'
		returning p.event_id, p.processor_id, p.tries, p.commit_lsn, p.tx_index),
	logged as (` + logChange + `)
	select processor_id from changed`

func (l *ledgerConn) changeIn(ctx context.Context, tx pgx.Tx, a Action, o ChangeOptions, keys []checkpoint.Key) (int, error) {
	var processors []int32
	var lsns []string
	var indexes []int64
	for _, k := range keys {
		processors, lsns, indexes = append(processors, k.Processor), append(lsns, k.Position.LSN.String()), append(indexes, k.Position.Index)
	}
	sql, args := retryRows, []any{processors, lsns, indexes}
	reason := cutText(o.Reason, longestError)
	switch a {
	case Discard:
		sql, args = discardRows, append(args, "discarded", reason, l.cfg.Source.Slot)
	case Kill:
		var next *string
		if l.cfg.Block {
			next = new("infinity")
		}
		sql, args = killRows, append(args, "dead", reason, l.cfg.Source.Slot, next, longestError)
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
	for _, id := range without(slices.Compact(changed)) {
		if err := l.tell(ctx, tx, id); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// DeadLetter is a dead letter with its history.
type DeadLetter struct {
	Parked
	// Log are the newest tries, the last one first.
	Log []Try `json:"log"`
}

// DeadLetters calls f with the dead letters that a filter picks, in order of sink and position, until it returns false.
func DeadLetters(ctx context.Context, c Config, f Filter, payload bool, each func(*Parked) (bool, error)) error {
	return withLedger(ctx, c, func(l *ledgerConn) error {
		processors, err := l.named(f.Sinks)
		if err != nil {
			return err
		}
		return l.each(ctx, parkedQuery{status: "dead", filter: f, processors: processors, payload: payload}, each)
	})
}

// ShowDeadLetters gives at most limit dead letters with their history. An id that is none is an error, and so is a filter that
// picks nothing.
func ShowDeadLetters(ctx context.Context, c Config, f Filter, payload bool, limit int) ([]DeadLetter, error) {
	var letters []DeadLetter
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		processors, err := l.named(f.Sinks)
		if err != nil {
			return err
		}
		err = l.each(ctx, parkedQuery{status: "dead", filter: f, processors: processors, payload: payload}, func(p *Parked) (bool, error) {
			letters = append(letters, DeadLetter{Parked: *p, Log: []Try{}})
			return len(letters) < limit, nil
		})
		if err != nil {
			return err
		}
		if letters == nil {
			for _, id := range f.IDs {
				return l.notThat(ctx, "dead", "shown as a dead letter", id, processors)
			}
			return l.nothing(ctx, "dead", f)
		}
		for i := range letters {
			if letters[i].Event.ID == "" {
				continue
			}
			if letters[i].Log, err = l.tries(ctx, letters[i].Event.ID, []int32{letters[i].key.Processor}, 20); err != nil {
				return err
			}
		}
		return nil
	})
	return letters, err
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// cutText is what a text column takes: valid, without NUL, and not endless.
func cutText(s string, longest int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\x00", "�")
	if r := []rune(s); len(r) > longest {
		return string(r[:longest])
	}
	return s
}

// since is a time that long ago, by the server's clock, which the rows have.
func (l *ledgerConn) since(ctx context.Context, ago time.Duration) (t time.Time, err error) {
	err = l.conn.QueryRow(ctx, "select clock_timestamp() - $1::interval", ago).Scan(&t)
	return t, err
}
