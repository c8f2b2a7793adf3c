package service

import (
	"log/slog"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
)

// logDatabase says which database the connector that begins works on, and where that was configured.
func logDatabase(logger *slog.Logger, cfg config.Config) {
	s := cfg.Source
	logTarget(logger, "starting", string(s.DSN), s.DSNPlace)
	if s.ReplicationDSN != s.DSN {
		logTarget(logger, "the stream has a connection of its own", string(s.ReplicationDSN), s.ReplicationDSNPlace)
	}
}

func logTarget(logger *slog.Logger, message, text, place string) {
	t, err := dsn.TargetOf(text, place)
	if err != nil {
		return // package config has checked it; the first connection reports what is wrong
	}
	logger.Info(message, "address", t.Address, "database", t.Database, "user", t.User, "configured", t.Configured)
}
