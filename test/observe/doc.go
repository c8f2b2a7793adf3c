// Package observe tests what people see of a connector: metrics, dashboard and alert rules. The built binary delivers under load, with a standby
// beside it, while a real Prometheus scrapes both every second. Receivers go away, refuse and come back; the slot falls behind; the ledger hangs.
// The figures are compared with what the receivers, the tables and the clock say. Each query of the dashboard and each alert is evaluated.
//
// The tests go through the files and the table of metrics as they are: a new metric, panel or alert is tested without a change here.
package observe
