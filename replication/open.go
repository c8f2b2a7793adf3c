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

// ErrSlotInUse says that another process streams from the slot. The slot is the lock between processes: we stand by.
var ErrSlotInUse = errors.New("the slot is in use")

// senderTimeout is wal_sender_timeout of our connection. A reader that is frozen, or cut off from the network, holds the slot for
// so long. The server's own setting is 60 s by default, and may be 0, which means for ever.
const senderTimeout = 15 * time.Second

// StreamConfig says what to stream.
type StreamConfig struct {
	// DSN is the connection string of a login with the attribute REPLICATION.
	DSN         string
	Slot        string
	Publication string
	// ApplicationName is what PostgreSQL shows of the connection, unless the DSN says it. It may be empty.
	ApplicationName string
}

// Identity is what the server says about itself (IDENTIFY_SYSTEM).
type Identity struct {
	SystemID string
	Timeline int32
	Database string
}

// Open connects and starts to stream from where the slot stands. It asks for this by the LSN 0/0, and never for a stored LSN:
// after a failover, a stored LSN may lie ahead of the server's history, and the server does not check this. From then on the slot
// is ours until Close.
func Open(ctx context.Context, cfg StreamConfig) (*Stream, Identity, error) {
	pc, err := connConfig(cfg)
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

// connConfig sets what the text form of the rows' values depends on, because the role's own settings could change it.
func connConfig(cfg StreamConfig) (*pgconn.Config, error) {
	pc, err := ParseDSN(ReplicationDSNKey, cfg.DSN)
	if err != nil {
		return nil, err
	}
	if name := pc.RuntimeParams["application_name"]; name == "" && cfg.ApplicationName != "" {
		pc.RuntimeParams["application_name"] = cfg.ApplicationName
	}
	ledger.Pin(pc)
	pc.RuntimeParams["replication"] = "database"
	pc.RuntimeParams["wal_sender_timeout"] = fmt.Sprintf("%dms", senderTimeout.Milliseconds())
	return pc, nil
}

// startError explains the answer to START_REPLICATION.
func startError(slot string, err error) error {
	var e *pgconn.PgError
	if errors.As(err, &e) && e.Code == "55006" {
		return fmt.Errorf("%w: %s", ErrSlotInUse, e.Message)
	}
	if e != nil && e.Code == "42704" { // the slot was dropped since preflight has seen it; the next preflight will say so
		return fmt.Errorf("start replication from slot %q: %s", slot, e.Message)
	}
	return fmt.Errorf("start replication from slot %q: %w", slot, err)
}

// quoteIdent and quoteLiteral quote s as SQL does. Replication commands need the same quotes.
func quoteIdent(s string) string   { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
func quoteLiteral(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }
