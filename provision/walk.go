package provision

import (
	"context"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Walk reads the rows of the outbox in the order of source.order_by, a chunk at a time, as events. They go through the decoder of the stream,
// so an event is the same, byte by byte, whichever way it has come. For one goroutine at a time.
type Walk struct {
	table *ledger.OutboxWalk
	rows  walkRows
}

// WalkRow is a row of the outbox.
type WalkRow struct {
	Event   *outbox.Event
	Invalid error // why it is no valid event; Event then holds what could be read of it
	Size    int   // bytes that Event holds in memory
}

// WalkChunk is what Read has found.
type WalkChunk struct {
	ledger.WalkChunk
	Rows []WalkRow // without those that the query leaves out
}

// OpenWalk looks at the outbox's columns in the catalogs. A row of more than maxEventBytes is no valid event.
func (s Source) OpenWalk(ctx context.Context, db ledger.Querier, maxEventBytes int) (*Walk, error) {
	schema, name := s.tableName()
	c := s.Columns
	w := &Walk{rows: walkRows{decoder: decoder.New(decoder.Table{Columns: c}, maxEventBytes)}}
	var err error
	w.table, err = s.ledger().OpenOutboxWalk(ctx, db, ledger.WalkTable{
		Schema: schema, Name: name, Columns: c.Used(), ID: c.ID, Payload: c.Payload, Metadata: c.Metadata, CreatedAt: c.CreatedAt,
		OrderBy: s.OrderBy, MaxEventBytes: maxEventBytes, Rows: &w.rows,
	})
	return w, err
}

// Begin returns the cursor of a walk of all rows that can be seen now.
func (w *Walk) Begin(ctx context.Context, db ledger.Beginner) ([]byte, error) {
	return w.table.Begin(ctx, db)
}

// Count returns how many rows are behind the cursor. It counts them if that is done soon, and asks the planner otherwise.
func (w *Walk) Count(ctx context.Context, db ledger.Beginner, q ledger.WalkQuery) (int64, error) {
	return w.table.Count(ctx, db, q, countTime)
}

// Estimate asks the planner how many rows are behind the cursor.
func (w *Walk) Estimate(ctx context.Context, db ledger.Beginner, q ledger.WalkQuery) (int64, error) {
	return w.table.Count(ctx, db, q, 0)
}

// Read returns the next chunk.
func (w *Walk) Read(ctx context.Context, db ledger.Beginner, q ledger.WalkQuery) (WalkChunk, error) {
	w.rows.list = nil
	c, err := w.table.Read(ctx, db, q)
	return WalkChunk{c, w.rows.list}, err
}

// CheckFilter returns an error if the filter is no condition on the columns of the outbox.
func (w *Walk) CheckFilter(ctx context.Context, db ledger.Beginner, f ledger.JobFilter) error {
	return w.table.CheckFilter(ctx, db, f)
}

// walkRows makes events of the rows of a chunk.
type walkRows struct {
	decoder *decoder.Decoder
	list    []WalkRow
}

// Announce is ledger.RowTaker's.
func (r *walkRows) Announce(names []string, types []uint32) error {
	return r.decoder.Announce(names, types)
}

// Take is ledger.RowTaker's.
func (r *walkRows) Take(texts [][]byte, leftOut int) error {
	m, err := r.decoder.Row(texts, leftOut)
	if err == nil {
		r.list = append(r.list, WalkRow{m.Event, m.Invalid, m.Size})
	}
	return err
}
