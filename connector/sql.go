package connector

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// sql names the ledger's tables in a statement that writes them as ledger.outbox_….
func (c *Connector) sql(text string) string {
	return ledger.Schema(c.cfg.Source.LedgerSchema).SQL(text)
}

// pin adds the parameters of every SQL session of a run to those of every SQL session.
func (c *Connector) pin(config *pgconn.Config) {
	config.RuntimeParams["application_name"] = c.applicationName()
	// A session of ours that hangs must not hold a lock for ever, nor wait for one for ever.
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "2s"
	config.RuntimeParams["lock_timeout"] = "2s"
}

func (c *Connector) applicationName() string { return "outbox-cdc " + c.cfg.Source.Slot }

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

func (c *Connector) ledgerConfig() checkpoint.LedgerConfig {
	host, _ := os.Hostname() // for people only
	return checkpoint.LedgerConfig{
		Schema: ledger.Schema(c.cfg.Source.LedgerSchema), Slot: c.cfg.Source.Slot, Owner: fmt.Sprintf("%s pid %d", host, os.Getpid()), Connect: c.connect,
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
	c.pin(&cfg.Config)
	return cfg, nil
}

func (c *Connector) pace(fast func() bool) checkpoint.Pace {
	return checkpoint.Pace{
		Fast: fast, Logger: c.cfg.Logger,
		State: func(err error) { c.cfg.Health.Set("recorder", err == nil, errText(err)) },
	}
}
