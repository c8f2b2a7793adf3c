package monitoring

import "time"

// slotFamilies say how much WAL the slot keeps, and when that comes to an end.
var slotFamilies = []Family{
	{
		Name: "slot_restart_lag_bytes", Type: Gauge, Unit: "bytes",
		Help: "WAL that the server keeps for the slot: what it has written since the slot's restart_lsn.",
		Investigate: "It grows while slot_lag_bytes does not: a transaction is open for long, and the WAL since its begin is kept. " +
			"If both grow, the stream is behind.",
		collect: ofSlot(func(s *SlotStatus, emit emit) { emitKnown(s.RestartLag, emit) }),
	},
	{
		Name: "slot_wal_status", Type: Gauge, Labels: []string{"status"}, Unit: "0 or 1",
		Help: "1 for the present wal_status of the slot, 0 for the others: reserved (the WAL fits into max_wal_size), extended (more is kept), " +
			"unreserved (lost at the next checkpoint unless it moves), lost.",
		Investigate: "It is unreserved or lost: the slot has kept as much WAL as max_slot_wal_keep_size allows.",
		collect: ofSlot(func(s *SlotStatus, emit emit) {
			for _, status := range walStatuses {
				emit(asNumber[s.WALStatus == status], status)
			}
		}),
	},
	{
		Name: "slot_safe_wal_bytes", Type: Gauge, Unit: "bytes",
		Help: "WAL that may still be written before the slot can be lost. There is none if max_slot_wal_keep_size is -1: then the disk is the limit, " +
			"which is not known here.",
		Investigate: "It is less than the services write in a few hours, and does not recover: see forecast_slot_lost_seconds.",
		collect:     ofSlot(func(s *SlotStatus, emit emit) { emitKnown(s.SafeWAL, emit) }),
	},
	{
		Name: "slot_spilled_bytes_total", Type: Counter, Unit: "bytes",
		Help: "Bytes of transactions that the server has written to disk to decode them for the slot, because they were larger than " +
			"logical_decoding_work_mem.",
		Investigate: "It grows all the time: many transactions are large. Give the server more logical_decoding_work_mem, or make them smaller.",
		collect:     ofDatabase(func(d *DatabaseStatus, emit emit) { emitKnown(d.Spilled, emit) }),
	},
	{
		Name: "slot_info", Type: Gauge, Labels: []string{"failover", "synced", "plugin"}, Unit: "1",
		Help: "1; the labels say what the slot is: whether standbys of PostgreSQL are to have it (failover), and whether it was synchronised from a primary (synced). " +
			"Both are empty before PostgreSQL 17.",
		Investigate: "The plugin is not pgoutput, or failover is false although the primary has standbys that may take over.",
		collect: ofDatabase(func(d *DatabaseStatus, emit emit) {
			if d.Plugin != "" {
				emit(1, d.Failover, d.Synced, d.Plugin)
			}
		}),
	},
	{
		Name: "slot_sync_standbys", Type: Gauge, Unit: "1",
		Help: "Standbys that ask this server for copies of its failover slots (sync_replication_slots). There is none of this metric unless slot_info says failover. " +
			"Whether a standby has a copy that outlives a promotion can only be asked there.",
		Investigate: "It is 0: a standby that is promoted now would lack the slot, or have an old copy of it.",
		collect:     ofDatabase(func(d *DatabaseStatus, emit emit) { emitKnown(d.SyncStandbys, emit) }),
	},
	{
		Name: "forecast_slot_lost_seconds", Type: Gauge, Unit: "seconds",
		Help: "When the slot has used up the WAL that it may keep, if what is kept goes on growing as over the last minute. There is none while it does not grow, " +
			"and if max_slot_wal_keep_size is -1.",
		Investigate: "It is less than a few hours: mend what keeps the stream, or raise max_slot_wal_keep_size (select pg_reload_conf() makes it count).",
		collect: ofForecast(func(s *Status, emit emit) {
			if at := s.Forecast.SlotLostAt; !at.IsZero() {
				emit(max(0, at.Sub(s.At).Seconds()))
			}
		}),
	},
	{
		Name: "forecast_caught_up_seconds", Type: Gauge, Unit: "seconds",
		Help: "When nothing waits any more, neither in the WAL nor parked for any sink, if it goes on as over the last minute; 0 if nothing waits. " +
			"There is none if that does not come at this rate.",
		Investigate: "There is none, or it grows, although all sinks are up: more comes than is delivered.",
		collect: ofForecast(func(s *Status, emit emit) {
			switch f := s.Forecast.CaughtUp; f.Trend {
			case TrendNothingWaits:
				emit(0)
			case TrendCatchingUp:
				emit(max(0, f.CaughtUpAt.Sub(s.At).Seconds()))
			case TrendNotAtThisRate, TrendGrowing, TrendUnknown:
			}
		}),
	},
}

// databaseFamilies say how the tables of the outbox and the ledger do.
var databaseFamilies = []Family{
	{
		Name: "ledger_bytes", Type: Gauge, Labels: []string{"table"}, Unit: "bytes",
		Help:        "Size on disk of each table of the ledger, with its partitions, indexes and TOAST.",
		Investigate: "outbox_delivery_log grows beyond its retention, or outbox_parked stays large after an outage: see what the cleanup and autovacuum do.",
		collect: ofStorage(func(s *StorageStatus, emit emit) {
			for _, t := range s.Ledger {
				emit(float64(t.Bytes), t.Table)
			}
		}),
	},
	{
		Name: "outbox_bytes", Type: Gauge, Unit: "bytes",
		Help:        "Size on disk of the outbox, with its partitions, indexes and TOAST.",
		Investigate: "It grows for days at the same traffic: old rows are not deleted, or deleted rows are not vacuumed away.",
		collect:     ofStorage(func(s *StorageStatus, emit emit) { emitKnown(s.Outbox, emit) }),
	},
	{
		Name: "outbox_oldest_row_timestamp_seconds", Type: Gauge, Unit: "seconds since 1970",
		Help: "When the oldest row of the outbox was created. There is none if the outbox is empty, has no index on the time by which that is found, " +
			"or if too many deleted rows are in the way.",
		Investigate: "It is longer ago than the retention: outbox-cdc status says why old rows stay.",
		collect:     ofStorage(func(s *StorageStatus, emit emit) { emitTime(s.OldestRow, emit) }),
	},
	{
		Name: "xmin_age_transactions", Type: Gauge, Unit: "transactions",
		Help: "How many transactions have begun since the oldest one that some session, slot, standby or prepared transaction still needs. " +
			"Rows that were deleted since then cannot be vacuumed away.",
		Investigate: "It grows for an hour: outbox-cdc status names the transaction.",
		collect:     ofDatabase(func(d *DatabaseStatus, emit emit) { emitKnown(d.XminAge, emit) }),
	},
	{
		Name: "pg_connections", Type: Gauge, Labels: []string{"state"}, Unit: "connections",
		Help: "Connections of this process for SQL, by what PostgreSQL says of them: active, idle, idle_in_transaction, other. The stream is one more. " +
			"Those of other processes are not counted.",
		Investigate: "All that pg_connections_limit allows are active for minutes: statements wait for each other. /readyz says what hangs.",
		collect: ofDatabase(func(d *DatabaseStatus, emit emit) {
			if c := d.Connections; c != nil {
				emit(float64(c.Active), "active")
				emit(float64(c.Idle), "idle")
				emit(float64(c.InTransaction), "idle_in_transaction")
				emit(float64(c.Other), "other")
			}
		}),
	},
	{
		Name: "pg_connections_limit", Type: Gauge, Unit: "connections",
		Help:        "How many connections for SQL this process may have: source.max_connections.",
		Investigate: "The sum of pg_connections is as large for minutes.",
		collect: ofDatabase(func(d *DatabaseStatus, emit emit) {
			emit(float64(d.ConnectionLimit))
		}),
	},
	{
		Name: "parked_last_autovacuum_timestamp_seconds", Type: Gauge, Unit: "seconds since 1970",
		Help: "When autovacuum has last been through outbox_parked. There is none if it has not been since the server's statistics begin, " +
			"which is so while nothing is parked.",
		Investigate: "It is hours ago while many rows are parked and delivered: something holds autovacuum back. See xmin_age_transactions.",
		collect:     ofDatabase(func(d *DatabaseStatus, emit emit) { emitTime(d.ParkedAutovacuumedAt, emit) }),
	},
	{
		Name: "cleanup_deleted_total", Type: Counter, Labels: []string{"table"}, Unit: "rows",
		Help:        "Rows that were deleted because of their age, by table.",
		Investigate: "It stands still while rows get older than the retention: outbox-cdc status says why they stay.",
	},
	{
		Name: "cleanup_last_success_timestamp_seconds", Type: Gauge, Unit: "seconds since 1970",
		Help:        "When the cleanup has last done all that it had to do; 0 if it has not yet. Absent if nothing is to be deleted (retention).",
		Investigate: "It is hours ago in the instance that streams: /readyz names what keeps the cleanup.",
	},
}

// ofDatabase collects what is asked every 15 s. There is nothing while nobody asks.
func ofDatabase(collect func(*DatabaseStatus, emit)) func(*Status, emit) {
	return func(s *Status, emit emit) {
		if d := s.Database; d != nil && !d.AskedAt.IsZero() {
			collect(d, emit)
		}
	}
}

func ofSlot(collect func(*SlotStatus, emit)) func(*Status, emit) {
	return func(s *Status, emit emit) {
		if d := s.Database; d != nil && d.Slot != nil {
			collect(d.Slot, emit)
		}
	}
}

func ofStorage(collect func(*StorageStatus, emit)) func(*Status, emit) {
	return func(s *Status, emit emit) {
		if d := s.Database; d != nil && d.Storage != nil {
			collect(d.Storage, emit)
		}
	}
}

func ofForecast(collect func(*Status, emit)) func(*Status, emit) {
	return func(s *Status, emit emit) {
		if s.Forecast != nil {
			collect(s, emit)
		}
	}
}

func emitKnown(value *int64, emit emit) {
	if value != nil {
		emit(float64(*value))
	}
}

func emitTime(t time.Time, emit emit) {
	if !t.IsZero() {
		emit(float64(t.UnixMilli()) / 1000)
	}
}
