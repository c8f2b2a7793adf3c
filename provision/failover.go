package provision

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// failoverVersion is the server_version_num of the first server whose standbys can have a copy of a logical slot.
const failoverVersion = 170000

// checkFailover refuses a failover slot where the server has none.
func checkFailover(s Source, srv server, p *problems) {
	if s.Failover && srv.version < failoverVersion {
		p.add(exitcode.Config, "%s", noFailover(srv.version))
	}
}

// noFailover says why a server of this server_version_num makes no failover slot, and what to do.
func noFailover(version int) string {
	return fmt.Sprintf("PostgreSQL %d keeps no slot on a standby, only %d and newer do; leave out --failover and source.failover: "+
		"docs/failover.md#before-17 says what to do after a promotion instead", version/10000, failoverVersion/10000)
}

// createSlotCommand creates the slot of s with a snapshot that is exported. pglogrepl has no option for a failover slot.
func createSlotCommand(ctx context.Context, repl *pgconn.PgConn, s Source) (pglogrepl.CreateReplicationSlotResult, error) {
	if s.Failover {
		return pglogrepl.ParseCreateReplicationSlot(repl.Exec(ctx,
			fmt.Sprintf("CREATE_REPLICATION_SLOT %s LOGICAL %s (SNAPSHOT 'export', FAILOVER true)", s.Slot, outputPlugin)))
	}
	return pglogrepl.CreateReplicationSlot(ctx, repl, s.Slot, outputPlugin,
		pglogrepl.CreateReplicationSlotOptions{Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT"})
}

// setFailover makes a failover slot of a slot that exists. The server would wait until nobody streams from it.
func setFailover(ctx context.Context, cfg SetupConfig, slot *slotRow) error {
	if slot.activePID != 0 {
		return exitcode.Errorf(exitcode.Config, `slot %q cannot be made a failover slot while a connector streams from it (pid %d); stop all connectors, `+
			`run "outbox-cdc init" again, and start them`, cfg.Slot, slot.activePID)
	}
	timeout := cmp.Or(cfg.Timeout, time.Minute)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s", timeout))
	defer cancel()
	repl, err := connectReplication(ctx, cfg.ReplicationDSN)
	if err != nil {
		return err
	}
	defer closeReplication(ctx, repl)
	_, err = repl.Exec(ctx, fmt.Sprintf("ALTER_REPLICATION_SLOT %s (FAILOVER true)", cfg.Slot)).ReadAll()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("make slot %q a failover slot: %w", cfg.Slot, err)
	}
	return nil
}

// failoverWarnings says what would make a failover lose events, or what stops the stream for the sake of one. slot may be nil.
func failoverWarnings(ctx context.Context, db ledger.Querier, s Source, slot *slotRow) ([]string, error) {
	if slot == nil || !slot.failover {
		if s.Failover && slot != nil {
			var version int
			if err := db.QueryRow(ctx, "select current_setting('server_version_num')::int").Scan(&version); err != nil {
				return nil, err
			}
			if version < failoverVersion {
				return []string{fmt.Sprintf("source.failover is true, but %s", noFailover(version))}, nil
			}
			return []string{fmt.Sprintf(`source.failover is true, but slot %q is no failover slot, so a standby that is promoted lacks it; `+
				`stop all connectors, run "outbox-cdc init", and start them`, s.Slot)}, nil
		}
		return nil, nil
	}
	rows, err := db.Query(ctx, `select trim(both ' "' from name), coalesce(active, false), slot_name is not null
		from unnest(string_to_array(nullif(trim(current_setting('synchronized_standby_slots', true)), ''), ',')) with ordinality as n (name, place)
		left join pg_replication_slots on slot_name = trim(both ' "' from name) order by place`)
	if err != nil {
		return nil, err
	}
	named := 0
	var unused, missing []string
	var name string
	var active, exists bool
	_, err = pgx.ForEachRow(rows, []any{&name, &active, &exists}, func() error {
		named++
		switch {
		case !exists:
			missing = append(missing, name)
		case !active:
			unused = append(unused, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var warnings []string
	if named == 0 {
		warnings = append(warnings, fmt.Sprintf("slot %q is kept for standbys, but synchronized_standby_slots is empty: a standby that lags may be promoted without events "+
			"that were delivered; name the physical slots of the standbys there: docs/failover.md#settings", s.Slot))
	}
	if len(missing) > 0 {
		warnings = append(warnings, "synchronized_standby_slots names slots that do not exist, so nothing is delivered: "+strings.Join(missing, ", ")+
			"; make them (select pg_create_physical_replication_slot('…', true)), or take them out: docs/failover.md#settings")
	}
	if len(unused) > 0 {
		warnings = append(warnings, "synchronized_standby_slots names slots from which no standby streams, so nothing is delivered until one does: "+
			strings.Join(unused, ", ")+"; start the standby, or take the slot out: docs/failover.md#settings")
	}
	return warnings, nil
}
