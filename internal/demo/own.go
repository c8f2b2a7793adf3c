package demo

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// ownEvent is a command for a shell that inserts an event: by psql where there is one, as the rest of the world would.
// (Debian has a psql that only says that there is none.)
func (d *demo) ownEvent(ctx context.Context) string {
	if exec.CommandContext(ctx, "psql", "--version").Run() == nil {
		return "psql " + shellQuote(d.dsn()) + ` -c "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) ` +
			`values ('order', '42', 'order.created', '{\"total\": 99}')"`
	}
	return shellQuote(d.Executable) + " demo insert --dsn " + shellQuote(d.dsn()) + ` --aggregate-id 42 --payload '{"total": 99}'`
}

// shellQuote makes one word of s for a POSIX shell.
func shellQuote(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@%", r)
	}
	if s != "" && strings.TrimFunc(s, safe) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Insert commits one event into the outbox of a database, and returns its id.
func Insert(ctx context.Context, dsn string, e outbox.Event) (string, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return "", fmt.Errorf("%w; is the demo still running? It prints its DSN when it starts", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	e.ID = outbox.NewID()
	return e.ID, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return outbox.Insert(ctx, tx, e) })
}
