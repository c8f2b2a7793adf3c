package ledger

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Client reads and changes the ledger for a person, over one connection. For one goroutine at a time.
type Client struct {
	// Sinks are the sinks of the connector, in the order of their processors.
	Sinks []KnownSink
	// UUIDs says that event ids are of type uuid. Else they are text.
	UUIDs bool

	conn   *pgx.Conn
	schema Schema
}

// NewClient makes a client for the ledger of a connector. SetUpCommand has set up the connection, which stays the caller's.
func NewClient(ctx context.Context, conn *pgx.Conn, schema Schema, connector string) (*Client, error) {
	c := &Client{conn: conn, schema: schema}
	var err error
	if c.Sinks, err = c.readSinks(ctx, connector); err == nil {
		c.UUIDs, err = schema.uuidIDs(ctx, conn, "outbox_parked")
	}
	if err != nil {
		return nil, fmt.Errorf("look at the ledger: %w", err)
	}
	return c, nil
}

// idType is the PostgreSQL type of event ids.
func (c *Client) idType() string {
	if c.UUIDs {
		return "uuid"
	}
	return "text"
}

// KnownSink is a sink as a row of outbox_processors has it.
type KnownSink struct {
	Processor int32
	Name      string
	Active    bool // no person has paused it
}

func (c *Client) readSinks(ctx context.Context, connector string) ([]KnownSink, error) {
	rows, err := c.conn.Query(ctx, c.schema.statement("select id, processor_name, is_active from ledger.outbox_processors where connector = $1 order by id"), connector)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s KnownSink, err error) {
		err = row.Scan(&s.Processor, &s.Name, &s.Active)
		return s, err
	})
}

// Activity is the column is_active of outbox_processors.
type Activity bool

// The activities of a sink.
const (
	Active Activity = true
	Paused Activity = false
)

// SetActivity pauses a sink or lets it go on, and wakes its lanes when tx commits, even if nothing has changed: somebody who repeats
// a command wants it to take effect. It reports whether something has changed, and how many deliveries of the sink are parked.
func (s Schema) SetActivity(ctx context.Context, tx pgx.Tx, processor int32, activity Activity) (changed bool, parked int64, err error) {
	tag, err := tx.Exec(ctx, s.statement("update ledger.outbox_processors set is_active = $2 where id = $1 and is_active <> $2"), processor, bool(activity))
	if err != nil {
		return false, 0, err
	}
	err = tx.QueryRow(ctx, s.statement("select count(*) from ledger.outbox_parked where processor_id = $1 and status = 'parked'"), processor).Scan(&parked)
	if err != nil {
		return false, 0, err
	}
	return tag.RowsAffected() > 0, parked, s.notifyChanged(ctx, tx, processor)
}
