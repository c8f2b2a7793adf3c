// Package provision makes, checks and removes what a connector needs in PostgreSQL besides the ledger's tables: the
// replication slot with its checkpoint, the publication, and the rights of the connector's two logins. It registers the sinks
// as processors of the ledger. init and destroy make and remove, each start checks by Preflight, and CheckDrift checks again
// while the connector runs.
//
// It does not make the tables, which is what package migrations does, and it does not read the stream, which is what package
// replication does.
//
// A mistake that only a person can mend is an error with an exit code and a remedy. Everything that is wrong is reported at
// once, so that a person can mend it in one go.
package provision
