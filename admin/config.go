// Package admin holds what people do with a connector: list events, look at dead letters and change them, pause sinks, and ask where
// an event would go. It works on the connector's ledger in PostgreSQL, so it needs no running connector; one that runs is told of each
// change. The commands of outbox-cdc are made of it.
//
// It reads no configuration and opens no sinks: service translates the configuration for it.
package admin

import "github.com/pyairtable-compose/outbox-cdc/replication"

// Config says which connector's ledger the functions of this package work on.
type Config struct {
	// Name of the connector: its sinks are those that outbox_processors holds under this name.
	Name string
	// DSN of the database with the ledger.
	DSN    string
	Source replication.Source
	// Block says that a dead letter holds its aggregate until a person acts.
	Block bool
}
