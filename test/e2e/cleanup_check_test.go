package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
)

// deletionRules say what cleanup may delete in a history.
type deletionRules struct {
	sinks          []string          // that every event goes to
	processors     map[string]string // names by id
	outbox, ledger time.Duration     // the shortest retentions that were ever in force
	slack          time.Duration     // by which a time of the server may differ from that of a snapshot
}

// position is where an event stands, as the ledger has it.
type position struct {
	lsn   pglogrepl.LSN // of the start of the commit record
	index int64
}

func (p position) String() string { return fmt.Sprintf("%s, %d", p.lsn, p.index) }

func (p position) after(o position) bool {
	return p.lsn > o.lsn || p.lsn == o.lsn && p.index > o.index
}

// lived is one event of the outbox, as it was after some transaction of a history.
type lived struct {
	table     string
	createdAt time.Time
	deleted   bool
	at        position
	knownAt   time.Time       // when the ledger had its first row of it
	settled   map[string]bool // the sinks for which the ledger has had an outcome
	rows      int             // of the ledger, now
}

// ledgerRow is one row of the ledger.
type ledgerRow struct {
	id string
	at position
}

// deletions goes through a history and looks at each row of the outbox and each partition of the log that was deleted.
type deletions struct {
	deletionRules
	events      map[string]*lived
	checkpoints map[string]map[string]string // rows of outbox_checkpoints, by slot
	log         map[string][]ledgerRow       // by partition
	parked      map[string]ledgerRow         // by primary key
	rows, days  int                          // deleted rows of the outbox, and partitions of the log
	outboxDays  int                          // deleted partitions of the outbox
	problems    []string
}

func (d *deletions) wrong(format string, args ...any) {
	d.problems = append(d.problems, fmt.Sprintf(format, args...))
}

// checkDeletions returns what was deleted, and what of it against the rules.
func checkDeletions(all []transaction, rules deletionRules) *deletions {
	d := &deletions{
		deletionRules: rules, events: map[string]*lived{}, checkpoints: map[string]map[string]string{}, log: map[string][]ledgerRow{}, parked: map[string]ledgerRow{},
	}
	for _, tx := range all {
		for i := range tx.changes {
			d.change(&tx, &tx.changes[i])
		}
	}
	return d
}

func (d *deletions) change(tx *transaction, c *change) {
	switch {
	case c.in("event_outbox") && c.op == "INSERT":
		d.events[c.row["id"]] = &lived{table: c.table, createdAt: c.time("created_at"), settled: map[string]bool{}}
	case c.in("event_outbox") && c.op == "DELETE":
		d.rows++
		d.deletes(tx, c.row["id"])
	case c.in("outbox_delivery_log") && c.op == "INSERT":
		d.log[c.table] = append(d.log[c.table], d.knows(tx, c))
	case c.table == "outbox_parked":
		d.parks(tx, c)
	case c.table == "outbox_checkpoints" && c.op == "DELETE":
		delete(d.checkpoints, c.row["slot_name"])
	case c.table == "outbox_checkpoints":
		d.checkpoints[c.row["slot_name"]] = c.row
	case c.table == "dropped":
		d.drops(tx, c.row["name"])
	}
}

// knows notes a new row of the ledger.
func (d *deletions) knows(tx *transaction, c *change) ledgerRow {
	row := ledgerRow{c.row["event_id"], position{c.lsn("commit_lsn"), c.number("tx_index")}}
	if e := d.events[row.id]; e != nil { // else it was committed before the oracle was there
		e.at = row.at
		e.rows++
		if e.knownAt.IsZero() {
			e.knownAt = tx.at
		}
		if c.row["status"] != "failed" {
			e.settled[d.processors[c.row["processor_id"]]] = true
		}
	}
	return row
}

// forgets notes that a row of the ledger is gone.
func (d *deletions) forgets(row ledgerRow) {
	if e := d.events[row.id]; e != nil {
		e.rows--
	}
}

func (d *deletions) parks(tx *transaction, c *change) {
	key := c.row["processor_id"] + " " + c.row["commit_lsn"] + " " + c.row["tx_index"]
	switch c.op {
	case "INSERT":
		d.parked[key] = d.knows(tx, c)
	case "DELETE":
		d.forgets(d.parked[key])
		delete(d.parked, key)
	}
}

// deletes looks at one row of the outbox at the moment when its deletion was committed.
func (d *deletions) deletes(tx *transaction, id string) {
	e := d.events[id]
	if e == nil {
		d.wrong("deleted: event %s, which was there before the slot", id)
		return
	}
	e.deleted = true
	if age := tx.at.Sub(e.createdAt); age+d.slack < d.outbox {
		d.wrong("deleted: event %s, %s after its created_at; rows are kept for %s", id, age, d.outbox)
	}
	if e.rows == 0 {
		d.wrong("deleted: event %s, of which the ledger has no row", id)
	}
	for _, sink := range d.sinks {
		if !e.settled[sink] {
			d.wrong("deleted: event %s, which %s has not settled", id, sink)
		}
	}
	if slot := d.beyond(e.at); slot != "" {
		d.wrong("deleted: event %s at %s, beyond the prefix of slot %s", id, e.at, slot)
	}
}

// beyond returns a slot that has not settled a position, "" if all have.
func (d *deletions) beyond(at position) string {
	for _, slot := range slices.Sorted(maps.Keys(d.checkpoints)) {
		row := change{table: "outbox_checkpoints", row: d.checkpoints[slot]}
		if row.row["state"] != "ready" || row.row["prefix_lsn"] == "" {
			return slot
		}
		if at.index >= 0 && at.after(position{row.lsn("prefix_lsn"), row.number("prefix_index")}) {
			return slot
		}
	}
	return ""
}

// drops looks at a partition at the moment when its deletion was committed.
func (d *deletions) drops(tx *transaction, name string) {
	c := change{table: name}
	switch {
	case c.in("outbox_delivery_log"):
		d.days++
		d.dropsLog(tx, name)
	case c.in("event_outbox"):
		d.outboxDays++
		for _, id := range slices.Sorted(maps.Keys(d.events)) {
			if e := d.events[id]; e.table == name && !e.deleted {
				d.deletes(tx, id)
			}
		}
	}
}

func (d *deletions) dropsLog(tx *transaction, name string) {
	if age := tx.at.Sub(logPartitionEnd(name)); age+d.slack < d.ledger {
		d.wrong("dropped: %s, %s after its end; the log is kept for %s", name, age, d.ledger)
	}
	for _, row := range d.log[name] {
		d.forgets(row)
		if slot := d.beyond(row.at); slot != "" {
			d.wrong("dropped: %s with a row of event %s at %s, beyond the prefix of slot %s", name, row.id, row.at, slot)
		}
		// Of a service whose clock is far ahead the log is gone before its rows are old enough.
		e := d.events[row.id]
		if e != nil && !e.deleted && e.rows == 0 && d.outbox < keptForEver && e.createdAt.Sub(e.knownAt) <= min(d.outbox/7, time.Hour) {
			d.wrong("dropped: %s with the last row of event %s, which is in the outbox and can be deleted no more", name, row.id)
		}
	}
	delete(d.log, name)
}

// keptForEver is the retention of what is never deleted.
const keptForEver = time.Duration(1<<63 - 1)

// logPartitionEnd returns the end of a partition of the log by its name, which has its day, or its last moment if sliceLog made it.
func logPartitionEnd(name string) time.Time {
	_, text, _ := strings.Cut(name, "outbox_delivery_log_")
	if day, err := time.Parse("20060102", text); err == nil {
		return day.AddDate(0, 0, 1)
	}
	end, err := time.Parse("20060102150405", text)
	if err != nil {
		panic(err)
	}
	return end
}

// sliceLog makes the log's partitions so short that some of them can be dropped while a test runs.
func (w *world) sliceLog(length time.Duration) {
	w.t.Helper()
	for _, name := range ask[[]string](w, "select array_agg(inhrelid::regclass::text) from pg_inherits where inhparent = 'outbox_delivery_log'::regclass") {
		w.exec("drop table " + name)
	}
	w.exec(fmt.Sprintf(`create or replace function outbox_make_partitions(first timestamptz default now(), days_ahead int default 7) returns int
		language plpgsql security definer set search_path = public, pg_temp set timezone = 'UTC' set datestyle = 'ISO' as $$
		declare
			length constant int := %d; -- seconds
			low timestamptz;
			name text;
			made int := 0;
		begin
			perform pg_advisory_xact_lock('pg_class'::regclass::oid::int, 'outbox_delivery_log'::regclass::oid::int);
			for i in 0 .. 12 loop
				low := to_timestamp((floor(extract(epoch from first) / length) + i) * length);
				name := 'outbox_delivery_log_' || to_char(low + make_interval(secs => length), 'YYYYMMDDHH24MISS');
				continue when to_regclass(name) is not null;
				execute format('create table %%I (like outbox_delivery_log including constraints including storage)', name);
				execute format('alter table outbox_delivery_log attach partition %%I for values from (%%L) to (%%L)', name, low, low + make_interval(secs => length));
				made := made + 1;
			end loop;
			return made;
		end $$`, int(length/time.Second)))
	w.exec("select outbox_make_partitions()")
}

// notesDrops has the history tell which tables are dropped.
func (w *world) notesDrops() {
	w.t.Helper()
	w.exec("create table dropped (name text)")
	w.exec(`create function note_dropped() returns event_trigger language plpgsql security definer set search_path = public, pg_temp as $$
		begin
			insert into dropped select object_name from pg_event_trigger_dropped_objects() where object_type = 'table';
		end $$`)
	w.exec("create event trigger note_dropped on sql_drop execute function note_dropped()")
}
