package replication

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// ErrSlotInUse says that another process streams from the slot: it is the lock, and we stand by.
var ErrSlotInUse = errors.New("the slot is in use")

// senderTimeout is wal_sender_timeout of our connection: how long a partitioned or frozen reader holds the slot.
// The server's default is 60 s, and may be 0.
const senderTimeout = 15 * time.Second

// StreamConfig says what to stream.
type StreamConfig struct {
	// DSN is of a login with the REPLICATION attribute.
	DSN         string
	Slot        string
	Publication string
}

// Identity is what the server says of itself (IDENTIFY_SYSTEM).
type Identity struct {
	SystemID string
	Timeline int32
	Database string
}

// Open connects and starts to stream from where the slot stands: at 0/0, never at a stored LSN. After a failover that
// may lie ahead of history, and the server does not check. From then on the slot is ours until Close.
func Open(ctx context.Context, cfg StreamConfig) (*Stream, Identity, error) {
	pc, err := connConfig(cfg.DSN)
	if err != nil {
		return nil, Identity{}, err
	}
	var h handover
	h.install(pc)
	conn, err := pgconn.ConnectConfig(ctx, pc)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("connect for replication: %w", err)
	}
	fail := func(err error) (*Stream, Identity, error) {
		_ = conn.Close(ctx) // the first error counts
		return nil, Identity{}, err
	}
	if err := CheckDirect(ctx, ReplicationDSNKey, conn, nil); err != nil {
		return fail(err)
	}
	sys, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return fail(fmt.Errorf("identify system: %w", err))
	}
	id := Identity{SystemID: sys.SystemID, Timeline: sys.Timeline, Database: sys.DBName}
	err = pglogrepl.StartReplication(ctx, conn, cfg.Slot, 0, pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication,
		PluginArgs: []string{
			"proto_version '1'",
			"publication_names " + quoteLiteral(quoteIdent(cfg.Publication)),
		},
	})
	if err != nil {
		return fail(startError(cfg.Slot, err))
	}
	wire, err := h.takeOver(conn)
	if err != nil {
		return fail(err)
	}
	s := newStream(wire, senderTimeout/3)
	s.canPause = strings.HasPrefix(wire.sock.RemoteAddr().Network(), "tcp")
	return s, id, nil
}

// streamConfig pins what the text output of rows depends on: a role's own settings would change it.
func connConfig(dsn string) (*pgconn.Config, error) {
	pc, err := ParseDSN(ReplicationDSNKey, dsn)
	if err != nil {
		return nil, err
	}
	ledger.Pin(pc)
	pc.RuntimeParams["replication"] = "database"
	pc.RuntimeParams["wal_sender_timeout"] = fmt.Sprintf("%dms", senderTimeout.Milliseconds())
	return pc, nil
}

func startError(slot string, err error) error {
	var e *pgconn.PgError
	if errors.As(err, &e) && e.Code == "55006" {
		return fmt.Errorf("%w: %s", ErrSlotInUse, e.Message)
	}
	if e != nil && e.Code == "42704" { // dropped since preflight has seen it, which the next one says
		return fmt.Errorf("start replication from slot %q: %s", slot, e.Message)
	}
	return fmt.Errorf("start replication from slot %q: %w", slot, err)
}

func quoteIdent(s string) string   { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
func quoteLiteral(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }
