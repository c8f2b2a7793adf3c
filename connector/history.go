package connector

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// A slot and its checkpoint may have come apart. A connector confirms nothing that it has not written into the checkpoint. So a slot that
// stands ahead of it was moved or made by somebody else, or the checkpoint is older: a standby was promoted that had the slot's new
// position and not the last rows of the ledger. What lies between the two may never have been delivered, and the stream does not bring
// it any more. On another timeline the same may have happened, and the slot does not show it.
//
// A session that finds such a slot reconciles. In one transaction it files a job for each sink, which compares the outbox with the ledger,
// and moves the checkpoint to where the slot stands. The transaction holds only for the session's epoch. Then it streams. If the process
// ends before that transaction has committed, the next session finds the same and does the same; afterwards the jobs are in the ledger.

// history is what a session has found out about its slot.
type history struct {
	now     ledger.Identity // of the server
	slot    pglogrepl.LSN   // what the slot has confirmed
	written pglogrepl.LSN   // how far the server has written
}

// readHistory compares server and slot with the checkpoint. It returns an error if the database may be a copy, or if the checkpoint is of
// another history.
func (c *Connector) readHistory(ctx context.Context, id replication.Identity, start ledger.Start, facts provision.Facts) (history, error) {
	slot := c.cfg.Source.Slot
	h := history{now: facts.Identity}
	h.now.SystemIdentifier, h.now.Timeline, h.now.DatabaseName = id.SystemID, id.Timeline, id.Database
	if h.now != facts.Identity {
		return h, fmt.Errorf("the server was promoted just now, or source.dsn and source.replication_dsn lead to different servers: "+
			"database %q of cluster %s on timeline %d, and %q of %s on %d; the stream has to come from the server that has the ledger",
			facts.Identity.DatabaseName, facts.Identity.SystemIdentifier, facts.Identity.Timeline, id.Database, id.SystemID, id.Timeline)
	}
	if err := provision.CheckIdentity(slot, h.now, start.Identity); err != nil {
		return h, err
	}
	h.now.Hosts = cmp.Or(h.now.Hosts, start.Hosts)
	var err error
	if h.slot, h.written, err = c.db.slotPosition(ctx); err != nil {
		return h, err
	}
	// The server does not check what is reported to it: the slot would jump to this LSN, past all events to come.
	if start.Confirmed > h.written {
		return h, exitcode.Errorf(exitcode.SlotLost, "the checkpoint of slot %q stands at %s, ahead of the server's %s: it is of another history; %s",
			slot, start.Confirmed, h.written, provision.StartAnew)
	}
	return h, nil
}

// settleHistory reconciles if slot and checkpoint have come apart, and writes into the checkpoint what a later session will know the
// database by. It returns where the session starts. ids has the processor ids of the sinks.
func (c *Connector) settleHistory(ctx context.Context, h history, start ledger.Start, ids map[string]int32) (ledger.Start, error) {
	next := ledger.Continuation{Identity: h.now, Prefix: start.Prefix, Confirmed: start.Confirmed}
	ahead, promoted := h.slot > start.Confirmed, provision.HasNewTimeline(h.now, start.Identity)
	if ahead {
		next.Confirmed = h.slot
		// The prefix may stand in a transaction behind the slot. It never goes back: what it covers is settled.
		if at := (checkpoint.Position{LSN: h.slot, Index: -1}); at.Compare(next.Prefix) > 0 {
			next.Prefix = at
		}
	}
	if ahead || promoted {
		for _, id := range slices.Sorted(maps.Values(ids)) {
			// Rows that the job parks stand before everything that the stream still brings.
			next.Jobs = append(next.Jobs, ledger.NewJob{Processor: id, Reason: ledger.JobOfReconcile, Base: start.Prefix, Start: next.Confirmed})
		}
		// A session may have delivered on the server of before, and what the ledger knew of it was lost.
		start.Clean, start.Ended = false, false
	}
	if !ahead && !promoted && h.now == start.Identity {
		return start, nil
	}
	if err := c.db.continueAt(ctx, start.Epoch, next); err != nil {
		return start, fmt.Errorf("reconcile slot and checkpoint: %w", err)
	}
	c.tellHistory(h, start)
	start.Identity, start.Prefix, start.Confirmed = next.Identity, next.Prefix, next.Confirmed
	maps.DeleteFunc(start.Settled, func(k checkpoint.Key, _ struct{}) bool { return k.Position.Compare(next.Prefix) <= 0 })
	return start, nil
}

// tellHistory logs that the session has reconciled, or that the database is reached by other hosts.
func (c *Connector) tellHistory(h history, start ledger.Start) {
	log, slot := c.cfg.Logger, c.cfg.Source.Slot
	const compares = "the outbox is compared with the ledger, and what is missing is delivered"
	switch {
	case start.Timeline == 0: // Adopt has written that
		log.Warn("a person has said that the outbox goes on with this database (outbox-cdc adopt); "+compares, "slot", slot, "lsn", h.slot.String(),
			"checkpoint", start.Confirmed.String())
	case h.slot > start.Confirmed:
		log.Warn("the slot stands ahead of the checkpoint: somebody else has moved or made it, or a standby was promoted that lacked the last rows of the ledger; "+
			compares, "slot", slot, "lsn", h.slot.String(), "checkpoint", start.Confirmed.String(), "timeline", h.now.Timeline)
	case provision.HasNewTimeline(h.now, start.Identity):
		log.Warn("the server was promoted; "+compares, "slot", slot, "timeline", h.now.Timeline, "before", start.Timeline)
	case h.now.Hosts != start.Hosts && start.Hosts != "":
		log.Warn("the database is reached by other hosts than before: it has moved, or it is a copy of the server's files with its slot, which nobody can tell apart; "+
			"a copy beside its original delivers everything a second time: stop it then, see docs/copies.md", "slot", slot, "hosts", h.now.Hosts, "before", start.Hosts)
	}
}
