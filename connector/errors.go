package connector

import (
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// fatal reports whether the process should end with err: no further try can help, or PostgreSQL could not be reached for the
// first session. Once a session has streamed, or this process has stood by, the connector waits for PostgreSQL for ever.
func (c *Connector) fatal(err error) bool {
	code := exitcode.Of(err)
	return code.Final() || code == exitcode.Unavailable && !c.progress.workedBefore
}

// explainRefusal explains why the server refused a connection, and returns any other error as it is. If the server would refuse
// each further try, the result has an exit code and names the remedy. A login, database or right that has worked in this process
// before is an exception: somebody may be about to change it. That error stays as it is, so that the connector tries again.
func (c *Connector) explainRefusal(err error) error {
	refused, ok := errors.AsType[*refusedConnection](err)
	if !ok {
		return err
	}
	key, err := refused.key, refused.err
	pg, ok := errors.AsType[*pgconn.PgError](err)
	// The codes mean: login, password, database, right.
	if !ok || c.progress.workedBefore && slices.Contains([]string{"28000", "28P01", "3D000", "42501"}, pg.Code) {
		return err
	}
	dsn := c.cfg.Source.DSN
	if key == replication.ReplicationDSNKey {
		dsn = c.cfg.Source.ReplicationDSN
	}
	config, parseErr := replication.ParseDSN(key, dsn)
	switch {
	case parseErr != nil:
		return parseErr
	case key == replication.ReplicationDSNKey:
		return replication.ExplainStreamRefusal(config, err)
	}
	return replication.ExplainRefusal(key, config, err)
}
