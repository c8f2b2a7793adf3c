package service

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// DestroyOptions say what Destroy removes.
type DestroyOptions struct {
	// AdminDSN is the connection string of a login with an owner's rights. By default it is the configuration's source.dsn.
	AdminDSN string
	// Ledger removes the ledger's tables as well, together with all parked events and dead letters.
	Ledger bool
	// WaitingForLock is called with a description of the connection that makes or drops the same things, while Destroy waits for its end. It may be
	// nil.
	WaitingForLock func(holder string)
}

// DestroyResult says what Destroy has removed. What it has not removed did not exist, unless Destroy has failed.
type DestroyResult struct {
	SlotDropped        bool `json:"slot_dropped"`
	PublicationDropped bool `json:"publication_dropped"`
	CheckpointDeleted  bool `json:"checkpoint_deleted"`
	LedgerDropped      bool `json:"ledger_dropped"`
}

// Dropped names what was removed, in the order in which Destroy removes it.
func (r DestroyResult) Dropped() []string {
	var names []string
	for _, step := range []struct {
		done bool
		name string
	}{
		{r.SlotDropped, "the replication slot"},
		{r.PublicationDropped, "the publication"},
		{r.CheckpointDeleted, "the checkpoint"},
		{r.LedgerDropped, "the ledger"},
	} {
		if step.done {
			names = append(names, step.name)
		}
	}
	return names
}

// Destroy removes what Init has made, but never the outbox. If it fails after it has removed something, the error says what that is
// and what is left. It may be called again, and then goes on from there.
func Destroy(ctx context.Context, cfg config.Config, o DestroyOptions) (DestroyResult, error) {
	dsn := cmp.Or(o.AdminDSN, string(cfg.Source.DSN))
	if err := sameDatabase(cfg, dsn); err != nil {
		return DestroyResult{}, err
	}
	var hasLedger bool
	err := provision.WithConn(ctx, dsn, source(cfg), func(conn *pgx.Conn) error {
		m := migrations.Options{Schema: cfg.Source.LedgerSchema, Mapped: source(cfg).Mapped()}
		if err := migrations.Check(ctx, conn, m); err != nil {
			return err
		}
		return conn.QueryRow(ctx, "select to_regclass($1) is not null", pgx.Identifier{m.Schema, "outbox_checkpoints"}.Sanitize()).Scan(&hasLedger)
	})
	if err != nil {
		return DestroyResult{}, replication.ExplainUnreachable(err)
	}
	gone, err := provision.Destroy(ctx, provision.DestroyConfig{
		Source: source(cfg), DSN: dsn, ReplicationDSN: string(cfg.Source.ReplicationDSN),
		WaitingForLock: o.WaitingForLock,
	})
	result := DestroyResult{SlotDropped: gone.SlotDropped, PublicationDropped: gone.PublicationDropped, CheckpointDeleted: gone.CheckpointDeleted}
	left := gone.Left
	if hasLedger && o.Ledger {
		left = append(left, "the ledger")
	}
	if err == nil && o.Ledger {
		result.LedgerDropped, err = dropLedger(ctx, dsn, cfg, o)
	}
	return result, halfDestroyed(replication.ExplainUnreachable(err), result.Dropped(), left)
}

// dropLedger removes the tables of the ledger, and reports whether there were any.
func dropLedger(ctx context.Context, dsn string, cfg config.Config, o DestroyOptions) (bool, error) {
	dropped, err := migrations.Drop(ctx, dsn, migrations.Options{
		Schema: cfg.Source.LedgerSchema, Mapped: source(cfg).Mapped(), WaitingForLock: o.WaitingForLock,
	})
	return dropped, provision.NeedsOwner(err)
}

// halfDestroyed adds to the error of a Destroy that has removed something what that is, and what is left.
func halfDestroyed(err error, dropped, left []string) error {
	if err == nil || dropped == nil {
		return err
	}
	return fmt.Errorf("%w\ndropped before that: %s; left: %s; when the cause is mended, run outbox-cdc destroy again: it goes on from there",
		err, strings.Join(dropped, ", "), strings.Join(left, ", "))
}
