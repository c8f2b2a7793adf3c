package provision

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// walLevels are the configured wal_level, and the one in effect, which PostgreSQL has from 19 on; it is empty before. By the documentation
// of 19, a server with wal_level = replica writes what logical decoding needs as long as it has a valid logical slot: the first slot raises
// the level in effect, and the end of the last one lowers it.
type walLevels struct{ configured, effective string }

const logicalLevel = "logical"

func readWALLevels(ctx context.Context, db ledger.Querier) (walLevels, error) {
	var w walLevels
	err := db.QueryRow(ctx, "select current_setting('wal_level'), coalesce(current_setting('effective_wal_level', true), '')").Scan(&w.configured, &w.effective)
	return w, err
}

// check adds a problem if the server cannot decode, and would not after a slot was created either.
func (w walLevels) check(p *problems) {
	const how = " in postgresql.conf (where it is managed: rds.logical_replication = 1, cloudsql.logical_decoding = on) and restart the server"
	switch {
	case w.configured == logicalLevel || w.effective == logicalLevel:
	case w.effective == "":
		p.add(exitcode.Config, "wal_level is %s, which leaves out what is needed; set wal_level = logical"+how, w.configured)
	case w.configured == "minimal":
		p.add(exitcode.Config, "wal_level is minimal, which leaves out what is needed; set wal_level = replica or logical"+how)
	}
}

// raises reports whether the creation of a slot makes the server write more WAL than before. That takes a while: all processes have to know
// of it first, and it may need a checkpoint.
func (w walLevels) raises() bool {
	return w.configured != logicalLevel && w.effective != "" && w.effective != logicalLevel
}

// raising describes the server's own work for the slot that the backend pid creates, as a Blocker. It says what the backend waits for, if the
// login may see that.
func raising(ctx context.Context, db ledger.Querier, pid uint32) ([]Blocker, error) {
	b := Blocker{raising: true}
	err := db.QueryRow(ctx, "select coalesce(wait_event_type || ': ' || wait_event, '') from pg_stat_activity where pid = $1", int(pid)).Scan(&b.waitsFor)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return []Blocker{b}, err
}
