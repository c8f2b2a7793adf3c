package connector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// answerTimeout bounds the steps at the beginning of a session, or of a connection, that can be repeated without harm.
const answerTimeout = 30 * time.Second

// provision returns the source in the form that package provision takes.
func (s *Source) provision() provision.Source {
	return provision.Source{
		Table: s.Table, LedgerSchema: s.LedgerSchema, Slot: s.Slot, Publication: s.Publication, Columns: s.Columns, Failover: s.Failover,
		Hosts: dsn.Hosts(s.DSN), OrderBy: s.OrderBy,
	}
}

// status returns the source in the form that Status shows.
func (s *Source) status(connector string) monitoring.SourceStatus {
	st := monitoring.SourceStatus{Name: connector, Slot: s.Slot}
	if t, err := dsn.TargetOf(s.DSN, ""); err == nil { // the first connection says what is wrong with it
		st.Database = monitoring.DatabaseTarget{Address: t.Address, Name: t.Database}
	}
	return st
}

// origin returns the Origin of all messages of this connector (sinks.Message), which is made of the names of database, schema and
// table. The name of the database is the one in the DSN. A database with another name is another origin.
func (c *Connector) origin() (string, error) {
	cfg, err := replication.ParseDSN(replication.SourceDSNKey, c.cfg.Source.DSN)
	if err != nil {
		return "", err
	}
	database := cfg.Database
	if database == "" { // like libpq: without a database name, the user's name
		database = cfg.User
	}
	schema, table, _ := strings.Cut(c.cfg.Source.Table, ".")
	return sinks.Origin(database, schema, table), nil
}

// preflight looks, before each session, whether everything that the session needs is in place. It only reads.
func (c *Connector) preflight(ctx context.Context) (provision.Facts, error) {
	c.calls.preflight.begin()
	defer c.calls.preflight.end()
	// Preflight only reads, so if it gets no answer in time, it can be repeated over another connection.
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	facts, err := c.db.preflight(ctx)
	if err != nil {
		return facts, c.explainRefusal(err)
	}
	if facts.Newer != nil {
		if !c.progress.workedBefore {
			return facts, facts.Newer
		}
		// Each migration is made for a ledger in use, so this process can go on until it is brought up to date as well.
		facts.Warnings = append(facts.Warnings, facts.Newer.Error())
	}
	c.outbox.oid, c.outbox.lostName = facts.Table.OID, ""
	if err := c.comparePublication(ctx); err != nil {
		return facts, err
	}
	for _, w := range facts.Warnings {
		if !slices.Contains(c.warned, w) { // each warning is logged once, not in each session
			c.warned = append(c.warned, w)
			c.cfg.Logger.Warn("preflight warns", "err", w)
		}
	}
	return facts, nil
}

// checkDrift is the keeper's duty that looks whether the outbox is still the table that is streamed, and whether all rows that are
// written into it still come on the stream. The stream itself cannot show that: rows would merely be absent. If rows may be
// missing, the error has an exit code, and the session ends. If only the name of the streamed table has changed, its rows are
// still delivered. That is no error: the log says it once, and /readyz as long as it lasts.
func (c *Connector) checkDrift(ctx context.Context) error {
	moved, err := c.db.checkDrift(ctx, c.outbox.oid)
	if err != nil {
		return err
	}
	if moved != "" && moved != c.outbox.lostName {
		c.cfg.Logger.Warn("the outbox has lost its name", "table", c.cfg.Source.Table, "why", moved)
	}
	if moved != c.outbox.lostName {
		named := monitoring.OK("")
		if moved != "" {
			named = monitoring.Degraded(moved)
		}
		c.cfg.Health.Set("outbox", named)
	}
	c.outbox.lostName = moved
	return c.comparePublication(ctx)
}

// comparePublication compares the publication with how it was when this process last looked, and logs a warning if it was changed.
// It is called when the publication is found to be right. It may have been wrong in between, and rows that were written
// then may be missing in the stream.
func (c *Connector) comparePublication(ctx context.Context) error {
	version, err := c.db.publicationVersion(ctx, c.outbox.oid)
	if err != nil {
		return fmt.Errorf("look whether publication %q was changed: %w", c.cfg.Source.Publication, err)
	}
	if c.outbox.publicationVersion != "" && version != c.outbox.publicationVersion {
		c.outbox.publicationChanges.Add(1)
		c.cfg.Logger.Warn("the publication was changed and is right now; what was written in between may be missing in the stream; outbox-cdc verify names it, see docs/table.md#publication",
			"publication", c.cfg.Source.Publication)
	}
	c.outbox.publicationVersion = version
	return nil
}

// checkDriftForReader returns an error if rows of the outbox may be missing in the stream. It takes dutyTimeout at most, because
// the reader, which calls it, has to send the server a status again before wal_sender_timeout has passed.
func (c *Connector) checkDriftForReader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	_, err := c.db.checkDrift(ctx, c.outbox.oid)
	return err
}

// registerProcessors enters the sinks into outbox_processors and returns their processor ids by sink name. A sink that is new there and has
// a backlog gets the job for it: what the stream does not bring stands up to the prefix. It returns an error if
// the ledger has parked events of a sink that is neither configured nor listed as abandoned: nobody would deliver them.
func (c *Connector) registerProcessors(ctx context.Context, prefix checkpoint.Position) (map[string]int32, error) {
	var ps []ledger.Processor
	known := slices.Clone(c.cfg.Abandoned)
	for _, s := range c.cfg.Sinks {
		p := ledger.Processor{Name: s.Name, Type: s.Type, Configuration: s.Description, RenamedFrom: s.RenamedFrom, Replaces: true}
		if s.Backlog {
			p.Backlog = &ledger.NewJob{Reason: ledger.JobOfSink, Start: prefix.LSN}
		}
		ps = append(ps, p)
		known = append(known, s.Name)
	}
	ids, orphans, err := c.db.registerProcessors(ctx, ps, known)
	if err != nil {
		return nil, err
	}
	return ids, c.orphansError(orphans)
}

// orphansError returns the error of a start that would forget parked events, or nil if orphans is empty. orphans has the number of
// parked events by the name of the sink that is no longer configured.
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
