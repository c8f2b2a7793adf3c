package checkpoint

import "time"

// Status is what has become of a delivery. Each status but Parked is written into outbox_delivery_log.
type Status uint8

const (
	// Delivered: the destination accepted it.
	Delivered Status = iota
	// Failed: a try that was not accepted; the delivery is still owed.
	Failed
	// Dead: given up and kept, with its event, in outbox_parked for a person.
	Dead
	// Discarded: given up without a dead letter: no route matched it, a person discarded it, or its sink is tried once.
	Discarded
	// Parked: kept in outbox_parked without a try. It gets no row in the log.
	Parked
)

var statusNames = [...]string{"delivered", "failed", "dead", "discarded", "parked"}

func (s Status) String() string { return statusNames[s] }

// RowChange is the change that an outcome makes to the delivery's row in outbox_parked.
type RowChange uint8

const (
	// RowNone: there is no row, and none is made.
	RowNone RowChange = iota
	// RowInsert parks the delivery: it has no row yet.
	RowInsert
	// RowUpdate changes the row. If a person has deleted it meanwhile, it changes nothing.
	RowUpdate
	// RowDelete deletes the row, if it is still there.
	RowDelete
)

// Outcome says what has become of one try of one delivery, or that the delivery was parked without a try.
type Outcome struct {
	// Entry is the number that Tracker.Add gave to the event. Settles says that this outcome settles one of the event's deliveries.
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
	// Member is the member of a composite sink that has accepted the message. It is empty for all other outcomes.
	Member string
	// Parked is set where Row is RowInsert or RowUpdate.
	Parked *ParkedState
}

// ParkedState is what outbox_parked keeps of a delivery in addition to its outcome. Times are by this process's clock.
type ParkedState struct {
	AggregateHash int64
	Attempts      int       // tries that were refused
	Tries         int       // all tries
	TriedAt       time.Time // the first try; zero: untried
	// NextAttempt is when the delivery may be tried again. It is zero if the delivery is untried, or if it is dead and does not hold its
	// aggregate. Blocks says that it is dead and holds its aggregate.
	NextAttempt time.Time
	Blocks      bool
	// Event is the event without its payload, as JSON. RowUpdate needs neither Event nor Payload.
	Event   []byte
	Payload []byte
}

// Outcomes are given to the recorder together. It records them in one transaction, and in the order in which they are given.
type Outcomes struct {
	Rows []Outcome
	// Job says how far a job has come that has parked these rows; nil: the rows are not of a job.
	Job *JobStep
	// Urgent says that somebody waits until they are committed.
	Urgent bool
	// Seq is sent on Recorded once these outcomes are committed. Recorded holds one value, and a newer value replaces an older one, so
	// that the recorder never waits for the receiver. The recorder is the only sender.
	Seq      uint64
	Recorded chan uint64
}

// writes returns how many rows of the ledger these outcomes write, a job's step included.
func (o *Outcomes) writes() int {
	if o.Job != nil {
		return len(o.Rows) + 1
	}
	return len(o.Rows)
}

// Batch is what one transaction of the recorder commits: outcomes, and the watermark that they make true.
type Batch struct {
	Outcomes  []Outcomes
	Watermark Watermark
}
