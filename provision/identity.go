package provision

import (
	"fmt"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// differs compares a database with the one of the checkpoint. It returns in words why it may be a copy, which must not send what its original
// has sent or still owes, or "" if it is the database of the checkpoint. A server of another timeline that is reached by the same
// hosts as before was promoted. One that is reached by other hosts may have been restored beside the one of the checkpoint.
func differs(now, then ledger.Identity) string {
	where := ""
	if then.Hosts != "" {
		where = " on " + then.Hosts
	}
	switch {
	case now.SystemIdentifier != then.SystemIdentifier:
		return fmt.Sprintf("the cluster with system identifier %s%s, and this one has %s: it is a restored copy, or another server",
			then.SystemIdentifier, where, now.SystemIdentifier)
	case now.DatabaseOID != then.DatabaseOID && now.DatabaseOID != 0 && then.DatabaseOID != 0:
		return fmt.Sprintf("database %q with oid %d, and this is %q with oid %d of the same server: it is a copy, or was restored",
			then.DatabaseName, then.DatabaseOID, now.DatabaseName, now.DatabaseOID)
	case now.DatabaseName != then.DatabaseName && now.DatabaseName != "" && then.DatabaseName != "":
		return fmt.Sprintf("database %q, and this is %q: it was renamed", then.DatabaseName, now.DatabaseName)
	case HasNewTimeline(now, then) && !sameHosts(now, then):
		return fmt.Sprintf("a server on timeline %d%s, and this one is on timeline %d and reached by %s: it was restored, or promoted",
			then.Timeline, where, now.Timeline, now.Hosts)
	}
	return ""
}

// HasNewTimeline reports whether the server of the checkpoint was promoted since, or a person has adopted this one.
func HasNewTimeline(now, then ledger.Identity) bool {
	return now.Timeline != then.Timeline && now.Timeline != 0
}

// isAnother reports whether this is another database than the one of the checkpoint, whose positions mean nothing here.
func isAnother(now, then ledger.Identity) bool {
	return now.SystemIdentifier != then.SystemIdentifier || now.DatabaseOID != then.DatabaseOID && now.DatabaseOID != 0 && then.DatabaseOID != 0
}

// sameHosts reports whether the server is reached by the hosts of before. An adopted one is.
func sameHosts(now, then ledger.Identity) bool {
	return now.Hosts == then.Hosts || now.Hosts == "" || then.Timeline == 0
}

// otherDatabase is the error for a database that differs. goOn says how to go on with it.
func otherDatabase(slot string, now, then ledger.Identity, goOn string) error {
	return exitcode.Errorf(exitcode.SlotLost, "the checkpoint of slot %q belongs to %s; correct source.dsn if that is wrong; %s", slot, differs(now, then), goOn)
}

// CheckIdentity returns an error if a database from whose slot can be streamed is not the one of the checkpoint.
func CheckIdentity(slot string, now, then ledger.Identity) error {
	if differs(now, then) == "" {
		return nil
	}
	return otherDatabase(slot, now, then, goOnHere)
}

const (
	ofCopy = `; if this is a copy beside its original, run "outbox-cdc resync --backlog none --parked discard", ` + copySendsNothing
	// copySendsNothing ends what is to be done with a copy.
	copySendsNothing = "which sends nothing of what the original owes; see docs/copies.md"
	// goOnHere says how to go on with a database that differs, if its slot can be streamed from.
	goOnHere = `if the outbox goes on here, run "outbox-cdc adopt"` + ofCopy
	// goOnAnew says it if the slot is gone or cannot be streamed from.
	goOnAnew = `the slot cannot be streamed from here: if the outbox goes on here, run "outbox-cdc resync --parked keep"` + ofCopy
	// goOnBeside says it if the slot belongs to another database of the server, whose name it takes.
	goOnBeside = `the slot belongs to database %q of this server: if the outbox goes on here, drop the slot there ("outbox-cdc destroy") and run ` +
		`"outbox-cdc resync --parked keep" here; if this is a copy beside its original, set source.slot to another name and run ` +
		`"outbox-cdc init --backlog none --parked discard", ` + copySendsNothing
)

// goOn says how to go on with a database that differs.
func (s *slotRow) goOn(now ledger.Identity) string {
	switch {
	case s.isHere(now):
		return goOnHere
	case s.isElsewhere(now):
		return fmt.Sprintf(goOnBeside, s.database)
	}
	return goOnAnew
}

// isElsewhere reports whether the slot belongs to another database of the server. A physical slot has no database.
func (s *slotRow) isElsewhere(now ledger.Identity) bool {
	return s != nil && s.database != now.DatabaseName && s.database != ""
}

// isHere reports whether the slot can be streamed from in this database.
func (s *slotRow) isHere(now ledger.Identity) bool {
	return s != nil && s.plugin == outputPlugin && s.database == now.DatabaseName && !s.temporary && s.lost == ""
}
