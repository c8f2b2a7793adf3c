package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Processor is a sink as outbox_processors knows it.
type Processor struct {
	Name string
	Type string
	// Configuration is for people. It holds no secrets.
	Configuration json.RawMessage
	// RenamedFrom is the name that it had before, or empty. Where that one is known, and the new one is not, it is renamed.
	RenamedFrom string
	// Replaces: a row of the new name that owns nothing gives way to the renamed one. For whoever holds the slot alone: a
	// session of the row that goes would write on for it, and nobody would ever find that again.
	Replaces bool
	// FromStart: what the outbox holds from before the sink was first known is owed to it as well.
	FromStart bool
}

// Session is a database in which something can be written: a connection, a pool or a transaction.
type Session interface {
	SQL
	Begin(ctx context.Context) (pgx.Tx, error)
}

// RegisterProcessors makes the sinks of a connector known, and gives their ids by name. It may be called at every start:
// what has not changed is not written, and whether a sink is paused and since when it is owed events stays as it
// is.
func RegisterProcessors(ctx context.Context, db Session, s Source, connector string, processors []Processor) (map[string]int32, error) {
	ids := map[string]int32{}
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		for _, p := range processors {
			id, err := registerProcessor(ctx, tx, s, connector, p)
			if err != nil {
				return fmt.Errorf("register sink %q: %w", p.Name, err)
			}
			ids[p.Name] = id
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

func registerProcessor(ctx context.Context, tx pgx.Tx, s Source, connector string, p Processor) (int32, error) {
	configuration := p.Configuration
	if configuration == nil {
		configuration = json.RawMessage("{}")
	}
	if err := rename(ctx, tx, s, connector, p); err != nil {
		return 0, err
	}
	// Asked for first: an insert that meets a conflict uses up an id.
	_, err := tx.Exec(ctx, s.Ledger(`insert into ledger.outbox_processors (connector, processor_name, processor_type, configuration, since)
		select $1, $2, $3, $4::jsonb, case when $5 then '-infinity' else now() end
		where not exists (select from ledger.outbox_processors where connector = $1 and processor_name = $2)
		on conflict (connector, processor_name) do nothing`), connector, p.Name, p.Type, configuration, p.FromStart)
	if err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, s.Ledger(`update ledger.outbox_processors set processor_type = $3, configuration = $4::jsonb
		where connector = $1 and processor_name = $2 and (processor_type, configuration) is distinct from ($3, $4::jsonb)`),
		connector, p.Name, p.Type, configuration)
	if err != nil {
		return 0, err
	}
	var id int32
	err = tx.QueryRow(ctx, s.Ledger("select id from ledger.outbox_processors where connector = $1 and processor_name = $2"), connector, p.Name).Scan(&id)
	return id, err
}

// deleteEmpty deletes the row of a new name that owns nothing while the old one is there, and says whether a person has paused it. The
// log, which has no index of processors, is read no further than to the first row, and not from before the sink was known.
const deleteEmpty = `delete from ledger.outbox_processors n where connector = $1 and processor_name = $3
		and exists (select from ledger.outbox_processors where connector = $1 and processor_name = $2)
		and not exists (select from ledger.outbox_parked where processor_id = n.id)
		and (select true from ledger.outbox_delivery_log where processor_id = n.id and completed_at >= n.since - interval '1 hour' limit 1) is null
	returning not is_active`

func rename(ctx context.Context, tx pgx.Tx, s Source, connector string, p Processor) error {
	if p.RenamedFrom == "" {
		return nil
	}
	paused := false
	if p.Replaces {
		err := tx.QueryRow(ctx, s.Ledger(deleteEmpty), connector, p.RenamedFrom, p.Name).Scan(&paused)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
	}
	_, err := tx.Exec(ctx, s.Ledger(`update ledger.outbox_processors set processor_name = $3, is_active = is_active and not $4 where connector = $1 and processor_name = $2
		and not exists (select from ledger.outbox_processors where connector = $1 and processor_name = $3)`), connector, p.RenamedFrom, p.Name, paused)
	return err
}

// Orphans names the sinks of a connector that are not among these and still have parked events, with their number.
func Orphans(ctx context.Context, db SQL, s Source, connector string, known []string) (map[string]int64, error) {
	rows, err := db.Query(ctx, s.Ledger(`select p.processor_name, (select count(*) from ledger.outbox_parked where processor_id = p.id and status = 'parked')
		from ledger.outbox_processors p where p.connector = $1 and p.processor_name <> all ($2)
			and exists (select from ledger.outbox_parked where processor_id = p.id and status = 'parked')`), connector, known)
	if err != nil {
		return nil, fmt.Errorf("look for parked events of sinks that are gone: %w", err)
	}
	orphans := map[string]int64{}
	var name string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error { orphans[name] = n; return nil })
	return orphans, err
}
