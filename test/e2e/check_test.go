package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
)

// event is one committed insert, as the oracle tells it.
type event struct {
	id, aggregateType, aggregateID, payload string
	commitEnd                               pglogrepl.LSN // the end of the commit record: the value to confirm
	index                                   int64         // among the transaction's inserts
}

type aggregate struct{ typ, id string }

// arrival is the first delivery of an event, by its number in the truth.
type arrival struct {
	event int
	at    position
}

func (e event) aggregate() aggregate { return aggregate{e.aggregateType, e.aggregateID} }

// delivery is what a sink was given.
type delivery struct {
	id, topic, key, payload string
	place                   string    // where order means something: a partition
	at                      time.Time // when the destination took it, by its own clock, where a test asks for that
}

// outcome is a row of outbox_delivery_log.
type outcome struct {
	id, sink, status string
	lsn              pglogrepl.LSN // of the start of the commit record; of what a job has found, where the job's slot begins
	index            int64         // negative for what a job has found
	person           bool          // who has discarded it
}

// sample is where slot and checkpoint stood, the slot asked first.
type sample struct{ slot, checkpoint pglogrepl.LSN }

// snapshot is what the ledger held at some time: so many deliveries settled, parked ones among them, of commits before the
// slot's position.
type snapshot struct {
	confirmed pglogrepl.LSN
	settled   int
}

// evidence is all that is known of a scenario after its end.
type evidence struct {
	truth        []event               // in commit order
	deliveries   map[string][]delivery // by sink, each place in its order
	ledger       []outcome             // in the order of positions
	status       map[string]string     // by event id, or sink/event id, where it is not delivered: dead; or invalid or skipped, which no sink has seen
	retried      map[string]int        // by event id, or sink/event id: how often a person has retried it
	topics       topics
	samples      []sample
	snapshots    []snapshot
	faults       int
	resets       int // see expectation
	batch, lanes int
}

// unrecorded is the number of batches that a lane may have delivered and not recorded.
const unrecorded = 8

// check is the one invariant of all scenarios. It names what is wrong, and tells how much there was.
func check(e evidence) (problems []string, summary string) {
	c := checker{evidence: e, number: make(map[string]int, len(e.truth))}
	for i, ev := range e.truth {
		c.number[ev.id] = i
	}
	if len(c.number) != len(e.truth) {
		c.wrong("the oracle names %d events, %d of them different", len(e.truth), len(c.number))
	}
	repeated := 0
	for _, sink := range c.sinks() {
		repeated += c.sink(sink, e.deliveries[sink])
	}
	c.complete()
	c.slot()
	return c.problems, fmt.Sprintf("%d events to %d sinks, %d repeated, %d faults, %d samples of the slot",
		len(e.truth), len(e.deliveries), repeated, e.faults, len(e.samples))
}

type checker struct {
	evidence
	number   map[string]int // of an event in the truth
	problems []string
}

func (c *checker) wrong(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func (c *checker) sinks() (names []string) {
	for name := range c.deliveries {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// want is the terminal status that an event should have at a sink.
func (c *checker) want(sink, id string) string {
	return cmp.Or(c.status[sink+"/"+id], c.status[id], "delivered")
}

// ends are the terminal rows that a delivery should have, in alphabetical order: one, and the dead letter that it was before a person
// retried that, or discarded it.
func (c *checker) ends(sink, id, want string, discards int) []string {
	all := []string{want}
	for range cmp.Or(c.retried[sink+"/"+id], c.retried[id]) + discards {
		all = append(all, "dead")
	}
	slices.Sort(all)
	return all
}

// sink checks what one sink got: nothing lost, nothing phantom, order per aggregate of the first delivery, and no more
// repeated than faults and time-outs explain.
func (c *checker) sink(name string, got []delivery) (repeated int) {
	times := make([]int, len(c.truth))
	newest := map[aggregate][]arrival{} // of each aggregate, those of the first deliveries that no other one is later than by commit and by position
	positions := c.positions(name)
	places := map[aggregate]string{}
	for _, d := range got {
		i, known := c.number[d.id]
		if !known {
			c.wrong("phantom: %s got event %q (%s, key %q), which was never committed", name, d.id, d.topic, d.key)
			continue
		}
		ev := c.truth[i]
		if want := c.topics.of(ev.aggregateType); d.topic != want || d.key != ev.aggregateID {
			c.wrong("phantom: %s got event %s in %s with key %q, want %s, %q", name, d.id, d.topic, d.key, want, ev.aggregateID)
		}
		if d.payload != ev.payload {
			c.wrong("phantom: %s got event %s with payload %q, want %q", name, d.id, d.payload, ev.payload)
		}
		a := ev.aggregate()
		if at, seen := places[a]; seen && at != d.place {
			c.wrong("order: %s got aggregate %v in both %s and %s", name, a, at, d.place)
		}
		places[a] = d.place
		times[i]++
		if times[i] > 1 || cmp.Or(c.retried[name+"/"+d.id], c.retried[d.id]) > 0 { // a person's retry comes when it comes
			continue
		}
		here := arrival{i, positions[i]}
		for _, before := range newest[a] {
			if before.event > i && before.at.after(here.at) {
				c.wrong("order: %s got event %s of %v first after %s, which was committed later", name, d.id, a, c.truth[before.event].id)
				break
			}
		}
		newest[a] = latest(newest[a], here)
	}

	failed := map[string]int{} // tries without an answer: each may have been accepted all the same
	for _, o := range c.ledger {
		if o.sink == name && o.status == "failed" {
			failed[o.id]++
		}
	}
	lost, unexplained := 0, 0
	var again []string // some of those that came again without a time-out
	for i, n := range times {
		ev := c.truth[i]
		delivered := c.want(name, ev.id) == "delivered"
		switch {
		case n == 0 && delivered:
			if lost++; lost <= 3 {
				c.wrong("lost: %s never got event %s of %v, commit end %s", name, ev.id, ev.aggregate(), ev.commitEnd)
			}
		case n > 0 && !delivered:
			c.wrong("phantom: %s got event %s, whose status is to be %s", name, ev.id, c.want(name, ev.id))
		}
		repeated += max(0, n-1)
		if more := n - 1 - failed[ev.id]; more > 0 {
			if unexplained += more; len(again) < 3 {
				again = append(again, fmt.Sprintf("%s of %v, commit end %s", ev.id, ev.aggregate(), ev.commitEnd))
			}
		}
	}
	if lost > 3 {
		c.wrong("lost: %s never got %d events", name, lost)
	}
	if most := c.faults*unrecorded*c.batch*c.lanes + c.resets; unexplained > most {
		c.wrong("repeated: %s got %d events again without a time-out, at most %d are explained by %d faults; some of them: %s", name, unexplained, most, c.faults,
			strings.Join(again, "; "))
	}
	return repeated
}

// positions are those of the events in the order of a sink. A job finds events in the order of their times, so what it has found is in order if
// its rows of the ledger are: time and commit may differ for transactions that were open together.
func (c *checker) positions(sink string) []position {
	all := make([]position, len(c.truth))
	for i, ev := range c.truth {
		all[i] = position{ev.commitEnd - 1, ev.index}
	}
	for _, o := range c.ledger {
		if i, known := c.number[o.id]; known && o.sink == sink && o.status != "failed" && o.index < 0 {
			all[i] = position{o.lsn, o.index}
		}
	}
	return all
}

// latest adds an arrival to some of which none is later than another one both by commit and by position, and drops what is not needed then.
func latest(all []arrival, one arrival) []arrival {
	for _, other := range all {
		if other.event > one.event && other.at.after(one.at) {
			return all
		}
	}
	all = slices.DeleteFunc(all, func(other arrival) bool { return one.event > other.event && one.at.after(other.at) })
	return append(all, one)
}

// complete checks the ledger: exactly one terminal row for each event and sink but for what persons do, in the order of commit.
func (c *checker) complete() {
	type key struct{ id, sink string }
	rows := map[key][]string{}
	discards := map[key]int{} // 1 for what a person has discarded
	newest := -1
	for _, o := range c.ledger {
		i, known := c.number[o.id]
		if !known {
			c.wrong("ledger: a row of event %q, which was never committed", o.id)
			continue
		}
		streamed := o.index >= 0 && (o.sink != "" || c.status[o.id] != "skipped") // "skip" has read no positions
		if streamed && (o.lsn >= c.truth[i].commitEnd || o.index != c.truth[i].index) {
			c.wrong("ledger: event %s is at %s, %d; its commit ended at %s and it was insert %d", o.id, o.lsn, o.index, c.truth[i].commitEnd, c.truth[i].index)
		}
		if streamed && i < newest {
			c.wrong("ledger: event %s has a later position than %s, which was committed later", o.id, c.truth[newest].id)
		}
		if streamed {
			newest = max(newest, i)
		}
		if k := (key{o.id, o.sink}); o.status != "failed" {
			rows[k] = append(rows[k], o.status)
			if o.person {
				discards[k] = 1
			}
		}
	}
	bad := 0
	for _, ev := range c.truth {
		sinks := c.sinks()
		ofNone := map[string]string{"invalid": "dead", "skipped": "discarded"}[c.status[ev.id]] // no event to any sink, but a row of none
		if ofNone != "" {
			sinks = []string{""}
		}
		for _, sink := range sinks {
			want := c.want(sink, ev.id)
			if ofNone != "" {
				want = ofNone
			}
			k := key{ev.id, sink}
			got := slices.Sorted(slices.Values(rows[k]))
			if want := c.ends(sink, ev.id, want, discards[k]); !slices.Equal(got, want) {
				if bad++; bad <= 10 {
					c.wrong("ledger: terminal rows of event %s for %q: %v, want %v", ev.id, sink, got, want)
				}
			}
			delete(rows, k)
		}
	}
	if bad > 10 {
		c.wrong("ledger: %d events without exactly the terminal rows that they should have", bad)
	}
	for k := range rows {
		c.wrong("ledger: a row of event %s for sink %q, which is none of ours", k.id, k.sink)
	}
}

// slot checks that the slot was never ahead of what was settled, and in the end was past everything.
func (c *checker) slot() {
	for _, s := range c.samples {
		if s.slot > s.checkpoint {
			c.wrong("slot: it stood at %s, ahead of the checkpoint's %s", s.slot, s.checkpoint)
		}
	}
	for _, s := range c.snapshots {
		settled := map[outcome]bool{} // once, whatever persons do
		for _, o := range c.ledger {
			if o.status != "failed" && o.lsn < s.confirmed && o.index >= 0 {
				settled[outcome{sink: o.sink, lsn: o.lsn, index: o.index}] = true
			}
		}
		if len(settled) != s.settled {
			c.wrong("slot: it stood at %s when %d deliveries before that were settled; in the end there were %d", s.confirmed, s.settled, len(settled))
		}
	}
	if len(c.samples) == 0 {
		c.wrong("slot: nobody looked at it")
		return
	}
	if n := len(c.truth); n > 0 && c.samples[len(c.samples)-1].slot < c.truth[n-1].commitEnd {
		c.wrong("slot: in the end it stood at %s, the last commit ended at %s", c.samples[len(c.samples)-1].slot, c.truth[n-1].commitEnd)
	}
}
