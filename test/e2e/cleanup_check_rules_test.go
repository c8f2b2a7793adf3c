package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// past is a history of which nothing is wrong: two events, of which the first one was delivered to two sinks of one slot and parked by
// neither, and the second one was delivered to one sink and is a dead letter of the other. Both were deleted, and then the log.
func past() []transaction {
	began := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
	when := func(d time.Duration) string { return began.Add(d).Format("2006-01-02 15:04:05.999999Z07") }
	text := func(format string, args ...any) change {
		c, err := parseChange(fmt.Sprintf("table public."+format, args...))
		if err != nil {
			panic(err)
		}
		return c
	}
	event := func(id, lsn string) transaction {
		return transaction{at: began, changes: []change{text("event_outbox: INSERT: id[uuid]:'%s' created_at[timestamp with time zone]:'%s' payload[json]:'it''s [x]:1'", id, when(0))}}
	}
	log := func(id, sink, status, lsn string) change {
		return text("outbox_delivery_log_20261128000002: INSERT: event_id[uuid]:'%s' processor_id[integer]:%s status[text]:'%s' commit_lsn[pg_lsn]:'%s' tx_index[bigint]:0 error_message[text]:null", id, sink, status, lsn)
	}
	prefix := func(lsn string) change {
		return text("outbox_checkpoints: UPDATE: slot_name[text]:'s' state[text]:'ready' prefix_lsn[pg_lsn]:'%s' prefix_index[bigint]:0", lsn)
	}
	return []transaction{
		event("e1", "0/10"),
		event("e2", "0/20"),
		{at: began.Add(time.Second), changes: []change{prefix("0/10"), log("e1", "1", "delivered", "0/10"), log("e1", "2", "delivered", "0/10")}},
		{at: began.Add(time.Second), changes: []change{
			prefix("0/20"), log("e2", "1", "delivered", "0/20"),
			text("outbox_parked: INSERT: processor_id[integer]:2 commit_lsn[pg_lsn]:'0/20' tx_index[bigint]:0 event_id[uuid]:'e2' status[text]:'dead'"),
		}},
		{at: began.Add(5 * time.Second), changes: []change{text("event_outbox: DELETE: id[uuid]:'e1'"), text("event_outbox: DELETE: id[uuid]:'e2'")}},
		{at: began.Add(7 * time.Second), changes: []change{text("dropped: INSERT: name[text]:'outbox_delivery_log_20261128000002'")}},
	}
}

func rulesOfPast() deletionRules {
	return deletionRules{sinks: []string{"a", "b"}, processors: map[string]string{"1": "a", "2": "b"}, outbox: 5 * time.Second, ledger: 5 * time.Second}
}

func TestDeletionCheckerAcceptsWhatIsRight(t *testing.T) {
	t.Parallel()
	d := checkDeletions(past(), rulesOfPast())
	if len(d.problems) > 0 || d.rows != 2 || d.days != 1 {
		t.Errorf("%d rows, %d partitions, %q", d.rows, d.days, d.problems)
	}
	if got := d.events["e1"]; got.rows != 0 || !got.deleted || !got.settled["b"] {
		t.Errorf("e1 is %+v", got)
	}
	if got := committed(past())[1]; got.payload != "it's [x]:1" || got.id != "e2" {
		t.Errorf("the second event is %+v", got)
	}
}

func TestDeletionCheckerFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	other := change{table: "outbox_checkpoints", op: "INSERT", row: map[string]string{"slot_name": "other", "state": "ready", "prefix_lsn": "0/18", "prefix_index": "0"}}
	for name, test := range map[string]struct {
		change func([]transaction, *deletionRules) []transaction
		want   string
	}{
		"too early":       {func(h []transaction, r *deletionRules) []transaction { r.outbox++; return h }, "deleted: event e1, 5s after its created_at"},
		"before the slot": {func(h []transaction, _ *deletionRules) []transaction { return h[1:] }, "deleted: event e1, which was there before the slot"},
		"unaccounted":     {func(h []transaction, _ *deletionRules) []transaction { return slices.Delete(h, 2, 3) }, "deleted: event e1, of which the ledger has no row"},
		"one sink only":   {func(h []transaction, r *deletionRules) []transaction { r.sinks = append(r.sinks, "c"); return h }, "deleted: event e1, which c has not settled"},
		"failed only": {func(h []transaction, _ *deletionRules) []transaction {
			h[2].changes[2].row["status"] = "failed"
			return h
		}, "deleted: event e1, which b has not settled"},
		"beyond the prefix": {func(h []transaction, _ *deletionRules) []transaction { h[3].changes = h[3].changes[1:]; return h }, "deleted: event e2 at 0/20, 0, beyond the prefix of slot s"},
		"beyond another slot": {func(h []transaction, _ *deletionRules) []transaction {
			h[0].changes = append(h[0].changes, other)
			return h
		}, "deleted: event e2 at 0/20, 0, beyond the prefix of slot other"},
		"a slot is being made": {
			func(h []transaction, _ *deletionRules) []transaction {
				h[3].changes[0].row["state"] = "building"
				return h
			},
			"deleted: event e1 at 0/10, 0, beyond the prefix of slot s",
		},
		"log before outbox": {
			func(h []transaction, _ *deletionRules) []transaction { h[4], h[5] = h[5], h[4]; return h },
			"dropped: outbox_delivery_log_20261128000002 with the last row of event e1, which is in the outbox",
		},
		"log too early": {func(h []transaction, r *deletionRules) []transaction { r.ledger++; return h }, "dropped: outbox_delivery_log_20261128000002, 5s after its end"},
		"log beyond another slot": {func(h []transaction, _ *deletionRules) []transaction {
			h[0].changes = append(h[0].changes, other)
			return h
		}, "dropped: outbox_delivery_log_20261128000002 with a row of event e2"},
		"whole partition": {func(h []transaction, _ *deletionRules) []transaction {
			h[0].changes[0].table, h[3].changes = "event_outbox_20261128", nil
			h[1].changes[0].table = "event_outbox_20261128"
			h[4].changes = []change{{table: "dropped", op: "INSERT", row: map[string]string{"name": "event_outbox_20261128"}}}
			return h
		}, "deleted: event e2, of which the ledger has no row"},
	} {
		rules := rulesOfPast()
		history := test.change(past(), &rules)
		if d := checkDeletions(history, rules); !slices.ContainsFunc(d.problems, func(p string) bool { return strings.HasPrefix(p, test.want) }) {
			t.Errorf("%s: got %q, want %q", name, d.problems, test.want)
		}
	}
}
