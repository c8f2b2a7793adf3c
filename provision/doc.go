// Package provision makes, checks and removes what a connector needs in PostgreSQL besides the ledger's tables: the replication
// slot with its checkpoint, the publication, and the rights of the connector's two logins.
//
//   - init calls Setup, and destroy calls Destroy. Both hold a lock on the slot's name.
//   - Each start calls Preflight, which changes nothing.
//   - A running connector calls CheckDrift again and again.
//
// The package does not make the tables, which is what package migrations does. It has no SQL on the ledger's tables, which is what
// package ledger is for. It does not read the stream, which is what package replication does.
//
// A mistake that only a person can mend is an error with an exit code and a remedy. Everything that is wrong is reported at
// once, so that a person can mend it in one go.
package provision
