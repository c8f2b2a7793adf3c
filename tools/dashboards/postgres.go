package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

// walStatuses are the values of wal_status, from good to bad.
var walStatuses = []state{{"reserved", "green"}, {"extended", "yellow"}, {"unreserved", "orange"}, {"lost", "red"}}

func postgresRow() row {
	status, statusMeanings := numbered(ofInstances, "slot_wal_status", "status", walStatuses)
	oldestRow, autovacuum := ofInstances("outbox_oldest_row_timestamp_seconds"), ofInstances("parked_last_autovacuum_timestamp_seconds")
	cleanup := ofInstances("cleanup_last_success_timestamp_seconds")
	return row{"How is PostgreSQL?", []cog.Builder[dashboard.Panel]{
		states(panel{
			title: "The slot's WAL",
			shows: "wal_status of the slot: reserved (it fits into max_wal_size), extended (more is kept), unreserved (lost at the next checkpoint), lost.",
			good:  "reserved; extended for a while after an outage.",
			todo:  "unreserved: raise max_slot_wal_keep_size now. lost: events are gone from the stream, and the page says how to go on.",
			page:  "operations.md#outboxslotlost", unit: units.NoUnit, width: 6,
		}, statusMeanings, query{leading(status, "job"), "slot"}),
		lines(panel{
			title: "Spilled by large transactions",
			shows: "What PostgreSQL writes to disk a second to decode transactions for the slot that are larger than logical_decoding_work_mem.",
			good:  "0, apart from a large transaction now and then.",
			todo:  "if it goes on all the time, give the server more logical_decoding_work_mem, or make the transactions smaller.",
			page:  "sizing.md", unit: units.BytesPerSecondIEC, width: 6,
		}, query{perSecond(ofInstances("slot_spilled_bytes_total"), "job"), "spilled"}),
		lines(panel{
			title: "Oldest transaction",
			shows: "How many transactions have begun since the oldest one that some session, slot or standby still needs.",
			good:  "it falls back again and again.",
			todo:  "if it grows for an hour, vacuum removes nothing, and tables grow: outbox-cdc status names who holds it.",
			page:  "operations.md#outboxxminheld", unit: units.Short, width: 6,
		}, query{leading(ofInstances("xmin_age_transactions"), "job"), "transactions"}),
		lines(panel{
			title: "Standbys that copy the slot",
			shows: "Standbys of PostgreSQL 17 and later that ask for copies of its failover slots. Empty if the slot is no failover slot.",
			good:  "as many as may be promoted.",
			todo:  "0: a standby that is promoted would lack the slot. Look at sync_replication_slots there, and whether it runs.",
			page:  "operations.md#outboxfailoverslotnotsynced", unit: units.Short, width: 6,
		}, query{leading(ofInstances("slot_sync_standbys"), "job"), "standbys"}),
		lines(panel{
			title: "Size on disk",
			shows: "Size of the outbox and of the tables of the ledger, with indexes.",
			good:  "it is level over days, as old rows are deleted as fast as new ones come.",
			todo:  "if it grows at the same traffic, compare with the panel beside it: is too little deleted, or not vacuumed away?",
			page:  "operations.md#outboxledgerbloat", unit: units.BytesIEC, width: 8,
		},
			query{leading(ofInstances("outbox_bytes"), "job"), "outbox"},
			query{leading(ofInstances("ledger_bytes"), "table"), "{{table}}"}),
		lines(panel{
			title: "Cleanup: rows deleted a second",
			shows: "Rows that are deleted because they are settled and older than the retention, by table.",
			good:  "it follows the traffic of some days ago.",
			todo:  "0, while rows are older than the retention: outbox-cdc cleanup --dry-run says why they stay.",
			page:  "operations.md#outboxcleanupstuck", unit: units.CountsPerSecond, width: 8,
		}, query{perSecond(ofInstances("cleanup_deleted_total"), "table"), "{{table}}"}),
		lines(panel{
			title: "How long ago",
			shows: "When the oldest row of the outbox was written, the cleanup last finished, and autovacuum last went through outbox_parked.",
			good:  "the oldest row is no older than the retention, and the cleanup was minutes ago.",
			todo:  "a cleanup hours ago: /readyz names what keeps it. An old autovacuum matters only while many rows are parked.",
			page:  "retention.md", unit: units.Seconds, width: 8,
		},
			query{age(oldestRow, oldestRow, "job"), "oldest row"},
			query{age(cleanup, "("+cleanup+" > 0)", "job"), "cleanup"}, // it is 0 before the first
			query{age(autovacuum, autovacuum, "job"), "autovacuum of outbox_parked"}),
		lines(panel{
			title: "The publication was changed",
			shows: "How often the publication was found changed, and right again, since the processes began.",
			good:  "0, or no step up within the time that is shown.",
			todo:  "rows that were written in between may be missing in the stream: the page has the query that finds them.",
			page:  "operations.md#outboxpublicationdrift", unit: units.Short, width: 8,
		}, query{"sum by (job) (" + ofInstances("publication_changes_total") + ")", "changes"}),
	}}
}
