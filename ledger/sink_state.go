package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// maxCause is how many bytes of a cause are kept in the column state.
const maxCause = 500

// SinkState is how a sink does, as the connector that streams has written it into outbox_processors. Times are by PostgreSQL's clock when
// it is read, and by this process's clock when it is written.
type SinkState struct {
	// Condition is ok, paused, away, unreachable, failing, suspect or refusing: see monitoring.Condition.
	Condition string `json:"condition"`
	// Since is when the condition began. It is zero if the sink is well.
	Since time.Time `json:"since,omitzero"`
	// AsksAt is when a destination that is away is asked next. If it is zero, the destination is asked now.
	AsksAt time.Time `json:"asks_at,omitzero"`
	// Cause is the last failure, unless the sink is well.
	Cause string `json:"cause,omitempty"`
	// Rate is how many due rows of a suspect sink are tried in a second, at most.
	Rate int `json:"rate,omitempty"`
	// Epoch is that of the session that wrote this. What an earlier session wrote is not true any more.
	Epoch int32 `json:"epoch"`
	// At is when it was written.
	At time.Time `json:"at"`
}

// WriteSinkState writes the state of a sink. Its times become times by PostgreSQL's clock.
func (s Schema) WriteSinkState(ctx context.Context, db Execer, processor int32, st SinkState) error {
	now := time.Now()
	var since, asksIn *time.Duration
	if !st.Since.IsZero() {
		since = new(now.Sub(st.Since))
	}
	if !st.AsksAt.IsZero() {
		asksIn = new(st.AsksAt.Sub(now))
	}
	cause := asciiText(st.Cause) // jsonb takes only what the database's encoding has
	_, err := db.Exec(ctx, s.statement(`update ledger.outbox_processors set state = jsonb_strip_nulls(jsonb_build_object('condition', $2::text,
			'since', clock_timestamp() - $3::interval, 'asks_at', clock_timestamp() + $4::interval, 'cause', nullif($5::text, ''), 'rate', nullif($6::int, 0),
			'epoch', $7::int, 'at', clock_timestamp()))
		where id = $1`), processor, st.Condition, since, asksIn, cause[:min(len(cause), maxCause)], st.Rate, st.Epoch)
	if err != nil {
		return fmt.Errorf("write the state of a sink: %w", err)
	}
	return nil
}

// ReadSinkStates reads what the present session of a slot has written of these processors, by processor. It leaves out what an earlier
// session wrote, and what is no state. Whether the session still runs is for the caller to find out.
func (c *Client) ReadSinkStates(ctx context.Context, slot string, processors []int32) (map[int32]SinkState, error) {
	rows, err := c.conn.Query(ctx, c.schema.statement(`select p.id, p.state::text, c.epoch from ledger.outbox_processors p, ledger.outbox_checkpoints c
		where p.id = any ($1) and p.state is not null and c.slot_name = $2`), processors, slot)
	if err != nil {
		return nil, fmt.Errorf("read the states of sinks: %w", err)
	}
	states := map[int32]SinkState{}
	var id, epoch int32
	var text string
	_, err = pgx.ForEachRow(rows, []any{&id, &text, &epoch}, func() error {
		var st SinkState
		if json.Unmarshal([]byte(text), &st) == nil && st.Epoch == epoch { // a person, or another version, may have written anything
			states[id] = st
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the states of sinks: %w", err)
	}
	return states, nil
}
