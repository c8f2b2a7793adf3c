package monitoring

import "time"

// DatabaseStatus is what the instance that streams has last asked PostgreSQL for the metrics. What the server, or the rights of the login,
// did not tell is nil or zero, and its metric is absent.
type DatabaseStatus struct {
	// AskedAt is when all but Slot and Storage was asked. It is zero if it is not known.
	AskedAt time.Time
	Slot    *SlotStatus
	// Plugin, Failover and Synced are what never changes of the slot, or rarely. The latter two are "true" or "false", and empty before
	// PostgreSQL 17.
	Plugin, Failover, Synced string
	// Spilled is how many bytes of large transactions the server has written to disk to decode them for the slot.
	Spilled *int64
	// SyncStandbys is how many standbys ask for copies of the failover slots of this server; nil if the slot is none.
	SyncStandbys *int64
	// XminAge is how many transactions have begun since the oldest one for which deleted rows are spared.
	XminAge *int64
	// Connections are those of this process for SQL. ConnectionLimit is how many there may be.
	Connections     *ConnectionCounts
	ConnectionLimit int
	// ParkedAutovacuumedAt is when autovacuum has last been through outbox_parked.
	ParkedAutovacuumedAt time.Time
	Storage              *StorageStatus
}

// SlotStatus is how much WAL the server keeps for the slot, and for how long that goes on.
type SlotStatus struct {
	AskedAt time.Time
	// RestartLag is the WAL between the slot's restart_lsn and what the server has written, in bytes: what it has to keep for the slot.
	RestartLag *int64
	// WALStatus is that of pg_replication_slots: one of walStatuses.
	WALStatus string
	// SafeWAL is how many bytes may still be written before the slot can be lost. It is nil if that is not limited, and if it is lost.
	SafeWAL *int64
}

// walStatuses are the states of a slot's WAL.
var walStatuses = []string{"reserved", "extended", "unreserved", "lost"}

// ConnectionCounts counts connections by what they do.
type ConnectionCounts struct {
	Active, Idle, InTransaction, Other int
}

// StorageStatus is how much the tables take on disk, in bytes, with their partitions, indexes and TOAST.
type StorageStatus struct {
	AskedAt time.Time
	// Outbox is nil if there is no such table.
	Outbox *int64
	Ledger []TableSize
	// OldestRow is when the oldest row of the outbox was created. It is zero if there is none, and if no index finds it at once.
	OldestRow time.Time
}

// TableSize is the size of a table of the ledger.
type TableSize struct {
	Table string
	Bytes int64
}

// ForecastStatus says when something comes, if it goes on as over the last minute. Recent makes it.
type ForecastStatus struct {
	// CaughtUp is about all that waits: the WAL that is not confirmed, and the parked rows of all sinks. The one that takes longest counts.
	CaughtUp Forecast
	// SlotLostAt is when the slot has used up the WAL that it may keep. It is zero if that is not so, or if it is not limited.
	SlotLostAt time.Time
}
