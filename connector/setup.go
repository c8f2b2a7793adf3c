package connector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// answerTimeout bounds what only reads before a session, and can be begun anew.
const answerTimeout = 30 * time.Second

func (c *Connector) provisionSource() provision.Source {
	s := c.cfg.Source
	return provision.Source{
		Table: s.Table, LedgerSchema: s.LedgerSchema, Slot: s.Slot, Publication: s.Publication, Columns: s.Columns,
	}
}

// origin is sinks.Message's. The database is the one that the DSN names: one by another name would be another database.
func (c *Connector) origin() (string, error) {
	cfg, err := replication.ParseDSN(replication.SourceDSNKey, c.cfg.Source.DSN)
	if err != nil {
		return "", err
	}
	database := cfg.Database
	if database == "" { // as libpq has it
		database = cfg.User
	}
	schema, table, _ := strings.Cut(c.cfg.Source.Table, ".")
	return sinks.Origin(database, schema, table), nil
}

// preflight finds out, before each session, whether everything is in place.
func (c *Connector) preflight(ctx context.Context) (provision.Facts, error) {
	cfg := provision.PreflightConfig{Source: c.provisionSource()}
	rc, err := replication.ParseDSN(replication.ReplicationDSNKey, c.cfg.Source.ReplicationDSN)
	if err != nil {
		return provision.Facts{}, err
	}
	cfg.ReplicationUser = rc.User
	c.calls.preflight.begin()
	defer c.calls.preflight.end()
	// It only reads: one that gets no answer is as well begun anew, over another connection.
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return provision.Facts{}, c.explainRefusal(err, replication.SourceDSNKey)
	}
	defer conn.Release()
	if err := replication.CheckDirect(ctx, replication.SourceDSNKey, conn.Conn().PgConn(), conn.Conn().Config().RuntimeParams); err != nil {
		return provision.Facts{}, err
	}
	facts, err := provision.Preflight(ctx, conn, cfg)
	if err != nil {
		return facts, err
	}
	c.outbox.oid, c.outbox.lostName = facts.Table.OID, ""
	if err := c.comparePublication(ctx, conn); err != nil {
		return facts, err
	}
	for _, w := range facts.Warnings {
		if !slices.Contains(c.warned, w) { // once, however many sessions there are
			c.warned = append(c.warned, w)
			c.cfg.Logger.Warn("preflight warns", "err", w)
		}
	}
	return facts, nil
}

// checkDrift asks whether the outbox is still the table that is streamed, and whether everything that is written into it
// comes on the stream: what has drifted shows there only by the absence of rows. An error ends the session. A table that
// has lost its name is told once, and shown by /readyz, because its rows are still delivered.
func (c *Connector) checkDrift(ctx context.Context) error {
	moved, err := provision.CheckDrift(ctx, c.pool, c.provisionSource(), c.outbox.oid)
	if err != nil {
		return err
	}
	if moved != "" && moved != c.outbox.lostName {
		c.cfg.Logger.Warn("the outbox has lost its name", "table", c.cfg.Source.Table, "why", moved)
	}
	if moved != c.outbox.lostName {
		c.cfg.Health.Set("outbox", monitoring.Component{OK: moved == "", Detail: moved})
	}
	c.outbox.lostName = moved
	return c.comparePublication(ctx, c.pool)
}

// comparePublication warns of a publication that is as it has to be, and was changed since this process last looked: what
// was written in between may be missing in the stream.
func (c *Connector) comparePublication(ctx context.Context, db ledger.Querier) error {
	version, err := provision.PublicationVersion(ctx, db, c.provisionSource(), c.outbox.oid)
	if err != nil {
		return fmt.Errorf("look whether publication %q was changed: %w", c.cfg.Source.Publication, err)
	}
	if c.outbox.publicationVersion != "" && version != c.outbox.publicationVersion {
		c.cfg.Logger.Warn("the publication was changed and is right now; what was written in between may be missing in the stream; see docs/operations.md#publication",
			"publication", c.cfg.Source.Publication)
	}
	c.outbox.publicationVersion = version
	return nil
}

// checkDriftForReader gives an error if rows of the outbox may be missing in the stream. It is checkDrift for the reader, which has
// to report to the server again before wal_sender_timeout.
func (c *Connector) checkDriftForReader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	_, err := provision.CheckDrift(ctx, c.pool, c.provisionSource(), c.outbox.oid)
	return err
}

// registerProcessors gives the ids of the sinks by name. It refuses to start while parked events would be forgotten.
func (c *Connector) registerProcessors(ctx context.Context) (map[string]int32, error) {
	var ps []ledger.Processor
	known := slices.Clone(c.cfg.Abandoned)
	for _, s := range c.cfg.Sinks {
		ps = append(ps, ledger.Processor{Name: s.Name, Type: s.Type, Configuration: s.Description, RenamedFrom: s.RenamedFrom, Replaces: true})
		known = append(known, s.Name)
	}
	var ids map[string]int32
	// Where the start is refused nothing was changed.
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) (err error) {
		if ids, err = c.schema().RegisterProcessors(ctx, tx, c.cfg.Name, ps); err != nil {
			return err
		}
		orphans, err := c.schema().Orphans(ctx, tx, c.cfg.Name, known)
		if err != nil {
			return err
		}
		return c.orphansError(orphans)
	})
	return ids, err
}

// orphansError is the error of a start that would forget parked events.
func (c *Connector) orphansError(orphans map[string]int64) error {
	heirs := map[string]string{}
	for _, s := range c.cfg.Sinks {
		heirs[s.RenamedFrom] = s.Name
	}
	var all []error
	for _, name := range slices.Sorted(maps.Keys(orphans)) {
		if heir := heirs[name]; heir != "" {
			all = append(all, fmt.Errorf("sink %q has deliveries of its own, so it cannot take over the %d parked events of %q; take its renamed_from away, "+
				"and configure %q as a sink beside it, to which no route leads, until they are delivered, or write {name: %s, abandoned: true} if nobody wants them",
				heir, orphans[name], name, name, name))
			continue
		}
		all = append(all, fmt.Errorf("sink %q is no longer configured and has %d parked events; write renamed_from: %s at the sink that "+
			"takes its place, or {name: %s, abandoned: true} if nobody wants them", name, orphans[name], name, name))
	}
	if all == nil {
		return nil
	}
	return exitcode.With(exitcode.Config, errors.Join(all...))
}
