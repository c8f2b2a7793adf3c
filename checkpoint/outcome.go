package checkpoint

import "time"

// Status is what became of a delivery. All but Parked stand in outbox_delivery_log.
type Status uint8

const (
	// Delivered: the destination accepted it.
	Delivered Status = iota
	// Failed: a try that was not accepted; the delivery is still owed.
	Failed
	// Dead: given up and kept, with its event, in outbox_parked for a person.
	Dead
	// Discarded: nobody wanted it.
	Discarded
	// Parked: kept in outbox_parked without a try. It has no row in the log.
	Parked
)

var statusNames = [...]string{"delivered", "failed", "dead", "discarded", "parked"}

func (s Status) String() string { return statusNames[s] }

// RowChange is what an outcome does to the delivery's row in outbox_parked.
type RowChange uint8

const (
	// RowNone: there is none, and none is made.
	RowNone RowChange = iota
	// RowInsert parks the delivery: it has no row yet.
	RowInsert
	// RowUpdate changes the row that is there; where a person has taken it away meanwhile, nothing.
	RowUpdate
	// RowDelete takes the row away, if it is still there.
	RowDelete
)

// Outcome is what became of one try of one delivery, or that it was parked without one.
type Outcome struct {
	// Entry is the number that Tracker.Add gave to the event, of which Settles says that one delivery is settled.
	Entry     uint64
	Settles   bool
	Row       RowChange
	Status    Status
	Processor int32
	Position  Position
	EventID   string
	Attempt   int
	// StartedAt and CompletedAt are by this process's clock; the recorder writes them by PostgreSQL's.
	StartedAt   time.Time
	CompletedAt time.Time
	Error       string
	// Parked is set where Row is RowInsert or RowUpdate.
	Parked *ParkedState
}

// ParkedState is what is kept of a delivery in outbox_parked beside what its outcome says. Times are by this process's clock.
type ParkedState struct {
	AggregateHash int64
	Attempts      int       // tries that were refused
	Tries         int       // all tries
	TriedAt       time.Time // the first; zero: untried
	// NextAttempt is when it may be tried again, or zero: untried, or dead and passed over. Blocks stands for "never": it is
	// dead, and holds its aggregate.
	NextAttempt time.Time
	Blocks      bool
	// Event is the event without its payload, as JSON. Neither is needed for RowUpdate.
	Event   []byte
	Payload []byte
}

// Outcomes are given to the recorder together and recorded in one transaction, in the order in which they are given.
type Outcomes struct {
	Rows []Outcome
	// Urgent: somebody waits for them to be committed.
	Urgent bool
	// Seq is sent on Recorded once these are committed. Recorded holds one value; a newer one replaces it, so that
	// the recorder never waits for its reader. The recorder is the only sender.
	Seq      uint64
	Recorded chan uint64
}

// Batch is what one transaction of the recorder commits.
type Batch struct {
	Outcomes  []Outcomes
	Watermark Watermark
}
