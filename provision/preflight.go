package provision

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// outputPlugin is the output plugin of our slots.
const outputPlugin = "pgoutput"

// minVersion is the server_version_num of the oldest server that is supported.
const minVersion = 140000

// PreflightConfig says what Preflight checks.
type PreflightConfig struct {
	Source
	// ReplicationUser is the login that will stream. If it is empty, Preflight does not check its rights.
	ReplicationUser string
}

// Facts are what Preflight has found out.
type Facts struct {
	Table Table
	// Warnings are about what is no reason to refuse.
	Warnings []string
	// Newer is not nil if a later version has changed the ledger, and says so. Preflight leaves it to the caller, because only a process that
	// begins has to be refused: one that has streamed goes on while the others are brought up to date.
	Newer error

	// Identity is that of the database, with the hosts of Source.
	Identity ledger.Identity

	// These are for tests.
	version int
	slot    slotRow
}

// Preflight checks whether a session can begin. Its error joins all mistakes, and the one that decides the exit code is the
// first. Preflight changes nothing. db is a connection of the login for SQL.
func Preflight(ctx context.Context, db ledger.Querier, cfg PreflightConfig) (Facts, error) {
	if err := cfg.checkNames(); err != nil {
		return Facts{}, err
	}
	var p problems
	facts, err := checkAll(ctx, db, cfg, &p)
	if err != nil {
		return Facts{}, fmt.Errorf("preflight: %w", err)
	}
	return facts, p.join()
}

// checkAll does the checks of Preflight. It adds what is wrong to p; its own error means that it could not check.
func checkAll(ctx context.Context, db ledger.Querier, cfg PreflightConfig, p *problems) (Facts, error) {
	var f Facts
	srv, err := checkServer(ctx, db, p)
	if err != nil {
		return f, err
	}
	srv.Hosts = cfg.Hosts
	f.version, f.Identity = srv.version, srv.Identity
	if f.Warnings, err = encodingWarnings(ctx, db); err != nil {
		return f, err
	}
	table, err := checkNamedTable(ctx, db, cfg.Source, p)
	if err != nil {
		return f, err
	}
	if table == nil {
		if err := checkMissing(ctx, db, cfg.Source, p); err != nil {
			return f, err
		}
	} else {
		f.Table = *table
		if err := checkPublication(ctx, db, cfg.Source, table, p); err != nil {
			return f, err
		}
		warnings, err := checkCleanup(ctx, db, cfg.Source, table, p)
		if err != nil {
			return f, err
		}
		f.Warnings = append(f.Warnings, warnings...)
	}
	hasLedger, err := checkLedger(ctx, db, cfg.Source, table, p)
	if err != nil {
		return f, err
	}
	if f.Newer, err = findNewer(ctx, db, cfg.Source); err != nil {
		return f, err
	}
	lacking := len(*p)
	if err := checkPrivileges(ctx, db, cfg.Source, p); err != nil {
		return f, err
	}
	if err := checkReplicationUser(ctx, db, cfg.ReplicationUser, p); err != nil {
		return f, err
	}
	if !hasLedger || len(*p) > lacking {
		return f, nil // to judge the slot, we would have to read its checkpoint
	}
	err = checkSlot(ctx, db, cfg.Source, srv, &f, p)
	return f, err
}

// checkServer checks whether the server can be used at all, and returns what a slot has to match.
func checkServer(ctx context.Context, db ledger.Querier, p *problems) (server, error) {
	var srv server
	var id int64
	err := db.QueryRow(ctx, `select current_setting('server_version_num')::int, pg_is_in_recovery(),
		current_database(), (select oid from pg_database where datname = current_database()), system_identifier,
		case when pg_is_in_recovery() then 0 else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end
		from pg_control_system()`).Scan(&srv.version, &srv.standby, &srv.DatabaseName, &srv.DatabaseOID, &id, &srv.Timeline)
	if err != nil {
		return srv, err
	}
	srv.SystemIdentifier = strconv.FormatUint(uint64(id), 10) // unsigned, as IDENTIFY_SYSTEM writes it
	if srv.version < minVersion {
		p.add(exitcode.Config, "PostgreSQL %d is too old; upgrade to %d or newer", srv.version/10000, minVersion/10000)
	}
	levels, err := readWALLevels(ctx, db)
	if err != nil {
		return srv, err
	}
	levels.check(p)
	if srv.standby {
		p.add(exitcode.Config, "the server is a standby, where nothing can be recorded; let source.dsn lead to the primary")
	}
	return srv, nil
}

// checkLedger checks whether the ledger has all its tables, and whether it was made for ids of the outbox's type. It reports
// whether the tables are there.
func checkLedger(ctx context.Context, db ledger.Querier, s Source, table *Table, p *problems) (bool, error) {
	rows, err := db.Query(ctx, `select relname::text from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = $1`, s.LedgerSchema)
	if err != nil {
		return false, err
	}
	have, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return false, err
	}
	if missing := without(ledgerTables(), have); len(missing) > 0 {
		p.add(exitcode.Config, `schema %q lacks the tables %s; run "outbox-cdc init", or correct source.ledger_schema`, s.LedgerSchema, strings.Join(missing, ", "))
		return false, nil
	}
	rows, err = db.Query(ctx, `select format('table %s in schema %s lacks the column %s', tab, quote_ident($1), col)
		from (values ('outbox_delivery_log', 'member'), ('outbox_processors', 'state'), ('outbox_checkpoints', 'source_hosts'), ('outbox_backlog', 'finished_at')) as later (tab, col)
		where not exists (select from pg_attribute a join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace
			where nspname = $1 and relname = tab and attname = col and not attisdropped)
		union all
		select format('schema %s lacks the function %s', quote_ident($1), $2::text)
		where not exists (select from pg_proc p join pg_namespace n on n.oid = pronamespace where nspname = $1 and proname = split_part($2, '(', 1))`, s.LedgerSchema, dropFunction)
	if err != nil {
		return false, err
	}
	lacks, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return false, err
	}
	for _, text := range lacks {
		p.add(exitcode.Config, `%s, because an older version has made it; run "outbox-cdc init"`, text)
	}
	eventID, err := s.ledger().EventIDType(ctx, db)
	if err != nil {
		return false, err
	}
	if table != nil && table.idType != 0 && table.EventIDType() != eventID {
		p.add(exitcode.Config, `the ledger in schema %q was made for ids of type %s, those of %s need %s; `+
			`set source.ledger_schema to another schema and run "outbox-cdc init"`, s.LedgerSchema, eventID, s.Table, table.EventIDType())
	}
	return true, nil
}

// findNewer looks whether a later version has changed the ledger. Its second error means that it could not look.
func findNewer(ctx context.Context, db ledger.Querier, s Source) (newer, err error) {
	err = migrations.CheckNewer(ctx, db, s.LedgerSchema)
	if exitcode.Of(err) == exitcode.Config {
		return err, nil
	}
	return nil, err
}

// checkSlot checks whether the slot is ready to be streamed from. It sets f.slot.
func checkSlot(ctx context.Context, db ledger.Querier, s Source, srv server, f *Facts, p *problems) error {
	slot, err := readSlot(ctx, db, s.Slot)
	if err != nil {
		return err
	}
	c, err := readCheckpoint(ctx, db, s)
	if err != nil {
		return err
	}
	if slot != nil {
		f.slot = *slot
	}
	said := len(*p)
	switch state := judge(s, srv, slot, c, p); {
	case len(*p) > said:
	case state == slotAbsent:
		p.add(exitcode.Config, `replication slot %q was not made yet; run "outbox-cdc init"`, s.Slot)
	case state == slotHalf:
		p.add(exitcode.Config, `replication slot %q is half made: an init did not end; run "outbox-cdc init" again`, s.Slot)
	}
	warnings, err := failoverWarnings(ctx, db, s, slot)
	f.Warnings = append(f.Warnings, warnings...)
	return err
}
