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

// schema is where the ledger's tables are.
func (c *Connector) schema() ledger.Schema { return ledger.Schema(c.cfg.Source.LedgerSchema) }

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
	cfg.MaxConns = int32(max(1, c.cfg.Source.MaxConnections-2)) // recorder and LISTEN have their own
	// The pool outlives the context that would end its connections in mid-drain.
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("open the connection pool: %w", err)
	}
	return pool, nil
}

func (c *Connector) ledgerConfig() ledger.Config {
	host, _ := os.Hostname() // for people only
	return ledger.Config{
		Schema: c.schema(), Slot: c.cfg.Source.Slot, Owner: fmt.Sprintf("%s pid %d", host, os.Getpid()), Connect: c.connect,
	}
}

// connect opens a connection of its own, outside of the pool.
func (c *Connector) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := c.sqlConfig()
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

func (c *Connector) sqlConfig() (*pgx.ConnConfig, error) {
	cfg, err := replication.SQLConfig(replication.SourceDSNKey, c.cfg.Source.DSN)
	if err != nil {
		return nil, err
	}
	ledger.PinRun(&cfg.Config, c.cfg.Source.Slot)
	return cfg, nil
}

func (c *Connector) recorderConfig(fast func() bool) checkpoint.RecorderConfig {
	return checkpoint.RecorderConfig{
		Fast: fast, Logger: c.cfg.Logger,
		State: func(err error) {
			c.cfg.Health.Set("recorder", monitoring.Component{OK: err == nil, Detail: errText(err)})
		},
	}
}
