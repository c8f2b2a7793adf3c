package admin

import (
	"time"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// Status is how a connector does, as the database and the connector's instances say it. A number that nobody knows is absent, and Unknown
// says why. Ages and times are by PostgreSQL's clock, unless the database could not be read.
type Status struct {
	At time.Time `json:"at"`
	// Level is ok if there is nothing to do; failed if nothing is delivered before a person acts; and degraded otherwise.
	Level     monitoring.Level `json:"status"`
	Connector string           `json:"connector"`
	Database  StatusDatabase   `json:"database"`
	Slot      *StatusSlot      `json:"slot,omitempty"` // absent if the database could not be read
	Instances []StatusInstance `json:"instances"`
	// Sinks are the connector's sinks in the order in which it came to know them. Those that are no longer configured are among them if
	// they have rows.
	Sinks []StatusSink `json:"sinks"`
	// NoSink is what belongs to no sink: rows of the outbox that were no valid events.
	NoSink  StatusRows     `json:"no_sink"`
	Cleanup *StatusCleanup `json:"cleanup,omitempty"`
	// Verify is what the comparison of the outbox with the ledger has found. Only the instance that streams knows it.
	Verify  *monitoring.VerifyReport `json:"verify,omitempty"`
	Sizes   *StatusSizes             `json:"sizes,omitempty"`
	Holders []StatusHolder           `json:"holders"` // what keeps PostgreSQL from forgetting WAL or from vacuuming
	// ToDo is what a person should do, the worst first.
	ToDo []StatusToDo `json:"to_do"`
	// Unknown is what could not be read or asked, and why.
	Unknown []string `json:"unknown"`
}

// StatusDatabase is the database that the status is about.
type StatusDatabase struct {
	Address    string `json:"address"` // host:port or the path of a socket; several with commas between them
	Name       string `json:"name"`
	User       string `json:"user"`
	Configured string `json:"configured"` // where that was configured
	// Version is that of the server. If it is empty, the database could not be read, and Error says why.
	Version string `json:"version,omitempty"`
	Standby bool   `json:"standby,omitempty"` // it is a standby of PostgreSQL, so that the slot cannot be seen
	Error   string `json:"error,omitempty"`
	// Pending are the files of this program that were not applied to the ledger.
	Pending []string `json:"pending_migrations,omitempty"`
}

// SlotState says in one word what the slot is.
type SlotState string

// The states of a slot.
const (
	SlotStreams  SlotState = "streams"  // a connector streams from it
	SlotIdle     SlotState = "idle"     // it is ready, and no connector streams
	SlotAbsent   SlotState = "absent"   // it was never made: init makes it
	SlotBuilding SlotState = "building" // an init that did not end, or that is at work, has left it
	SlotMissing  SlotState = "missing"  // it is gone, although the ledger has its checkpoint
	SlotLost     SlotState = "lost"     // PostgreSQL has invalidated it
	SlotForeign  SlotState = "foreign"  // it was not made by init, or not for this database
	SlotUnseen   SlotState = "unseen"   // it cannot be seen from a standby of PostgreSQL
)

// StatusSlot is the replication slot and its checkpoint.
type StatusSlot struct {
	Name  string    `json:"name"`
	State SlotState `json:"state"`
	// ActivePID is the server's process that streams to the connector, and ActiveFrom is the connector's address.
	ActivePID  int    `json:"active_pid,omitempty"`
	ActiveFrom string `json:"active_from,omitempty"`
	// LagBytes is the WAL that was written and is not confirmed. LagSeconds is how old the last settled transaction is, which only the
	// instance that streams knows.
	LagBytes   *int64   `json:"lag_bytes,omitempty"`
	LagSeconds *float64 `json:"lag_seconds,omitempty"`
	// KeptBytes is the WAL that the server keeps for the slot. KeptLimit is how much it keeps at most; absent if that is not limited.
	KeptBytes *int64 `json:"wal_kept_bytes,omitempty"`
	KeptLimit *int64 `json:"wal_kept_limit_bytes,omitempty"`
	WALStatus string `json:"wal_status,omitempty"`
	// LostAfterBytes is how much WAL may still be written before the slot can be lost; absent if that is not limited. LostAfterSeconds is
	// how long that takes at the rate at which KeptBytes has grown over the last minute. It is absent while that does not grow, and if nobody
	// knows. The instance that streams knows it.
	LostAfterBytes   *int64   `json:"lost_after_bytes,omitempty"`
	LostAfterSeconds *float64 `json:"lost_after_seconds,omitempty"`
	WALRate          *float64 `json:"wal_bytes_per_second,omitempty"`
	// Invalidated is why PostgreSQL has invalidated the slot.
	Invalidated   string     `json:"invalidated,omitempty"`
	InactiveSince *time.Time `json:"inactive_since,omitempty"` // PostgreSQL 17 and later
	Confirmed     string     `json:"confirmed_lsn,omitempty"`
	// Epoch and RecordedAt are those of the checkpoint: the number of its session, and when it was last written.
	Epoch      int32      `json:"epoch,omitempty"`
	RecordedAt *time.Time `json:"recorded_at,omitempty"`
	// Forecast is about what the stream is behind.
	Forecast   monitoring.Trend `json:"forecast,omitempty"`
	CaughtUpAt *time.Time       `json:"caught_up_at,omitempty"`
}

// StatusInstance is a process of the connector, or an address at which one was expected.
type StatusInstance struct {
	Role    monitoring.Role  `json:"role,omitempty"`
	Host    string           `json:"host,omitempty"`
	PID     int              `json:"pid,omitempty"`
	Version string           `json:"version,omitempty"`
	Started *time.Time       `json:"started,omitempty"`
	Since   *time.Time       `json:"since,omitempty"` // when it began to stream, or to wait
	Address string           `json:"address,omitempty"`
	Health  monitoring.Level `json:"health,omitempty"`
	// Error is why the instance could not be asked.
	Error     string `json:"error,omitempty"`
	LastError string `json:"last_error,omitempty"`
}

// StatusSink is a sink of the connector.
type StatusSink struct {
	Name       string `json:"name"`
	Type       string `json:"type,omitempty"`
	Configured bool   `json:"configured"`
	// Condition is that of monitoring, or unknown: no connector streams, or the one that does has not said it.
	Condition monitoring.Condition `json:"condition"`
	Since     *time.Time           `json:"since,omitempty"`
	Cause     string               `json:"cause,omitempty"`
	AsksAt    *time.Time           `json:"asks_at,omitempty"` // when a destination that is away is asked next
	TriedRate int                  `json:"tried_per_second,omitempty"`
	Detail    string               `json:"detail,omitempty"` // the health component of the sink, as its instance has it
	// State is the condition in one of the six words of the metric sink_state. Only the instance that streams knows it.
	State monitoring.State `json:"state,omitempty"`
	Rows  StatusRows       `json:"rows"`
	// Lanes are how the lanes do, which only the instance that streams knows.
	Lanes *StatusLanes `json:"lanes,omitempty"`
	// DeliveredAt is when the sink has last accepted a message. If no instance could be asked, it may be a minute too early.
	DeliveredAt *time.Time `json:"last_delivered_at,omitempty"`
	// OldestUndeliveredAt is the commit time of the oldest event that was read and waits for the sink.
	OldestUndeliveredAt *time.Time `json:"oldest_undelivered_at,omitempty"`
	// RateNow and RateMinute are the deliveries a second, over the last seconds and the last minute.
	RateNow    *float64         `json:"delivered_per_second_now,omitempty"`
	RateMinute *float64         `json:"delivered_per_second_minute,omitempty"`
	Forecast   monitoring.Trend `json:"forecast,omitempty"`
	CaughtUpAt *time.Time       `json:"caught_up_at,omitempty"`
	// Backlog is the sink's unfinished backlog job. Its rate and what it waits for only the instance that streams knows.
	Backlog *monitoring.BacklogReport `json:"backlog,omitempty"`
	// Objective is how fast events are accepted, against what is configured. Only the instance that streams knows it.
	Objective *monitoring.ObjectiveReport `json:"objective,omitempty"`
}

// StatusLanes says how the lanes of a sink do.
type StatusLanes struct {
	Running    int `json:"running"`
	Working    int `json:"working"` // those that do what they have to do
	CatchingUp int `json:"catching_up"`
	Held       int `json:"held_aggregates"` // that wait behind a delivery that was not accepted
	InFlight   int `json:"in_flight"`       // deliveries that they were given from the stream and that are not settled
}

// conditionUnknown is the condition of a sink that nobody knows.
const conditionUnknown monitoring.Condition = "unknown"

// StatusRows counts rows of outbox_parked. A count is absent if nobody knows it.
type StatusRows struct {
	Parked *int64 `json:"parked,omitempty"`
	Dead   *int64 `json:"dead_letters,omitempty"`
	// AtLeast says that there are more rows than were counted.
	AtLeast bool `json:"at_least,omitempty"`
	// OldestSeconds is for how long the oldest row that waits has been parked. OldestAtLeast says that there may be an older one.
	OldestSeconds *float64 `json:"oldest_parked_seconds,omitempty"`
	OldestAtLeast bool     `json:"oldest_at_least,omitempty"`
}

// StatusSizes are sizes on disk, in bytes, with indexes and TOAST. The size of a table that could not be read is absent.
type StatusSizes struct {
	Outbox        *int64     `json:"outbox_bytes,omitempty"`
	OutboxFrom    *time.Time `json:"outbox_from,omitempty"` // the oldest event
	Log           *int64     `json:"log_bytes,omitempty"`
	LogFrom       *time.Time `json:"log_from,omitempty"` // where the oldest partition begins
	LogPartitions int        `json:"log_partitions"`
	Parked        *int64     `json:"parked_bytes,omitempty"`
	// ParkedDeadRows are the deleted versions of rows that were not vacuumed away yet.
	ParkedDeadRows int64      `json:"parked_dead_rows"`
	ParkedVacuumed *time.Time `json:"parked_vacuumed_at,omitempty"`
}

// StatusHolder is a transaction that is open for long, or something else that keeps the server from vacuuming.
type StatusHolder struct {
	Kind  string     `json:"kind"` // transaction, prepared_transaction or slot
	Name  string     `json:"name,omitempty"`
	User  string     `json:"user,omitempty"`
	PID   int        `json:"pid,omitempty"`
	State string     `json:"state,omitempty"`
	Since *time.Time `json:"since,omitempty"`
}

// StatusToDo is one thing that a person should do.
type StatusToDo struct {
	Level monitoring.Level `json:"level"`
	// What says what is the matter, and what helps.
	What string `json:"what"`
	// Command is a command line that helps, or shows more; empty if there is none.
	Command string `json:"command,omitempty"`
}

// StatusCleanup says what is deleted when, and what the last pass has done.
type StatusCleanup struct {
	// OutboxSeconds and LedgerSeconds are the retentions that are configured; absent for ever.
	OutboxSeconds *float64 `json:"outbox_retention_seconds,omitempty"`
	LedgerSeconds *float64 `json:"ledger_retention_seconds,omitempty"`
	// LastPassAt is when the last pass has ended, which only the instance that streams knows.
	LastPassAt *time.Time `json:"last_pass_at,omitempty"`
	// ReportedAt is when LastPass was written: a pass writes it when it has something new to say, and once an hour.
	ReportedAt *time.Time `json:"reported_at,omitempty"`
	// LogDroppedUntil is the end of the newest partition of the log that was dropped.
	LogDroppedUntil *time.Time `json:"log_dropped_until,omitempty"`
	// LastPass is the newest report of a pass; absent if there is none yet.
	LastPass *cleanup.Report `json:"last_pass,omitempty"`
}
