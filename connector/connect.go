package connector

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// schema returns the ledger's schema. The statements on its tables are methods of it.
func (c *Connector) schema() ledger.Schema { return ledger.Schema(c.cfg.Source.LedgerSchema) }

// openPool makes the pool for everything but recorder and listener: preflight, the keeper's duties, reads of parked rows. It
// connects to nothing yet.
func (c *Connector) openPool() (*pgxpool.Pool, error) {
	conn, err := c.sqlConfig()
	if err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(c.cfg.Source.DSN)
	if err != nil {
		return nil, exitcode.Errorf(exitcode.Config, "source.dsn is no connection string for a pool")
	}
	cfg.ConnConfig = conn
	cfg.MinConns = 0
	// The recorder and the listener have a connection each outside of the pool.
	cfg.MaxConns = int32(max(1, c.cfg.Source.MaxConnections-2))
	// The pool is not bound to the context of Run: that one ends before the drain, which still needs connections.
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("open the connection pool: %w", err)
	}
	return pool, nil
}

// ledgerConfig returns what a session needs to take over the ledger.
func (c *Connector) ledgerConfig() ledger.Config {
	host, _ := os.Hostname() // Owner is for people only: without a host name it has the pid
	return ledger.Config{
		Schema: c.schema(), Slot: c.cfg.Source.Slot, Owner: fmt.Sprintf("%s pid %d", host, os.Getpid()), Connect: c.connect,
	}
}

// connect opens an SQL connection outside of the pool. The caller closes it.
func (c *Connector) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := c.sqlConfig()
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// sqlConfig returns the settings of every SQL connection of the connector.
func (c *Connector) sqlConfig() (*pgx.ConnConfig, error) {
	cfg, err := replication.SQLConfig(replication.SourceDSNKey, c.cfg.Source.DSN)
	if err != nil {
		return nil, err
	}
	ledger.PinRun(&cfg.Config, c.cfg.Source.Slot)
	return cfg, nil
}

// recorderConfig returns the settings of a session's recorder. fast reports whether the stream is fast.
func (c *Connector) recorderConfig(fast func() bool) checkpoint.RecorderConfig {
	return checkpoint.RecorderConfig{
		Fast: fast, Logger: c.cfg.Logger,
		State: func(err error) {
			c.cfg.Health.Set("recorder", monitoring.Component{OK: err == nil, Detail: errText(err)})
		},
	}
}
