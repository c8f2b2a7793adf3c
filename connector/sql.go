package connector

import (
	"context"
	"fmt"
	"maps"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// sqlSettings are the parameters of every SQL session of ours.
func (c *Connector) sqlSettings() map[string]string {
	return map[string]string{
		"application_name": "outbox-cdc " + c.cfg.Source.Slot,
		// The ledger's tables are named without a schema.
		"search_path": pgx.Identifier{c.cfg.Source.LedgerSchema}.Sanitize(),
		"TimeZone":    "UTC",
		// An error instead of hidden rows.
		"row_security": "off",
		// A session of ours that hangs must not hold a lock for ever, nor wait for one for ever.
		"idle_in_transaction_session_timeout": "2s",
		"lock_timeout":                        "2s",
		// A role's own settings would end or refuse what is right.
		"idle_session_timeout":          "0",
		"statement_timeout":             "0",
		"default_transaction_read_only": "off",
		"default_transaction_isolation": "read committed",
		// The slot's position is made durable apart from the WAL: without this a crash could keep "confirmed X" and
		// lose the ledger rows before X.
		"synchronous_commit": "on",
	}
}

func (c *Connector) openPool() (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(c.cfg.Source.DSN)
	if err != nil {
		return nil, exitError{78, fmt.Errorf("source.dsn: %w", err)}
	}
	replication.DetectDeadPeer(&cfg.ConnConfig.Config)
	maps.Copy(cfg.ConnConfig.RuntimeParams, c.sqlSettings())
	cfg.MinConns = 0
	cfg.MaxConns = int32(max(1, c.cfg.Source.MaxConnections-2)) // recorder and LISTEN have their own
	// The pool outlives the context that would end its connections in mid-drain.
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("open the connection pool: %w", err)
	}
	return pool, nil
}

func (c *Connector) ledgerConfig() checkpoint.LedgerConfig {
	host, _ := os.Hostname() // for people only
	return checkpoint.LedgerConfig{
		Slot: c.cfg.Source.Slot, Owner: fmt.Sprintf("%s pid %d", host, os.Getpid()), Connect: c.connect,
	}
}

// connect opens a connection of its own, outside of the pool.
func (c *Connector) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(c.cfg.Source.DSN)
	if err != nil {
		return nil, err
	}
	replication.DetectDeadPeer(&cfg.Config)
	maps.Copy(cfg.RuntimeParams, c.sqlSettings())
	return pgx.ConnectConfig(ctx, cfg)
}

func (c *Connector) pace(fast func() bool) checkpoint.Pace {
	return checkpoint.Pace{
		Fast: fast, Logger: c.cfg.Logger,
		State: func(err error) { c.cfg.Health.Set("recorder", err == nil, errText(err)) },
	}
}
