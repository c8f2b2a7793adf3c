package provision

import (
	"context"
	"slices"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// Reach looks whether a session could begin: it logs in for SQL and for replication, and does what Preflight does. It changes nothing, and
// does not disturb a connector that runs. Its error joins all mistakes.
func Reach(ctx context.Context, s Source, dsn, replicationDSN string) (warnings []string, err error) {
	if err := s.checkNames(); err != nil {
		return nil, err
	}
	repl, err := replication.ParseDSN(replication.ReplicationDSNKey, replicationDSN)
	if err != nil {
		return nil, err
	}
	conn, err := connectAs(ctx, replication.SourceDSNKey, dsn)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	var p problems
	facts, err := checkAll(ctx, conn, PreflightConfig{Source: s, ReplicationUser: repl.User}, &p)
	if err != nil {
		return nil, err
	}
	lacking, err := LackingCleanup(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	if len(lacking) > 0 {
		facts.Warnings = append(facts.Warnings, "nothing is deleted, or not all that retention says, because the login lacks privileges; as the owner of the tables: "+
			strings.Join(lacking, "; ")+"; or keep everything, by retention.outbox: off and retention.ledger: off")
	}
	stream, err := connectReplication(ctx, replicationDSN)
	switch {
	case err == nil:
		closeReplication(ctx, stream)
	case !slices.ContainsFunc(p, func(known error) bool { return strings.HasSuffix(err.Error(), known.Error()) }):
		p = append(p, err)
	}
	return facts.Warnings, p.join()
}
