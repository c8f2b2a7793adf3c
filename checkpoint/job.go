package checkpoint

// JobStep says how far a job of outbox_backlog has come. The recorder writes it in the transaction that parks the rows which the step has
// found missing, so that after a crash the job goes on where these rows end.
type JobStep struct {
	Job     int64  // its id
	Cursor  []byte // JSON: the keys of the last row that was compared; the job goes on behind it
	Ordinal int64  // how many rows the job has parked, this step's included: the number of the next one
	Walked  int64  // how many rows the job has compared, this step's included
	// Estimate is about how many rows the job compares in all; 0: nobody knows better than the table.
	Estimate int64
	Done     bool // there are no further rows
}
