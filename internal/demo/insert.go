package demo

import (
	"context"
	"fmt"
	"os/exec"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/shell"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// ownEvent is a command for a shell that inserts an event. It uses psql if there is one, because everybody knows what that
// does. (Debian has a psql that only says that there is none.)
func (d *demo) ownEvent(ctx context.Context) string {
	if exec.CommandContext(ctx, "psql", "--version").Run() == nil {
		return "psql " + shell.Quote(d.shownDSN()) + " \\\n" +
			`    -c "insert into event_outbox` + "\n" +
			`          (aggregate_type, aggregate_id, event_type, payload)` + "\n" +
			`        values ('order', '42', 'order.created', '{\"total\": 99}')"`
	}
	return shell.Quote(d.Executable) + " insert \\\n    --dsn " + shell.Quote(d.shownDSN()) + " \\\n" +
		`    --aggregate-id 42 --payload '{"total": 99}'`
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
