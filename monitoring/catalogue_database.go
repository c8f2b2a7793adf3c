package monitoring

// databaseFamilies say how the tables of the outbox and the ledger do.
var databaseFamilies = []Family{
	{
		Name: "cleanup_deleted_total", Type: Counter, Labels: []string{"table"}, Unit: "rows",
		Help:        "Rows that were deleted because of their age, by table.",
		Investigate: "It stands still while rows get older than the retention: outbox-cdc status says why they stay.",
	},
	{
		Name: "cleanup_last_success_timestamp_seconds", Type: Gauge, Unit: "seconds since 1970",
		Help:        "When the cleanup has last done all that it had to do; 0 if it has not yet.",
		Investigate: "It is hours ago in the instance that streams: /readyz names what keeps the cleanup.",
	},
}
