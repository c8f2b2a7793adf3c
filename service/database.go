package service

import (
	"log/slog"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// logDatabase says which database the connector that begins works on, and where that was configured.
func logDatabase(logger *slog.Logger, cfg config.Config) {
	s := cfg.Source
	logger.Info("starting", whereItLeads(string(s.DSN), s.DSNPlace)...)
	if s.ReplicationDSN != s.DSN {
		logger.Info("the stream has a connection of its own", whereItLeads(string(s.ReplicationDSN), s.ReplicationDSNPlace)...)
	}
}

// sameDatabase refuses the connection string of an owner's login that leads to another database than the configuration's. Their hosts
// may differ: an administrator often reaches a server by another name.
func sameDatabase(cfg config.Config, owner string) error {
	if owner == string(cfg.Source.DSN) {
		return nil
	}
	theirs, err := dsn.TargetOf(owner, "")
	if err != nil {
		return exitcode.Errorf(exitcode.Config, "the dsn %w", err)
	}
	for _, ours := range []struct{ key, text, place string }{
		{replication.SourceDSNKey, string(cfg.Source.DSN), cfg.Source.DSNPlace},
		{replication.ReplicationDSNKey, string(cfg.Source.ReplicationDSN), cfg.Source.ReplicationDSNPlace},
	} {
		t, err := dsn.TargetOf(ours.text, ours.place)
		if err == nil && t.Database != theirs.Database { // package config has checked ours
			return exitcode.Errorf(exitcode.Config, "the dsn (--dsn, or OUTBOX_ADMIN_URL) leads to %s, and %s to %s (%s); let both lead to the same database",
				theirs.Place(), ours.key, t.Place(), t.Configured)
		}
	}
	return nil
}

// whereItLeads returns what the log says of a connection string.
func whereItLeads(text, where string) []any {
	t, err := dsn.TargetOf(text, where)
	if err != nil {
		return nil // package config has checked it; the first connection reports what is wrong
	}
	return []any{"address", t.Address, "database", t.Database, "user", t.User, "configured", t.Configured}
}
