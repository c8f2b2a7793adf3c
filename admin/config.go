// Package admin does what people do with a connector: it lists events and shows what became of them, lists dead letters and
// retries, discards, purges or makes them, pauses and resumes sinks, has them asked at once, deletes what the retention allows, and says
// where an event would go. The commands of outbox-cdc call it; so can a service that embeds the connector.
//
// Except for Routing.Targets, everything here works on the ledger in PostgreSQL, over a connection of its own. It needs no
// running connector. A connector that runs is told of each change by NOTIFY.
//
// The package does not run a connector, and it does not make or remove what one needs: service and provision do that. It
// reads no configuration either: service translates one into a Config and a Routing.
package admin

import "github.com/pyairtable-compose/outbox-cdc/provision"

// Config says on which connector's ledger the functions of this package work.
type Config struct {
	// Name of the connector. Its sinks are the rows of outbox_processors that have this name in the column connector.
	Name string
	// DSN of the database that holds the ledger.
	DSN string
	// Source names the outbox table, the schema of the ledger, and the slot.
	Source provision.Source
	// DeadBlocks says that a dead letter holds its aggregate until a person acts.
	DeadBlocks bool
	// Composites are the configured ones, so that an error can name the sinks that a composite consists of. There may be none.
	Composites []Composite
	// Sinks are the names of the configured sinks, members of composites among them. The ledger may have others, which were configured
	// once, and nobody delivers to those. If there are none here, nothing is said about that.
	Sinks []string
}

// Composite is a sink of the configuration that is made of others. In the ledger either it or its members are sinks.
type Composite struct {
	Name    string
	Members []string
	// OneSink says that the composite is the sink: its strategy is any. Otherwise each member is one.
	OneSink bool
}
