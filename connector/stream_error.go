package connector

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// sameOften is how many times in a row the same error must come at the same place before we say that it will come for ever.
const sameOften = 3

// streamError is an error that the server has put into the stream, together with the place where the stream stood.
type streamError struct {
	err   error           // as the stream returned it
	cause *pgconn.PgError // the server's error in err

	inside    bool          // between Begin and Commit
	xid       uint32        // of the last Begin; 0 before the first one of the session
	lsn       pglogrepl.LSN // of that transaction's commit record; before the first Begin it is where the slot stands
	committed time.Time     // the commit time of that transaction
	record    pglogrepl.LSN // the WAL record that the server was reading; 0 if it does not say
}

// locate adds the place to an error that the server has put into the stream. It returns any other error as it is.
func (r *reader) locate(err error) error {
	cause, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	e := &streamError{err: err, cause: cause, inside: r.tx.open, xid: r.tx.xid, lsn: r.tx.lsn, committed: r.tx.committed}
	if e.xid == 0 {
		e.lsn = r.start.Confirmed
	}
	e.record = provision.RecordOf(cause)
	return e
}

// passedError is an error that comes from a transaction which the checkpoint has passed already. Either "outbox-cdc skip" was ended before
// it had moved the slot too, or a crash of PostgreSQL has moved the slot back.
type passedError struct {
	error
	confirmed pglogrepl.LSN // the checkpoint's, which lies behind the transaction
}

// notePassed makes a passedError of an error that comes from a place in the WAL, if the checkpoint has passed the place. It returns any other
// error as it is.
func (r *reader) notePassed(err error) error {
	if !r.tx.open || r.tx.lsn >= r.start.Confirmed {
		return err
	}
	_, fromServer := errors.AsType[*streamError](err)
	_, undecodable := errors.AsType[*decoder.Error](err)
	if !fromServer && !undecodable {
		return err
	}
	return &passedError{err, r.start.Confirmed}
}

// settleBefore waits until all is settled that was read before the place at which the stream has ended, for patience at most. err is why the stream
// has ended; settleBefore does nothing if that has no place in the WAL.
//
// What stands before the place, and the place itself, may arrive within a millisecond. If the session ended at once, its lanes would have
// delivered nothing, and so it would be in each session after it: the events before the place would never be delivered, and "outbox-cdc skip"
// would never pass it, because they are not settled.
func (r *reader) settleBefore(ctx context.Context, err error, patience time.Duration) {
	if !hasPlace(err) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if r.flush(ctx) != nil {
		return
	}
	for r.tracker.InFlight() > 0 {
		if _, err := waitFor(ctx, r.stream, r.tracker.Room()); err != nil {
			return // the session has an error already, which says more
		}
	}
}

// hasPlace reports whether an error comes from a place in the WAL, so that each session that gets there ends with it.
func hasPlace(err error) bool {
	if e, ok := errors.AsType[*streamError](err); ok {
		return !e.serverEnded()
	}
	e, ok := errors.AsType[*decoder.Error](err)
	return ok && e.LSN != 0
}

// serverEnded reports whether the server or the connection has ended, which has nothing to do with the place.
func (e *streamError) serverEnded() bool {
	return strings.HasPrefix(e.cause.Code, "57") || strings.HasPrefix(e.cause.Code, "08")
}

func (e *passedError) Unwrap() error { return e.error }

// moveSlot moves the slot past a transaction that the checkpoint has passed. To report the checkpoint's LSN to the stream, as every session
// does, may not be enough: the server may end the stream before it reads the report.
func (c *Connector) moveSlot(ctx context.Context, e *passedError) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if err := c.db.advanceSlot(ctx, e.confirmed); err != nil {
		return fmt.Errorf("%w; the checkpoint is past this transaction, and the slot could not be moved there: %w", e.error, err)
	}
	c.cfg.Logger.Warn("the stream has ended in a transaction that outbox-cdc skip has passed; the slot was moved past it", "slot", c.cfg.Source.Slot, "lsn", e.confirmed.String(), "err", e.error)
	return e.error
}

func (e *streamError) Error() string { return fmt.Sprintf("the stream ended %s: %v", e.place(), e.err) }

func (e *streamError) Unwrap() error { return e.err }

// place describes where the stream stood, by the transaction and by the record that the server was reading.
func (e *streamError) place() string {
	transaction := fmt.Sprintf("transaction %d (commit LSN %s, committed %s)", e.xid, e.lsn, e.committed.UTC().Format(time.RFC3339Nano))
	var text string
	switch {
	case e.inside:
		text = "in " + transaction
	case e.xid != 0:
		text = "behind " + transaction
	default:
		text = fmt.Sprintf("before the first transaction behind LSN %s, where the slot stands", e.lsn)
	}
	if e.record != 0 {
		text += fmt.Sprintf(", while the server read the record at LSN %s", e.record)
	}
	return text
}

// placeLSN returns the LSN of the place. It is the same in every session that fails there, wherever that session began.
func (e *streamError) placeLSN() pglogrepl.LSN {
	switch {
	case e.inside:
		return e.lsn
	case e.record != 0:
		return e.record
	}
	return e.lsn
}

// howToFindRows returns an instruction how to find the howToFindRows that the server cannot send.
func (e *streamError) howToFindRows(table string) string {
	if !e.inside {
		return "find the row"
	}
	return fmt.Sprintf("find the row (select ctid from %s where xmin = '%d', or of another table that the publication has)", table, e.xid)
}

// wayOn is the remedy where the stream can never pass the place.
func (e *streamError) wayOn() string {
	if !e.inside {
		return provision.StartAnew
	}
	return skipOf(e.lsn)
}

// skipOf is the remedy for a transaction that the stream can never pass.
func skipOf(lsn pglogrepl.LSN) string {
	return fmt.Sprintf(provision.SkipRemedy, lsn) + ", which passes the transaction and does not deliver the rest of its rows; see docs/slot.md#skip"
}

// unsendable returns why the server can never send a row. It returns nothing if the error is of another kind.
func (e *streamError) unsendable() string {
	switch {
	case e.cause.Code == "22021" || e.cause.Code == "22P05": // character_not_in_repertoire, untranslatable_character
		return "a row of it holds bytes that cannot be converted from the database's encoding to UTF8"
	case e.cause.Code == "54000", // program_limit_exceeded: a string buffer would be larger than 1 GB
		e.cause.Code == "XX000" && strings.HasPrefix(e.cause.Message, "invalid memory alloc request size"): // one value would be larger than 1 GB
		return "a row of it is larger than 1 GB as text, in which a bytea takes up twice its bytes, and PostgreSQL can send no such row"
	}
	return ""
}

// repeatedError counts how often in a row the same error has come at the same place.
type repeatedError struct {
	code  string        // SQLSTATE, or "decode" if we could not decode what the server sent
	at    pglogrepl.LSN // the place
	wayOn string        // the remedy if nothing can mend the cause
	times int

	first, last time.Time // when it came for the first and for the last time
}

// explainStreamError adds to an error that comes from a place in the WAL what it means for the slot. If no further try can
// help, it also adds the exit code that ends the process. It returns any other error as it is.
func (c *Connector) explainStreamError(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*passedError](err); ok {
		return c.moveSlot(ctx, e)
	}
	if e, ok := errors.AsType[*decoder.Error](err); ok && e.LSN != 0 {
		return c.countRepeats(err, repeatedError{code: "decode", at: e.LSN, wayOn: skipOf(e.LSN)})
	}
	e, ok := errors.AsType[*streamError](err)
	if !ok {
		return err
	}
	if provision.PublicationMissing(e.err) {
		return c.historyMissing(ctx, e, err)
	}
	if why := e.unsendable(); why != "" {
		return exitcode.Errorf(exitcode.SlotLost, "%w; %s, so the slot can never pass it: %s, mend it and what writes such rows, %s", err, why, e.howToFindRows(c.cfg.Source.Table), e.wayOn())
	}
	if e.serverEnded() {
		return err
	}
	// Outside of a transaction the place stays the same as long as nothing is written. So two errors there that are far apart in
	// time need not have the same cause.
	if !e.inside && time.Since(c.lastStreamError.last) > time.Minute {
		c.lastStreamError = repeatedError{}
	}
	return c.countRepeats(err, repeatedError{code: e.cause.Code, at: e.placeLSN(), wayOn: e.wayOn()})
}

// countRepeats counts an error at a place. Once it has come sameOften times in a row, it adds to the error that it will come for
// ever unless its cause is mended.
func (c *Connector) countRepeats(err error, here repeatedError) error {
	now := time.Now()
	if c.lastStreamError.code != here.code || c.lastStreamError.at != here.at {
		here.first = now
		c.lastStreamError = here
	}
	c.lastStreamError.times++
	c.lastStreamError.last = now
	c.lag.unreadSince.Store(c.lastStreamError.first.UnixNano()) // the lag counts from the first error: no session gets past this place
	if c.lastStreamError.times < sameOften {
		c.stuck.forget()
		return err
	}
	err = fmt.Errorf("%w; it was the same error at the same place %d times in a row, and comes for ever unless its cause is mended; "+
		"where nothing can mend it, %s", err, c.lastStreamError.times, here.wayOn)
	c.stuck.set(here.at, err.Error(), c.lastStreamError.first)
	return err
}

// historyMissing explains an error that says that the publication does not exist. If it is really missing, the error stays as it
// is: the next preflight refuses to start and names the remedy. If it exists again, no further try can help: PostgreSQL decodes a
// transaction by the catalog as it was when the transaction was written, and the publication was not there then.
func (c *Connector) historyMissing(ctx context.Context, e *streamError, err error) error {
	ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	if exists, askErr := c.db.publicationExists(ctx); askErr != nil || !exists {
		return err // it is missing, or we could not ask: the next preflight says which
	}
	return exitcode.Errorf(exitcode.SlotLost, "%w; publication %q exists now, and did not when that was written: it was dropped and made again, or source.publication has "+
		"another name than before, which can be set back; PostgreSQL decodes what was written by the publication as it was then, so the slot can never "+
		"pass it; find out who dropped it, %s", err, c.cfg.Source.Publication, provision.StartAnew)
}
