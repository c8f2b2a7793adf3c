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
	logTarget(logger, "starting", string(s.DSN), s.DSNPlace)
	if s.ReplicationDSN != s.DSN {
		logTarget(logger, "the stream has a connection of its own", string(s.ReplicationDSN), s.ReplicationDSNPlace)
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

func logTarget(logger *slog.Logger, message, text, place string) {
	t, err := dsn.TargetOf(text, place)
	if err != nil {
		return // package config has checked it; the first connection reports what is wrong
	}
	logger.Info(message, "address", t.Address, "database", t.Database, "user", t.User, "configured", t.Configured)
}
