package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
)

// clean is evidence of which nothing is wrong: two aggregates, two transactions, two sinks.
func clean() evidence {
	e := evidence{
		deliveries: map[string][]delivery{}, topics: topics{prefix: "t"}, batch: 2, lanes: 1,
		samples:   []sample{{100, 100}, {100, 200}, {300, 300}},
		snapshots: []snapshot{{confirmed: 100, settled: 4}},
	}
	for i, aggregateID := range []string{"a", "b", "a", "b"} {
		tx := i / 2
		ev := event{
			id: fmt.Sprint("e", i), aggregateType: "order", aggregateID: aggregateID, payload: fmt.Sprint(i),
			commitEnd: pglogrepl.LSN(100 + 200*tx), index: int64(i % 2),
		}
		e.truth = append(e.truth, ev)
		for _, sink := range []string{"kafka", "stdout"} {
			e.deliveries[sink] = append(e.deliveries[sink],
				delivery{id: ev.id, topic: "t.order", key: aggregateID, payload: ev.payload, place: "t.order/" + aggregateID})
			e.ledger = append(e.ledger, outcome{id: ev.id, sink: sink, status: "delivered", lsn: ev.commitEnd - 40, index: ev.index})
		}
	}
	return e
}

func TestCheckerAcceptsWhatIsRight(t *testing.T) {
	t.Parallel()
	again := clean().deliveries["kafka"]
	for name, change := range map[string]func(*evidence){
		"nothing special": func(*evidence) {},
		"a fault explains what comes again": func(e *evidence) {
			e.faults = 1
			e.deliveries["kafka"] = append(e.deliveries["kafka"], again...)
		},
		"a try without an answer explains one": func(e *evidence) {
			e.ledger = append(slices.Clone(e.ledger[:2]), append([]outcome{{id: "e0", sink: "kafka", status: "failed", lsn: 60}}, e.ledger[2:]...)...)
			e.deliveries["kafka"] = append(e.deliveries["kafka"], again[0])
		},
		"what a job has found, in the order of times": func(e *evidence) {
			// e0 was committed before e2, but its transaction began later. The slot that was made anew begins behind both.
			for i, at := range map[int]int64{0: -7, 4: -8} {
				e.ledger[i].lsn, e.ledger[i].index = 350, at
			}
			d := e.deliveries["kafka"]
			d[0], d[2] = d[2], d[0]
			e.snapshots[0].settled--
		},
		"a dead letter": func(e *evidence) {
			e.status = map[string]string{"e1": "dead"}
			for sink := range e.deliveries {
				e.deliveries[sink] = slices.Delete(e.deliveries[sink], 1, 2)
			}
			e.ledger[2].status, e.ledger[3].status = "dead", "dead"
		},
		"a dead letter of one sink": func(e *evidence) {
			e.status = map[string]string{"kafka/e1": "dead"}
			e.deliveries["kafka"] = slices.Delete(e.deliveries["kafka"], 1, 2)
			e.ledger[2].status = "dead"
		},
		"no valid event": func(e *evidence) {
			e.status = map[string]string{"e1": "invalid"}
			for sink := range e.deliveries {
				e.deliveries[sink] = slices.Delete(e.deliveries[sink], 1, 2)
			}
			e.ledger = slices.Delete(e.ledger, 3, 4)
			e.ledger[2].sink, e.ledger[2].status = "", "dead"
			e.snapshots[0].settled--
		},
		"passed by skip": func(e *evidence) {
			e.status = map[string]string{"e1": "skipped"}
			for sink := range e.deliveries {
				e.deliveries[sink] = slices.Delete(e.deliveries[sink], 1, 2)
			}
			e.ledger = slices.Delete(e.ledger, 3, 4)
			e.ledger[2].sink, e.ledger[2].status, e.ledger[2].index = "", "discarded", 7
			e.snapshots[0].settled--
		},
		"a dead letter that a person has retried twice": func(e *evidence) {
			e.retried = map[string]int{"kafka/e0": 2}
			e.ledger = slices.Insert(e.ledger, 0, outcome{id: "e0", sink: "kafka", status: "dead", lsn: 60}, outcome{id: "e0", sink: "kafka", status: "dead", lsn: 60})
			d := e.deliveries["kafka"]
			d[0], d[2] = d[2], d[0] // its aggregate has gone on meanwhile
		},
		"a dead letter that a person has discarded": func(e *evidence) {
			e.status = map[string]string{"kafka/e1": "discarded"}
			e.deliveries["kafka"] = slices.Delete(e.deliveries["kafka"], 1, 2)
			e.ledger[2].status, e.ledger[2].person = "discarded", true
			e.ledger = slices.Insert(e.ledger, 2, outcome{id: "e1", sink: "kafka", status: "dead", lsn: 60, index: 1})
		},
		"aggregates overtake each other": func(e *evidence) {
			d := e.deliveries["kafka"]
			d[0], d[1] = d[1], d[0]
		},
	} {
		e := clean()
		change(&e)
		if problems, _ := check(e); len(problems) > 0 {
			t.Errorf("%s: %q", name, problems)
		}
	}
}

func TestCheckerFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*evidence)
		want   string
	}{
		"lost":                 {func(e *evidence) { e.deliveries["stdout"] = e.deliveries["stdout"][:3] }, "lost: stdout never got event e3"},
		"lost by one of many":  {func(e *evidence) { e.deliveries["kafka"] = nil }, "lost: kafka never got 4 events"},
		"never committed":      {func(e *evidence) { e.truth = e.truth[:3] }, `phantom: kafka got event "e3"`},
		"wrong key":            {func(e *evidence) { e.deliveries["kafka"][0].key = "b" }, "phantom: kafka got event e0 in t.order with key"},
		"wrong topic":          {func(e *evidence) { e.deliveries["kafka"][0].topic = "t.invoice" }, "phantom: kafka got event e0 in t.invoice"},
		"wrong payload":        {func(e *evidence) { e.deliveries["kafka"][0].payload = "0.0" }, "phantom: kafka got event e0 with payload"},
		"a dead one delivered": {func(e *evidence) { e.status = map[string]string{"e0": "dead"} }, "phantom: kafka got event e0, whose status is to be dead"},
		"two partitions":       {func(e *evidence) { e.deliveries["kafka"][2].place = "t.order/b" }, "order: kafka got aggregate {order a} in both"},
		"order":                {func(e *evidence) { d := e.deliveries["kafka"]; d[0], d[2] = d[2], d[0] }, "order: kafka got event e0 of {order a} first after e2"},
		"order, by a job": {func(e *evidence) {
			for i, at := range map[int]int64{0: -8, 4: -7} {
				e.ledger[i].lsn, e.ledger[i].index = 350, at
			}
			d := e.deliveries["kafka"]
			d[0], d[2] = d[2], d[0]
		}, "order: kafka got event e0 of {order a} first after e2"},
		"streamed before the job is done": {func(e *evidence) {
			e.ledger[0].lsn, e.ledger[0].index = 250, -8
			d := e.deliveries["kafka"]
			d[0], d[2] = d[2], d[0]
		}, "order: kafka got event e0 of {order a} first after e2"},
		"repeated":           {func(e *evidence) { e.deliveries["kafka"] = append(e.deliveries["kafka"], e.deliveries["kafka"][0]) }, "repeated: kafka got 1 events again"},
		"repeated too often": {repeatTooOften, "repeated: kafka got 20 events again without a time-out, at most 16"},
		"no terminal row":    {func(e *evidence) { e.ledger = e.ledger[1:] }, `ledger: terminal rows of event e0 for "kafka": [], want [delivered]`},
		"two terminal rows":  {func(e *evidence) { e.ledger = append(e.ledger[:1:1], e.ledger...) }, `ledger: terminal rows of event e0 for "kafka": [delivered delivered]`},
		"dead and delivered": {func(e *evidence) {
			e.ledger = slices.Insert(e.ledger, 0, outcome{id: "e0", sink: "kafka", status: "dead", lsn: 60})
		}, `ledger: terminal rows of event e0 for "kafka": [dead delivered], want [delivered]`},
		"retried once, dead twice": {func(e *evidence) {
			e.retried = map[string]int{"e0": 1}
			e.ledger = slices.Insert(e.ledger, 0, outcome{id: "e0", sink: "kafka", status: "dead", lsn: 60}, outcome{id: "e0", sink: "kafka", status: "dead", lsn: 60})
		}, `ledger: terminal rows of event e0 for "kafka": [dead dead delivered], want [dead delivered]`},
		"discarded by nobody": {func(e *evidence) {
			e.status = map[string]string{"kafka/e0": "discarded"}
			e.ledger[0].status = "discarded"
			e.ledger = slices.Insert(e.ledger, 0, outcome{id: "e0", sink: "kafka", status: "dead", lsn: 60})
		}, `ledger: terminal rows of event e0 for "kafka": [dead discarded], want [discarded]`},
		"skipped and delivered": {func(e *evidence) {
			e.status = map[string]string{"e1": "skipped"}
			e.ledger = append(e.ledger, outcome{id: "e1", status: "discarded", lsn: 60})
		}, "phantom: kafka got event e1, whose status is to be skipped"},
		"skipped, and the log says nothing": {func(e *evidence) {
			e.status = map[string]string{"e1": "skipped"}
			for sink := range e.deliveries {
				e.deliveries[sink] = slices.Delete(e.deliveries[sink], 1, 2)
			}
			e.ledger = slices.Delete(e.ledger, 2, 4)
		}, `ledger: terminal rows of event e1 for "": [], want [discarded]`},
		"another status":  {func(e *evidence) { e.ledger[7].status = "discarded" }, `ledger: terminal rows of event e3 for "stdout": [discarded]`},
		"row of no event": {func(e *evidence) { e.ledger[7].id = "e9" }, `ledger: a row of event "e9"`},
		"row of no sink": {func(e *evidence) {
			e.ledger = append(e.ledger, outcome{id: "e3", sink: "other", status: "delivered", lsn: 260, index: 1})
		}, `for sink "other"`},
		"position not before":   {func(e *evidence) { e.ledger[0].lsn = 100 }, "ledger: event e0 is at 0/64, 0"},
		"another index":         {func(e *evidence) { e.ledger[0].index = 5 }, "ledger: event e0 is at 0/3C, 5"},
		"positions misordered":  {func(e *evidence) { e.ledger[0], e.ledger[4] = e.ledger[4], e.ledger[0] }, "ledger: event e0 has a later position than e2"},
		"slot ahead":            {func(e *evidence) { e.samples[1].slot = 201 }, "slot: it stood at 0/C9, ahead of the checkpoint's 0/C8"},
		"slot ahead at a kill":  {func(e *evidence) { e.snapshots[0].settled = 3 }, "slot: it stood at 0/64 when 3 deliveries"},
		"slot behind":           {func(e *evidence) { e.samples = e.samples[:2] }, "slot: in the end it stood at 0/64"},
		"slot not looked at":    {func(e *evidence) { e.samples = nil }, "slot: nobody looked at it"},
		"oracle names it twice": {func(e *evidence) { e.truth = append(e.truth, e.truth[3]) }, "the oracle names 5 events, 4 of them different"},
	} {
		e := clean()
		test.change(&e)
		problems, _ := check(e)
		if !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, test.want) }) {
			t.Errorf("%s: got %q, want %q", name, problems, test.want)
		}
	}
}

func repeatTooOften(e *evidence) {
	e.faults = 1
	for range 5 {
		e.deliveries["kafka"] = append(e.deliveries["kafka"], clean().deliveries["kafka"]...)
	}
}
