package provision

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// associatedLSN matches the LSN at the end of the context that the server adds to an error of its output plugin. The words before
// it depend on the server's language.
var associatedLSN = regexp.MustCompile(`[0-9A-F]{1,8}/[0-9A-F]{1,8}$`)

// RecordOf returns the LSN of the WAL record that the server was reading when it put this error into the stream, 0 if it does not say.
func RecordOf(err *pgconn.PgError) pglogrepl.LSN {
	lsn, _ := pglogrepl.ParseLSN(associatedLSN.FindString(err.Where)) // 0 with an error
	return lsn
}

// PublicationMissing reports whether an error of the server in the stream says that it did not find the publication.
func PublicationMissing(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return errors.Is(err, replication.ErrPublicationMissing) || ok && pg.Code == "42704" && pg.Routine == "get_publication_oid"
}

// obstacle is what the stream cannot pass.
type obstacle struct {
	// lsn names it, in messages of the connector and for the command: the commit LSN of the transaction. If the stream has ended before the
	// transaction began, it is the LSN of the record that the server was reading.
	lsn         pglogrepl.LSN
	transaction uint32        // its number; 0 if the stream has ended outside of a transaction
	committed   time.Time     // with transaction
	next        int64         // with transaction: how many inserts of it were read
	history     bool          // the publication did not exist when this was written
	confirmed   pglogrepl.LSN // where the slot stands
	seen        *ledger.Checkpoint
	err         error
}

// skipLook reads the stream from where the slot stands until it ends with an error, and reports nothing to the server. So the slot stays
// where it is.
type skipLook struct {
	cfg     *SkipConfig
	stream  *replication.Stream
	decoder *decoder.Decoder
	seen    *ledger.Checkpoint
	end     pglogrepl.LSN // what had been written when the look began

	open bool // between Begin and Commit
	tx   obstacle
	last pglogrepl.LSN // the commit LSN of the last transaction, or where the slot stands
}

// errNothingToSkip is the error if the stream can be read.
var errNothingToSkip = errors.New("nothing to skip")

// slotPatience bounds how long the command waits for a connector that cannot pass the place either, and so streams only for a moment
// every few seconds.
const slotPatience = 5 * time.Second

// lookAhead finds what the stream cannot pass. It returns an error if that is not the next thing to be read.
func lookAhead(ctx context.Context, conn *pgx.Conn, cfg *SkipConfig) (*obstacle, error) {
	stream, id, err := openFree(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	// Nobody else can begin to stream now. Only a session that has lost the slot may still record its last outcomes.
	seen, err := readCheckpoint(ctx, conn, cfg.Source)
	if err != nil {
		return nil, err
	}
	if seen == nil || seen.State == ledger.Building || seen.SystemIdentifier != id.SystemID || seen.Timeline != id.Timeline {
		return nil, exitcode.Errorf(exitcode.SlotLost, "the checkpoint of slot %q is not of this slot; start a connector, which says what to do", cfg.Slot)
	}
	l := &skipLook{cfg: cfg, stream: stream, seen: seen}
	var oid uint32
	schema, name := cfg.tableName()
	err = conn.QueryRow(ctx, "select c.oid, pg_current_wal_flush_lsn(), s.confirmed_flush_lsn from pg_class c join pg_namespace n on n.oid = relnamespace, pg_replication_slots s "+
		"where nspname = $1 and relname = $2 and slot_name = $3", schema, name, cfg.Slot).Scan(&oid, &l.end, &l.tx.confirmed)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, TableMissing(cfg.Source)
	} else if err != nil {
		return nil, fmt.Errorf("ask where slot %q stands: %w", cfg.Slot, err)
	}
	if l.tx.confirmed > seen.Confirmed { // what lies between the two may never have been delivered, and skip would say that it is settled
		return nil, exitcode.Errorf(exitcode.SlotLost, "slot %q stands at %s, ahead of the checkpoint's %s: somebody has moved it; start a connector first, which looks for what that has passed",
			cfg.Slot, l.tx.confirmed, seen.Confirmed)
	}
	l.last = max(l.tx.confirmed, seen.Confirmed)
	l.decoder = decoder.New(decoder.Table{OID: oid, Columns: cfg.Columns}, cfg.MaxEventBytes)
	return l.read(ctx)
}

// openFree begins to stream. If somebody else does, it waits for a moment.
func openFree(ctx context.Context, conn *pgx.Conn, cfg *SkipConfig) (*replication.Stream, replication.Identity, error) {
	for began := time.Now(); ; {
		stream, id, err := replication.Open(ctx, replication.StreamConfig{
			DSN: cfg.ReplicationDSN, Slot: cfg.Slot, Publication: cfg.Publication, ApplicationName: "outbox-cdc skip",
		})
		switch {
		case err == nil:
			return stream, id, nil
		case !errors.Is(err, replication.ErrSlotInUse):
			return nil, id, err
		case time.Since(began) > slotPatience:
			slot, askErr := readSlot(ctx, conn, cfg.Slot)
			if askErr == nil && slot != nil && slot.activePID != 0 {
				return nil, id, streamsNow(ctx, conn, cfg.Source, slot)
			}
			return nil, id, err
		}
		if err := wait.For(ctx, 100*time.Millisecond); err != nil {
			return nil, id, err
		}
	}
}

func (l *skipLook) read(ctx context.Context) (*obstacle, error) {
	for {
		f, err := l.stream.Next(ctx)
		if err != nil {
			return l.ended(err)
		}
		if f.Keepalive {
			if !l.open && f.LSN >= l.end {
				return nil, fmt.Errorf("%w: the stream can be read from %s, where slot %q stands, to %s, where it ends now", errNothingToSkip, l.tx.confirmed, l.cfg.Slot, f.LSN)
			}
			continue
		}
		m, err := l.decode(ctx, f)
		if err != nil {
			return l.ended(err)
		}
		if err := l.follow(m); err != nil {
			return nil, err
		}
	}
}

// decode decodes a message as the connector does.
func (l *skipLook) decode(ctx context.Context, f replication.Frame) (decoder.Message, error) {
	if f.Rest == 0 {
		return l.decoder.Decode(f.Data)
	}
	m, row, err := l.decoder.Large(f.Data, f.Rest)
	if err != nil || row == nil {
		return m, err
	}
	for left := f.Rest; left > 0; {
		b, err := l.stream.More(ctx)
		if err != nil {
			return m, err
		}
		if err := row.Write(b); err != nil {
			return m, err
		}
		left -= len(b)
	}
	return row.End()
}

// follow keeps track of transactions. Its error says that an event comes first that can be read and is not settled.
func (l *skipLook) follow(m decoder.Message) error {
	switch m.Kind {
	case decoder.KindBegin:
		l.open = true
		l.tx.lsn, l.tx.transaction, l.tx.committed, l.tx.next = m.LSN, m.Xid, m.CommitTime, 0
	case decoder.KindCommit:
		l.open, l.last = false, m.LSN
	case decoder.KindInsert:
		at := checkpoint.Position{LSN: l.tx.lsn, Index: l.tx.next}
		l.tx.next++
		if m.Event != nil && at.Compare(l.seen.Prefix) > 0 {
			return fmt.Errorf("the event at %s (transaction %d, committed %s) comes first: it can be read, and is not settled for every sink; "+
				"start a connector, and skip only what it cannot pass", at, l.tx.transaction, l.tx.committed.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// ended returns the obstacle at which the stream has ended. It returns an error if the stream has ended for another reason.
func (l *skipLook) ended(err error) (*obstacle, error) {
	o := l.tx
	o.err, o.seen, o.history = err, l.seen, PublicationMissing(err)
	pg, fromServer := errors.AsType[*pgconn.PgError](err)
	_, undecodable := errors.AsType[*decoder.Error](err)
	switch {
	case !fromServer && !undecodable && !o.history:
		return nil, err
	case fromServer && (strings.HasPrefix(pg.Code, "57") || strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "53")):
		return nil, err // the server or the connection has ended, or a resource: that has nothing to do with the place
	}
	if !l.open {
		o.transaction, o.committed, o.next, o.lsn = 0, time.Time{}, 0, l.last
		if fromServer && RecordOf(pg) != 0 {
			o.lsn = RecordOf(pg)
		}
	}
	return &o, nil
}
