package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Processor is a sink as a row of outbox_processors describes it.
type Processor struct {
	Name string
	Type string
	// Configuration is shown to people. It holds no secrets.
	Configuration json.RawMessage
	// RenamedFrom is the name that the sink had before, or empty. If a row has that name and none has the new one, the row is
	// renamed.
	RenamedFrom string
	// Replaces deletes a row of the new name that owns nothing, so that the row of the old name can be renamed. Only a process
	// that holds the slot may set it: another process could go on to write outcomes under the id of the deleted row, and nobody
	// would ever find them.
	Replaces bool
	// FromStart says that the sink is also owed the events that were in the outbox before the sink was registered.
	FromStart bool
}

// Session is what can begin a transaction: a connection, a pool, or a transaction.
type Session interface {
	SQL
	Begin(ctx context.Context) (pgx.Tx, error)
}

// RegisterProcessors writes the sinks of a connector into outbox_processors, and returns their ids by name. Each start calls it:
// a row that has not changed is not written. Whether a sink is paused, and since when it is owed events, stays as it is.
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
	// The insert asks first whether the row exists, because an insert that ends in a conflict uses up an id all the same.
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

// deleteEmpty deletes the row of the new name if the row of the old name exists and the new one owns nothing: no parked row and
// no row in the log. It returns whether a person has paused the deleted sink. The log has no index on processors, so the
// statement stops at the first row that it finds, and looks at no row from before the sink was registered.
const deleteEmpty = `delete from ledger.outbox_processors n where connector = $1 and processor_name = $3
		and exists (select from ledger.outbox_processors where connector = $1 and processor_name = $2)
		and not exists (select from ledger.outbox_parked where processor_id = n.id)
		and (select true from ledger.outbox_delivery_log where processor_id = n.id and completed_at >= n.since - interval '1 hour' limit 1) is null
	returning not is_active`

// rename gives the row of the old name the new one. If a row of the new name was deleted, its pause is kept.
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

// Orphans returns the sinks of a connector that are not among the known ones and still have parked events, each with the number
// of these events.
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
