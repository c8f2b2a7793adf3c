package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// slotRow is a replication slot as pg_replication_slots shows it.
type slotRow struct {
	plugin         string // empty for a physical slot
	database       string
	temporary      bool
	activePID      int    // of the walsender that streams from it; 0 if there is none
	lost           string // why it was invalidated; empty if it was not
	confirmedFlush pglogrepl.LSN
	failover       bool // standbys have a copy of it
}

// StartAnew ends a message about a slot that cannot go on. It says what to do once the cause is mended, and reads well after a
// comma too.
const StartAnew = `run "outbox-cdc resync", which makes the slot anew and delivers what is missing; see docs/slot.md#lost-slot`

// readSlot returns nil if there is no such slot. It reads columns that only newer servers have from the row as JSON. wal_status
// comes before conflicting, because PostgreSQL 16 also shows a slot whose WAL was removed as conflicting.
func readSlot(ctx context.Context, db ledger.Querier, name string) (*slotRow, error) {
	var s slotRow
	err := db.QueryRow(ctx, `select coalesce(plugin, ''), coalesce(database, ''), temporary, coalesce(active_pid, 0),
			coalesce(j ->> 'invalidation_reason',
				case when wal_status = 'lost' then 'wal_status=lost' when j ->> 'conflicting' = 'true' then 'conflicting' end, ''),
			coalesce(confirmed_flush_lsn, '0/0'), coalesce((j ->> 'failover')::boolean, false)
		from pg_replication_slots s, to_jsonb(s) as j where slot_name = $1`, name).
		Scan(&s.plugin, &s.database, &s.temporary, &s.activePID, &s.lost, &s.confirmedFlush, &s.failover)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read slot %q: %w", name, err)
	}
	return &s, nil
}

// IsStreamed reports whether a connector streams from the slot of this name now.
func IsStreamed(ctx context.Context, db ledger.Querier, slot string) (bool, error) {
	s, err := readSlot(ctx, db, slot)
	return s != nil && s.activePID != 0, err
}

// server is what a slot and its checkpoint have to match.
type server struct {
	version int  // server_version_num
	standby bool // it is in recovery
	ledger.Identity
}

// slotState says what has to be done before the slot can be streamed from.
type slotState int

const (
	slotReady  slotState = iota
	slotAbsent           // it was never made: init makes it
	slotHalf             // an init that did not end has left it: init makes it again
)

// judge compares the slot with its checkpoint. If neither init nor run may touch the slot, it adds the reason to p. On a standby it adds
// nothing: checkServer has refused that already, and a remedy for the slot would be wrong there.
func judge(s Source, srv server, slot *slotRow, c *ledger.Checkpoint, p *problems) slotState {
	switch {
	case srv.standby:
	case c == nil && slot == nil:
		return slotAbsent
	case c == nil && slot.isElsewhere(srv.Identity): // no advice to drop it: its owner may be away for a while
		p.add(exitcode.SlotLost, "replication slot %q belongs to database %q, this is %q; set source.slot to another name", s.Slot, slot.database, srv.DatabaseName)
	case c == nil:
		p.add(exitcode.SlotLost, `replication slot %q exists but was not made by "outbox-cdc init": no checkpoint knows it; `+
			`drop it (select pg_drop_replication_slot('%s')), or set source.slot to another name`, s.Slot, s.Slot)
	case c.Rebuilding:
		p.add(exitcode.SlotLost, `slot %q is being made anew: if a resync is at work, wait for it, else run "outbox-cdc resync" again, which goes on from there`, s.Slot)
	case c.State == ledger.Building && slot == nil:
		return slotAbsent
	case c.State == ledger.Building:
		if slot.plugin != outputPlugin || slot.database != srv.DatabaseName {
			p.add(exitcode.SlotLost, "replication slot %q was made by somebody else; set source.slot to another name", s.Slot)
		} else if slot.activePID != 0 {
			p.add(exitcode.SlotLost, `replication slot %q is half made and in use by pid %d: if an init is at work, wait for it, else end that, then run "outbox-cdc init"`,
				s.Slot, slot.activePID)
		}
		return slotHalf
	case differs(srv.Identity, c.Identity) != "":
		*p = append(*p, otherDatabase(s.Slot, srv.Identity, c.Identity, slot.goOn(srv.Identity)))
	case slot == nil && HasNewTimeline(srv.Identity, c.Identity):
		p.add(exitcode.SlotLost, "replication slot %q is gone, because the server was promoted and had no copy of it; "+StartAnew, s.Slot)
	case slot == nil:
		p.add(exitcode.SlotLost, "replication slot %q is gone; find out who dropped it, "+StartAnew, s.Slot)
	case slot.plugin != outputPlugin:
		p.add(exitcode.SlotLost, "replication slot %q is not a logical slot of %s, so somebody else has made it; set source.slot to another name, or drop it "+
			"(select pg_drop_replication_slot('%s')), "+StartAnew, s.Slot, outputPlugin, s.Slot)
	case slot.database != srv.DatabaseName:
		p.add(exitcode.SlotLost, "replication slot %q belongs to database %q, this is %q; correct source.dsn, or set source.slot to another name",
			s.Slot, slot.database, srv.DatabaseName)
	case slot.temporary:
		p.add(exitcode.SlotLost, "replication slot %q is temporary, and ends with the session that made it; end that (select pg_terminate_backend(%d)), "+
			StartAnew, s.Slot, slot.activePID)
	case slot.lost != "":
		p.add(exitcode.SlotLost, "replication slot %q was invalidated (%s): WAL that it needs may be gone; mend the cause, "+StartAnew, s.Slot, slot.lost)
	}
	return slotReady
}
