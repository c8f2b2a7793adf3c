// Package e2e tests outbox-cdc from outside: the built binary against a real PostgreSQL and a real Apache Kafka, with
// kills, crashes, outages and mistakes. It knows the command line, the tables and what arrives, nothing else.
//
// Every scenario ends with the same question, asked by check: was anything lost, invented, misordered or needlessly
// repeated, is the ledger complete, and was the slot ever ahead of it? The truth is a second slot, which test_decoding
// reads: it shares neither publication nor code with the connector.
//
// A test has a world of its own: database, slots, publication, topics, configuration. PostgreSQL and Kafka are shared,
// except where a test breaks them.
package e2e
